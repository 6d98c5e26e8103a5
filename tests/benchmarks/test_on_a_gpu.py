"""The script for GPUs, on a CPU: all of it runs, and what goes wrong in a part stays there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlflow_degrade.core.errors import InputError, ProviderUnavailableError
from mlflow_degrade.engine.providers import resolve_device

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
_COMMAND = [sys.executable, str(_BENCHMARKS / "on_a_gpu.py")]
sys.path.insert(0, str(_BENCHMARKS))

import on_a_gpu  # noqa: E402
from gpu_parts import PARTS, Part, results  # noqa: E402
from gpu_parts.setting import Setting, those_made  # noqa: E402


def test_the_parts_take_seven_minutes_at_most() -> None:
    assert sum(part.seconds for part in PARTS) <= 7 * 60


def test_no_device_is_one_sentence(tmp_path: Path) -> None:
    try:
        resolve_device("cuda")
    except ProviderUnavailableError:
        pass
    else:
        pytest.skip("there is a CUDA device")
    done = subprocess.run(
        [*_COMMAND, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "'cuda' was asked for" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_tables() -> None:
    rows = [
        {"model": "a|b", "ratio": [2.0, 1.91, 2.123], "fallen back": {"Shape": 3}},
        {"model": "c", "nodes": 1234, "share": 1e-5, "speed": 12345.6, "ratio": None},
    ]
    assert results.markdown(rows).splitlines() == [
        "| model | ratio | fallen back | nodes | share | speed |",
        "|---|---|---|---|---|---|",
        "| a\\|b | 2.00 [1.91, 2.12] | Shape: 3 | | | |",
        "| c | | | 1234 | 1.0e-05 | 12,346 |",
    ]


def test_goals_are_judged_by_what_was_found() -> None:
    tables = {
        "Scoring: x": [{"backend": "`fp16`", "× HF fp16, batch 64": [1.9, 1.8, 2.1]}],
        "1.1B parameters, batch 1": [
            {"model": "`int4-weight-only`", "× decode": [1.6, 1.5, 1.7]},
            {"model": "`fp16`", "not measured": "out of memory"},
        ],
        "Placement and CUDA graphs": [
            {"scheme": "`bf16`", "multiplications on the CPU, %": 1.5},
        ],
        "Scores against the CPU's": [
            {"scheme": "`fp16`", "largest difference, nats": 0.019, "changed decisions": 0}
        ],
    }
    found = {row["goal"]: row["met"] for row in results.goals(tables)}
    assert found == {
        "Scoring: x: fp16 at least 2 × HF fp16, batch 64": "no",
        "`int4-weight-only` decodes at least 1.5 × PyTorch bf16": "yes",
        "`bf16`: at most 1% of the multiplications on the CPU": "no",
        "fp16 within 0.02 nats of the CPU": "yes",
        "fp16 changes no decision of the CPU": "yes",
    }


def test_one_model_that_fails_does_not_hide_the_others() -> None:
    def refused() -> int:
        raise InputError("it is refused there.")

    made, failed = those_made({"a": lambda: 1, "b": refused, "c": lambda: int("x"), "d": int})
    assert made == {"a": 1, "d": 0}
    assert failed["b"] == "it is refused there."
    assert failed["c"].startswith("ValueError: invalid literal")


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    """Parts that fail in different ways, in place of the real ones."""
    script = tmp_path / "parts.py"
    script.write_text(
        "import json, sys, time\n"
        "name, out = sys.argv[sys.argv.index('--run') + 1], sys.argv[sys.argv.index('--out') + 1]\n"
        "with open(f'{out}/{name}.jsonl', 'w') as found:\n"
        "    found.write(json.dumps(['Table', {'part': name}]) + '\\n')\n"
        "if name == 'hangs': time.sleep(600)\n"
        "if name == 'fails': sys.exit('no such kernel')\n"
    )
    made = {name: Part(name, 2) for name in ("hangs", "fails", "works")}
    monkeypatch.setattr(on_a_gpu, "__file__", str(script))
    monkeypatch.setattr(on_a_gpu, "_EVERY", made)
    return made


def test_one_failure_does_not_hide_the_rest(parts: dict[str, Part], tmp_path: Path) -> None:
    setting = Setting("cpu", False, None, tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        went = on_a_gpu.run_parts(list(parts.values()), setting)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert {name: how["how"] for name, how in went.items()} == {
        "hangs": "ended at its limit of 2 s",
        "fails": "failed: no such kernel",
        "works": "complete",
    }
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["tables"] == {"Table": [{"part": name} for name in parts]}
    assert "| works |" in (tmp_path / "results.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.starter
def test_what_was_found_is_kept_when_it_is_killed(tmp_path: Path) -> None:
    command = [*_COMMAND, "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    written = tmp_path / "attention.jsonl"
    end = time.monotonic() + 120
    while not (written.exists() and written.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    running.terminate()
    assert running.wait(30) == 128 + signal.SIGTERM
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["tables"]["Attention kernels"]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.starter
def test_the_tiny_run_goes_through_every_part(tmp_path: Path) -> None:
    command = [*_COMMAND, "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(found["parts"]) == {
        *(part.name for part in PARTS if part.name not in ("large", "limits")),
        *("large_model", "large", "limits"),
    }
    assert {part["how"] for part in found["parts"].values()} == {"complete"}
    tables = found["tables"]
    assert {row["captured"] for row in tables["Placement and CUDA graphs"]} == {"yes"}
    assert {row["caches"] for row in tables["Placement and CUDA graphs"]} == {"fixed"}
    (recipe,) = tables["The recipe"]
    assert recipe["verdict"] == "INCONCLUSIVE"
    assert len(recipe["steps"]) > 4
    for row in tables["Scores against the CPU's"]:
        assert row["largest difference, nats"] < 1e-3
        assert row["changed decisions"] == 0
    for title, rows in tables.items():
        if title != "Attention kernels":  # of which a CPU has not all
            assert not [row for row in rows if "not measured" in row], title
    for title in ("Scoring: definitions", "tiny, batch 2", "tiny, again, batch 2"):
        assert any("fp16" in row.get("model", row.get("backend")) for row in tables[title])
    assert (tmp_path / "results.md").read_text(encoding="utf-8") in done.stdout
