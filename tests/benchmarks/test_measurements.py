"""Benchmarks write what they measured as JSON, and two of these files are compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path
    for path in (ROOT / "benchmarks").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def benchmark_script(tmp_path: Path) -> Path:
    """A script like those in benchmarks/, with figures of its own."""
    script = tmp_path / "made.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from measurements import as_script, record\n"
        "def main():\n"
        "    print('seen:', sys.argv[1:])\n"
        "    if 'empty' not in sys.argv:\n"
        "        record('reading', 2.0, 's')\n"
        "        record('speed', 50, 'tokens/s', better='higher')\n"
        "    if 'twice' in sys.argv: record('speed', 50, 'tokens/s')\n"
        "    sys.exit('fails' in sys.argv)\n"
        "as_script(main)\n"
    )
    return script


def test_every_benchmark_records_figures() -> None:
    assert len(SCRIPTS) > 12
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert re.search(r"^\s+as_script\(main\)$", text, re.M), path
        assert len(re.findall(r"\brecord\(", text)) >= 1, path


def test_what_was_measured_is_written(benchmark_script: Path, tmp_path: Path) -> None:
    done = _run(benchmark_script, "--json", tmp_path / "found.json", "--quick")
    assert (done.returncode, done.stdout) == (0, "seen: ['--quick']\n"), done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["figures"] == {
        "reading": {"value": 2.0, "unit": "s", "better": "lower"},
        "speed": {"value": 50.0, "unit": "tokens/s", "better": "higher"},
    }
    assert (found["benchmark"], found["arguments"]) == ("made", ["--quick"])
    assert found["processor"]
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert found["commit"] == (head.stdout.strip() or None)


@pytest.mark.parametrize(("how", "said"), [("empty", "measured nothing"), ("twice", "twice")])
def test_nothing_half_is_written(
    benchmark_script: Path, tmp_path: Path, how: str, said: str
) -> None:
    done = _run(benchmark_script, how, "--json", tmp_path / "found.json")
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "found.json").exists()
    assert _run(benchmark_script, how).returncode == 0, "without --json nothing is recorded"


def test_a_benchmark_that_fails_still_fails(benchmark_script: Path, tmp_path: Path) -> None:
    assert _run(benchmark_script, "fails", "--json", tmp_path / "found.json").returncode == 1
    assert not (tmp_path / "found.json").exists()
    assert _run(benchmark_script, "--json").returncode == 1
    assert "no folder" in _run(benchmark_script, "--json", tmp_path / "no" / "a.json").stderr


def _file(path: Path, **values: Any) -> Path:
    """A file with figures; names that end in ``speed`` are better higher."""
    figures = {
        name: {"value": value, "unit": "u", "better": "higher" if "speed" in name else "lower"}
        for name, value in values.items()
        if name not in ("processor", "benchmark")
    }
    found = {"benchmark": "made", "arguments": [], "processor": "one", "commit": "c", "date": "d"}
    found |= {name: values[name] for name in ("processor", "benchmark") if name in values}
    path.write_text(json.dumps({**found, "figures": figures}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("before", "now", "options", "code", "said"),
    [
        ({"time": 1.0}, {"time": 1.09}, [], 0, "| time | 1 | 1.09 | u | 1.09 |"),
        ({"time": 1.0}, {"time": 1.2}, [], 1, "1.20 **worse**"),
        ({"time": 1.0}, {"time": 1.2}, ["--tolerance", "0.25"], 0, "0 of 1 worse"),
        ({"time": 1.0}, {"time": 0.1}, [], 0, "| 0.10 |"),
        ({"speed": 10.0}, {"speed": 20.0}, [], 0, "| 0.50 |"),
        ({"speed": 10.0}, {"speed": 8.0}, [], 1, "1.25 **worse**"),
        ({"errors": 0.0}, {"errors": 0.0}, [], 0, "| 1.00 |"),
        ({"errors": 0.0}, {"errors": 1.0}, [], 1, "inf **worse**"),
        ({"speed": 1.0}, {"speed": 0.0}, [], 1, "inf **worse**"),
        ({"time": 1.0, "old": 1.0}, {"time": 1.0}, [], 1, "gone, or in another unit: old"),
        ({"time": 1.0}, {"time": 1.0, "more": 1.0}, [], 0, "new: more"),
        ({"time": 1.0}, {"time": 1.0, "processor": "two"}, [], 2, "processor differs"),
        ({"time": 1.0}, {"time": 1.0, "benchmark": "b"}, [], 2, "benchmark differs"),
    ],
)
def test_two_files_are_compared(
    tmp_path: Path,
    before: dict[str, Any],
    now: dict[str, Any],
    options: list[str],
    code: int,
    said: str,
) -> None:
    files = _file(tmp_path / "a.json", **before), _file(tmp_path / "b.json", **now)
    done = _run(ROOT / "scripts" / "compare_benchmarks.py", *files, *options)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout + done.stderr


def test_files_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"figures": {"x": 1}}')
    done = _run(ROOT / "scripts" / "compare_benchmarks.py", *[tmp_path / "a.json"] * 2)
    assert done.returncode == 2
    assert "is no file of a benchmark's --json" in done.stderr
    assert "Traceback" not in done.stderr
