"""The export recipe on tiny models: what is logged, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
from recipe_cases import invoke
from tiny_models import make_tiny_bert, make_tiny_bert_for
from transformers import BertForMaskedLM

from mlflow_degrade.optimize.pass_table import ExportPass
from mlflow_degrade.optimize.recipe import Recipe, load_recipe, preset_files
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.workflows.optimize import ExportOptions, export_model


def test_a_decoder_is_exported_logged_and_served(
    store: mlflow.MlflowClient, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = export_model(ExportOptions(model=str(workshop / "model"), device="cpu"))
    plain, fused = made.passes
    assert (plain.name, fused.name) == ("export", "graph fused")
    assert fused.nodes < plain.nodes / 2
    run = store.get_run(made.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["passes"] == "export, graph fused"
    assert run.data.tags["degrade.kind"] == "export"
    assert "| `graph fused` |" in run.data.tags["mlflow.note.content"]
    metrics = run.data.metrics
    assert metrics["graph/nodes"] == fused.nodes
    assert metrics["size/bytes"] == ModelDirectory.load(made.model_dir).size_bytes
    assert 0 < metrics["parity/max_abs_logit_difference"] < 1e-3
    assert metrics["parity/top1_agreement"] == 1
    history = store.get_metric_history(made.run_id, "graph/nodes")
    assert [(m.step, m.value) for m in history] == [(1, plain.nodes), (2, fused.nodes)]
    found = mlflow.artifacts.load_dict(f"runs:/{made.run_id}/passes.json")
    assert found["passes"] == [each.as_dict() for each in made.passes]
    logged = mlflow.artifacts.load_text(f"runs:/{made.run_id}/recipe/recipe.yaml")
    assert "level: fused" in logged
    served = mlflow.pyfunc.load_model(made.model_uri)
    answer = served.predict([{"prompt": "The harbour", "choices": ["boat", "car"]}])
    assert answer["text"][0] in ("boat", "car")
    assert list(store.search_registered_models()) == []
    shown = capsys.readouterr().out
    assert "mean KL" in shown
    assert made.model_uri in shown


def test_an_encoder_is_exported_by_a_preset(store: mlflow.MlflowClient, tmp_path: Path) -> None:
    model = make_tiny_bert(tmp_path / "model")
    arguments = ["--model", str(model), "--recipe", "basic", "--device", "cpu"]
    result = invoke("export", *arguments)
    assert result.exit_code == 0, result.output
    (run,) = store.search_runs(["0"])
    assert run.data.params["recipe"] == "basic"
    assert run.data.metrics["parity/mean_cosine"] == pytest.approx(1, abs=1e-6)
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/recipe/basic.yaml")
    assert text == preset_files()["basic"].read_text(encoding="utf-8")
    (output,) = run.outputs.model_outputs
    vector = mlflow.pyfunc.load_model(f"models:/{output.model_id}").predict(
        [{"prompt": "The harbour"}]
    )["embedding"][0]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_what_the_engine_does_not_run_is_compared_and_logged_as_files(
    store: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny_bert_for(BertForMaskedLM, tmp_path / "model")
    recipe = Recipe("masked", (ExportPass(task="fill-mask"),))
    made = export_model(ExportOptions(model=str(model), recipe=recipe, device="cpu"))
    assert made.model_uri == f"{store.get_run(made.run_id).info.artifact_uri}/model"
    files = {file.path for file in store.list_artifacts(made.run_id, "model")}
    assert {"model/model.onnx", "model/degrade.json", "model/tokenizer.json"} <= files
    assert store.get_run(made.run_id).data.metrics["parity/max_abs_difference"] < 1e-3
    assert "cannot be served" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "quantized.yaml"}, "recipe 'quantized' quantizes (int8-weight-only)"),
        ({"recipe": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
        ({"recipe": "wrong.yaml"}, "unknown graph optimization level 'fussed'"),
        ({"device": "tpu"}, "device = 'tpu'"),
        ({"model": "no/such/model"}, "no model at 'no/such/model'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input(store: mlflow.MlflowClient, changes: dict[str, str], message: str) -> None:
    head = "passes:\n- pass: export\n"
    Path("quantized.yaml").write_text(f"{head}- {{pass: quantize, scheme: int8-weight-only}}\n")
    Path("wrong.yaml").write_text(f"{head}- {{pass: graph, level: fussed}}\n")
    arguments = [part for name, value in changes.items() for part in (f"--{name}", value)]
    result = invoke("export", *arguments)
    assert result.exit_code == 3, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert {run.info.status for run in store.search_runs(["0"])} <= {"FAILED"}


def test_by_default_a_graph_is_fused() -> None:
    assert ExportOptions().recipe == load_recipe("fused")
