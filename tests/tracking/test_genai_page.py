"""The page on MLflow's own evaluations does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlflow
import pytest
from gate_cases import log_constant
from mlflow import MlflowClient

PAGE = Path(__file__).parents[2] / "docs" / "genai.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mlflow_degrade.samples.readers.ReaderNote")
def test_the_page(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_degrade import Verdict, forest_plot

    assert store
    monkeypatch.setenv("MLFLOW_GENAI_EVAL_MAX_WORKERS", "2")
    client = MlflowClient()
    with mlflow.start_run():
        models = [client.get_logged_model(log_constant(tmp_path, name).removeprefix("models:/"))
                  for name in ("champion", "candidate")]  # fmt: skip
    names: dict[str, Any] = dict(zip(("champion", "candidate"), models, strict=True))
    names["forest_plot"] = forest_plot
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["done"].decision.verdict is Verdict.PASS
    version = client.get_model_version_by_alias("sums", "champion")
    assert version.source.endswith(models[1].model_id)
    assert list(names["frame"].index) == ["brief", "exact", "(together)"]
    assert names["figure"].axes
    assert names["decision"].verdict is Verdict.PASS, names["decision"].reasons
    assert names["brief_task"].judge.n == 50
