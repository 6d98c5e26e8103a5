"""What a benchmark measured, as JSON: every script here takes ``--json FILE``.

A script calls `record` where it has a figure, and starts by `as_script`. Two files of one script,
from two commits, are compared by ``python scripts/compare_benchmarks.py before.json now.json``.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Better = Literal["lower", "higher"]


class _Sheet:
    """Where figures go; nowhere unless a script was called with ``--json``."""

    figures: dict[str, dict[str, Any]] | None = None


def record(name: str, value: float, unit: str, *, better: Better = "lower") -> None:
    """Note a figure under a name that is the same whenever the same is measured."""
    if _Sheet.figures is None:
        return
    if name in _Sheet.figures:
        raise ValueError(f"{name!r} is measured twice: give the figures names of their own.")
    if not math.isfinite(value):
        raise ValueError(f"{name!r} = {value}: a figure is a finite number.")
    _Sheet.figures[name] = {"value": float(value), "unit": unit, "better": better}


def as_script(main: Callable[[], Any]) -> None:
    """Run a script's `main`, which sees the command line without ``--json FILE``.

    The file is written when `main` ends well, and only if something was recorded.
    """
    script, arguments, target = Path(sys.argv[0]).stem, sys.argv[1:], None
    if "--json" in arguments:
        at = arguments.index("--json")
        if len(arguments) == at + 1:
            raise SystemExit("--json needs the name of a file to write")
        target = Path(arguments[at + 1]).resolve()  # some scripts change the directory
        del arguments[at : at + 2]
        sys.argv[1:] = arguments
        if not target.parent.is_dir():
            raise SystemExit(f"--json: there is no folder {target.parent}")
        _Sheet.figures = {}
    try:
        main()
    except SystemExit as end:
        if end.code not in (None, 0) or target is None:
            raise
    if target is None:
        return
    if not _Sheet.figures:
        raise SystemExit(f"{script} measured nothing with these arguments: {target} is not written")
    found = {"benchmark": script, "arguments": arguments, **_circumstances()}
    found["figures"] = _Sheet.figures
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _circumstances() -> dict[str, Any]:
    """Where and of which commit."""
    from mlflow_degrade.bench.machine import processor_name
    from mlflow_degrade.engine.providers import CPU

    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "processor": processor_name(CPU),
        "python": platform.python_version(),
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # an unpacked sdist
    return done.stdout.strip()
