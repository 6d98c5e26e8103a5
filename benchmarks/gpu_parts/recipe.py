"""``mlflow run recipes/quantize``: verdict, size and the time of each step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import Found
from .setting import Setting, tried

TITLE = "The recipe"
_ROOT = Path(__file__).resolve().parents[2]


def run(setting: Setting) -> Found:
    """A row for each scheme; evaluations of the baseline are kept from one to the next."""
    schemes = ("int8-weight-only", "fp16", "int4-weight-only", "bf16")
    with tempfile.TemporaryDirectory(prefix="recipe-") as scratch:
        for scheme in setting.pick(schemes, schemes[:1]):
            row = {"scheme": f"`{scheme}`"}
            yield TITLE, tried(row, lambda s=scheme: _row(setting, s, Path(scratch)))


def _row(setting: Setting, scheme: str, folder: Path) -> dict[str, Any]:
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{folder / 'mlflow.db'}"
    model = str(setting.source()) if setting.tiny else "starter"
    given = {"model": model, "scheme": scheme, "device": setting.device}
    if setting.tiny:
        given |= {"limit": "4", "tasks": "starter_numbers"}
    command = [sys.executable, "-m", "mlflow", "run", str(_ROOT / "recipes" / "quantize")]
    command += [word for name, value in given.items() for word in ("-P", f"{name}={value}")]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    steps = _steps(done.stderr)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-3:]
        return {"not measured": " ".join(last), "steps": steps}
    client = MlflowClient(store)
    runs = [r for r in client.search_runs(["0"]) if "degrade.verdict" in r.data.tags]
    newest = max(runs, key=lambda r: r.info.start_time)
    size = newest.data.metrics.get("size/bytes")
    return {
        "verdict": newest.data.tags["degrade.verdict"],
        "change, pp": newest.data.metrics.get("degrade/delta_pp"),
        "MB": size / 1e6 if size else None,
        "seconds": sum(steps.values()),
        "steps": steps,
    }


def _steps(said: str) -> dict[str, float]:
    """Title of each step that the recipe announced → seconds it says it took."""
    found, title = {}, ""
    for line in said.splitlines():
        if line.startswith("▸ "):
            title = line[2:].strip()
        elif title and (taken := re.fullmatch(r"\s*([\d.]+) s\s*", line)):
            found[title] = float(taken[1])
    return found
