"""The study behind docs/early-stopping.md replays decisions as `decide` makes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_it_stops_where_decide_does() -> None:
    # It compares both for every rule, kind of unit and claim before it replays anything.
    command = [sys.executable, "scripts/early_stopping.py", "--only", "size", "--replays", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| uneven | suite, informed |" in done.stdout
