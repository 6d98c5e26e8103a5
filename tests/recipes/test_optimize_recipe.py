"""The optimize recipe on a tiny model, and recipes in place of schemes in the quantize recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from recipe_cases import invoke

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, quantize_and_gate
from mlflow_degrade.core.errors import InputError
from mlflow_degrade.engine.providers import CPU, CUDA
from mlflow_degrade.optimize.passes.calibration import CALIBRATION_PROMPTS
from mlflow_degrade.optimize.recipe import Recipe
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.workflows.optimize import OptimizeOptions, apply_passes, optimize_model

_RECIPES = Path(__file__).parents[2] / "recipes"
_BLOCKS = """\
passes:
  - pass: export
  - pass: graph
  - pass: quantize
    scheme: int4-weight-only
    block_size: 64
"""


def _recipe(*passes: dict[str, str]) -> Recipe:
    return Recipe.from_mapping({"passes": [{"pass": "export"}, *passes]}, "mine")


@pytest.mark.slow
def test_passes_cost_and_model_are_logged(
    store: mlflow.MlflowClient, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.of_scheme("int8-weight-only")
    made = optimize_model(
        OptimizeOptions(
            model=str(workshop / "model"), recipe=recipe, device="cpu", cost_seconds=0.2
        )
    )
    assert [each.name for each in made.passes] == ["export", "graph fused", "int8-weight-only"]
    assert [each.parity.as_dict()["mean_kl"] < 1e-6 for each in made.passes] == [True, True, False]
    run = store.get_run(made.run_id)
    assert run.data.tags["degrade.scheme"] == "int8-weight-only"
    metrics = run.data.metrics
    assert metrics["size/bytes"] == ModelDirectory.load(made.model_dir).size_bytes
    low, high = (metrics[f"speed_ratio/decode_ci_{end}"] for end in ("low", "high"))
    assert low <= metrics["speed_ratio/decode"] <= high
    assert metrics["relative/size"] < 0.6
    assert "throughput: decode" in run.data.tags["mlflow.note.content"]
    assert not [name for name in metrics if name.startswith("degrade/")]
    assert "degrade.verdict" not in run.data.tags
    assert list(store.search_registered_models()) == []
    shown = capsys.readouterr().out
    assert "Cost, side by side" in shown
    assert "nothing was judged" in shown
    where = Path(mlflow.artifacts.download_artifacts(made.model_uri))
    (graph,) = where.rglob("model.onnx")
    assert graph.read_bytes() == (made.model_dir / "model.onnx").read_bytes()


@pytest.mark.slow
def test_a_model_that_depends_on_its_batch_is_served_one_by_one(
    store: mlflow.MlflowClient, workshop: Path
) -> None:
    assert store
    recipe = Recipe.of_scheme("int8-dynamic")
    made = optimize_model(
        OptimizeOptions(model=str(workshop / "model"), recipe=recipe, device="cpu", cost_seconds=0)
    )
    served = mlflow.pyfunc.load_model(made.model_uri)
    assert served.model_config["one_by_one"] is True
    files = {item.path for item in store.list_artifacts(made.run_id)}
    assert {"passes.json", "recipe", "sensitivity.png"} <= files


@pytest.mark.slow
def test_what_changes_nothing_and_what_is_simulated_has_no_speed(
    store: mlflow.MlflowClient, workshop: Path
) -> None:
    for passes in ([], [{"pass": "quantize", "scheme": "simulated-int8-group32"}]):
        options = OptimizeOptions(
            model=str(workshop / "model"), recipe=_recipe(*passes), device="cpu", cost_seconds=0
        )
        made = optimize_model(options)
        metrics = store.get_run(made.run_id).data.metrics
        assert not [name for name in metrics if name.startswith(("speed_ratio/", "latency/"))]
        assert ("size/simulated_bytes" in metrics) == bool(passes)


def test_quantize_takes_a_recipe(store: mlflow.MlflowClient, workshop: Path) -> None:
    Path("prompts.txt").write_text("\n".join(t.replace("\n", " ") for t in CALIBRATION_PROMPTS[:9]))
    Path("mine.yaml").write_text(
        "passes:\n- pass: export\n- {pass: graph, level: basic}\n"
        "- {pass: quantize, scheme: int8-static, calibration: prompts.txt}\n"
    )
    outcome = quantize_and_gate(
        QuantizeOptions(
            model=str(workshop / "model"),
            recipe=Recipe.from_yaml("mine.yaml"),
            tasks=("tiny_boats",),
            include_path=workshop / "tasks",
            limit=12,
            policy=GatePolicy(margin_pp=5),
            device="cpu",
            cost_seconds=0,
        )
    )
    assert outcome.decision.verdict is not Verdict.PASS
    steps = ModelDirectory.load(outcome.model_dir).recipe
    assert [step["pass"] for step in steps] == ["export", "graph", "smoothing", "int8-static"]
    assert steps[1]["level"] == "basic"
    run = store.get_run(outcome.run_id)
    assert run.data.params["recipe"] == "mine"
    assert "scheme" not in run.data.params
    assert run.data.tags["degrade.scheme"] == "int8-static"
    files = {item.path for item in store.list_artifacts(outcome.run_id, "recipe")}
    assert files == {"recipe/mine.yaml", "recipe/prompts.txt"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "fp16", "recipe": "mine.yaml"}, "the scheme 'fp16' is given as well"),
        ({"recipe": "plain.yaml"}, "recipe 'plain' has no pass 'quantize'"),
        ({"recipe": "int4-weight-only-gtpq"}, "did you mean 'int4-weight-only-gptq'"),
        ({"recipe": "elsewhere/mine.yaml"}, "elsewhere/mine.yaml cannot be read"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_recipes_that_cannot_be_gated(
    store: mlflow.MlflowClient, changes: dict[str, str], message: str
) -> None:
    Path("mine.yaml").write_text(_BLOCKS)
    Path("plain.yaml").write_text("passes: [{pass: export}]")
    arguments = [part for name, value in changes.items() for part in (f"--{name}", value)]
    result = invoke("quantize", *arguments)
    assert result.exit_code == 3, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert {run.info.status for run in store.search_runs(["0"])} <= {"FAILED"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"force": "perhaps"}, "force = 'perhaps': give true or false"),
        ({"cost-seconds": "-1"}, "cost_seconds = -1"),
        ({"cost-seconds": "long"}, "cost_seconds = 'long': not a number"),
        ({"recipe": "mine.yaml", "model": "no/such/model"}, "no model at 'no/such/model'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input(store: mlflow.MlflowClient, changes: dict[str, str], message: str) -> None:
    assert store
    Path("mine.yaml").write_text(_BLOCKS)
    arguments = [part for name, value in changes.items() for part in (f"--{name}", value)]
    result = invoke("optimize", *arguments)
    assert result.exit_code == 3, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_what_is_refused_on_a_device_is_refused_before_any_work() -> None:
    recipe = Recipe.of_scheme("int8-dynamic")
    with pytest.raises(InputError, match="refused on CUDA"):
        apply_passes("no/such/model", recipe, providers=(CUDA, CPU))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_mlflow_run(store: mlflow.MlflowClient, workshop: Path) -> None:
    Path("mine").mkdir()
    Path("mine/blocks.yaml").write_text(_BLOCKS)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    given = {"model": workshop / "model", "recipe": "mine/blocks.yaml", "cost_seconds": 0}
    parameters = [part for key, value in given.items() for part in ("-P", f"{key}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(_RECIPES / "optimize"), *parameters],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "int4-weight-only-block64" in done.stdout
    (run,) = store.search_runs(["0"])
    assert run.data.params["recipe"] == "mine/blocks.yaml"
    assert run.info.status == "FINISHED"
