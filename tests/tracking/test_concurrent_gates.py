"""Several processes gate one registered model at once; benchmarks/concurrent_gates.py does many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import databases
import pytest

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "concurrent_gates.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=pytest.mark.exhaustive),
        ("--database", "postgresql", "--restart"),
    ],
)
def test_no_wrong_alias_and_no_version_without_evidence(options: tuple[str, ...]) -> None:
    if options:
        with databases.running_postgres():
            pass  # says why where there is none
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), "--processes", "4", "--rounds", "2", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2_000:]
    assert "8 gates" in done.stdout
    assert "4 PASS, 4 FAIL" in done.stdout
    assert "0 wrong" in done.stdout
