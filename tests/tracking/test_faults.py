"""A few rows of the table that scripts/faults.py makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "scripts" / "faults.py"


@pytest.mark.slow
def test_a_gate_that_is_killed_is_whole_after_the_next_one() -> None:
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), "--only", "gate", "--every", "12"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2_000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| gate: SIG")]
    assert [row.split()[2] for row in rows] == ["SIGKILL", "SIGTERM", "SIGINT"]
    assert all(row.rstrip(" |").endswith("as without") for row in rows), rows
