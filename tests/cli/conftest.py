"""A working directory with logs of a baseline, its rerun and a worse candidate, and a runner."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade.cli import run


@dataclass(frozen=True)
class Result:
    """What a command wrote and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], there: Path) -> Callable[..., Result]:
    """Run the command line as its entry point does, in this process, among the logs."""
    assert Path.cwd() == there

    def invoke(*args: str) -> Result:
        capfd.readouterr()
        code = run([str(arg) for arg in args])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return invoke


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32, its rerun, a candidate as good, and one that is bad at numbers, in several formats."""
    folder = tmp_path_factory.mktemp("logs")
    random = np.random.default_rng(20)
    frame = pd.DataFrame(
        {
            "task": np.repeat(["arc", "gsm8k", "numbers"], [1172, 1319, 800]),
            "prompt_id": [*range(1172), *range(1319), *range(800)],
        }
    )
    n = len(frame)
    frame["score"] = (random.random(n) < 0.7).astype(int)
    frame["length"] = random.integers(20, 400, n)
    frame["topic"] = np.where(np.arange(n) % 2, "algebra", "geometry")
    # As many items change for the better as for the worse.
    right, wrong = (np.flatnonzero(frame["score"] == s) for s in (1, 0))
    changed = np.concatenate([random.choice(right, 25, False), random.choice(wrong, 25, False)])
    int8 = frame.copy()
    int8.loc[changed, "score"] = 1 - int8.loc[changed, "score"]
    int4 = int8.copy()
    int4.loc[(int4["task"] == "numbers") & (random.random(n) < 0.15), "score"] = 0
    for name, table in (("fp32", frame), ("fp32_again", int8), ("int8", int8), ("int4", int4)):
        table.to_csv(folder / f"{name}.csv", index=False)
        table.to_parquet(folder / f"{name}.parquet", index=False)
        for task, rows in table.groupby("task"):
            (folder / "results" / name).mkdir(parents=True, exist_ok=True)
            rows[["prompt_id", "score"]].to_csv(folder / "results" / name / f"{task}.csv")
        lines = (
            json.dumps({"example_id": f"{r.task}-{r.prompt_id}", "score": r.score})
            for r in table.itertuples()
        )
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    # Both sides in one table: a column each, and rows of either.
    keys = ["task", "prompt_id", "score"]
    wide = frame[keys].rename(columns={"score": "fp32"}).assign(int8=int8["score"])
    wide.to_csv(folder / "scores.csv", index=False)
    sides = (frame[keys].assign(model="fp32"), int8[keys].assign(model="int8"))
    pd.concat(sides).to_csv(folder / "all.csv", index=False)
    (folder / "policy.yaml").write_text("margin_pp: 1.5\ntasks:\n  gsm8k: {tier: advisory}\n")
    again = ["noise", str(folder / "fp32.csv"), str(folder / "fp32_again.csv")]
    assert run([*again, "--json", str(folder / "noise.json")]) in (0, 1, 2)
    return folder


@pytest.fixture
def there(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The logs as working directory; files written are gone after the test."""
    for item in logs.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    return tmp_path
