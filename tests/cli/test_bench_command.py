"""``mlflow-degrade bench`` on tiny models."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from encoder_models import TinyModel, tiny_classifier
from engine_models import ModelDir, model_dir, tiny_source
from mlflow_stores import use_empty_store

from mlflow_degrade.cli.bench import bench

__all__ = ["model_dir", "tiny_classifier", "tiny_source"]

Call = Callable[..., Any]

_SCHEMES = {"fp32": "fp32", "int8": "int8-weight-only", "int4": "int4-weight-only"}


@pytest.fixture(scope="module")
def models(model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/fp32, models/int8 and models/int4, with a context that takes 512 tokens."""
    folder = tmp_path_factory.mktemp("bench") / "models"
    for name, scheme in _SCHEMES.items():
        shutil.copytree(model_dir(scheme), folder / name)
        config = folder / name / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024})
        )
        # The manifest would say, rightly, that the directory was changed.
        (folder / name / "degrade.json").unlink()
    return folder


@pytest.fixture
def here(models: Path, there: Path) -> Path:
    """The models in the working directory, and an empty MLflow."""
    (there / "models").symlink_to(models)
    use_empty_store(there)
    return there


QUICK = ("--batch-sizes", "1", "--lengths", "8", "--new-tokens", "2", "--seconds", "0")


@pytest.mark.usefixtures("here")
def test_standard_output_holds_the_json_and_nothing_else(call: Call) -> None:
    result = call("bench", "models/fp32", "models/int8", *QUICK, "--device", "cpu", "--json", "-")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [model["label"] for model in found["models"]] == ["fp32", "int8"]
    for model in found["models"]:
        assert [case["phase"] for case in model["cases"]] == ["prefill", "decode"]
        assert len(model["cases"][1]["call_seconds"]) == 2 * found["rounds"]
    assert {speed["candidate"] for speed in found["speed_ratios"]} == {"int8"}
    assert found["roof"]["bytes_per_second"] > 0
    assert any("RAPL" in reason for reason in found["not_measured"]) or found["energy_counters"]
    assert "Prefill" in result.err


def test_logged_to_mlflow_and_drawn(here: Path, call: Call) -> None:
    from mlflow import MlflowClient

    result = call(
        "bench", "models/fp32", *QUICK, "--log", "--experiment", "cost", "--run-name", "mine",
        "--plot", "bench.svg",
    )  # fmt: skip
    assert result.code == 0, result.err
    client = MlflowClient()
    experiment = client.get_experiment_by_name("cost")
    assert experiment is not None
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(names) == ["fp32", "mine"]
    assert (here / "bench.svg").stat().st_size > 1000


def test_directories_with_a_manifest_are_called_what_they_are(
    model_dir: ModelDir, call: Call
) -> None:
    result = call("bench", model_dir("int8-weight-only"), *QUICK)
    assert "tiny-llama int8-weight-only" in result.out


@pytest.mark.usefixtures("here")
def test_classifiers_are_measured_and_not_beside_decoders(
    tiny_classifier: TinyModel, call: Call
) -> None:
    folders = [str(tiny_classifier.made(scheme)) for scheme in ("fp32", "int8-weight-only")]
    result = call("bench", *folders, *QUICK)
    assert result.code == 0, result.err
    assert "Encode: reading the texts" in result.out
    assert "Percentiles of 6 calls of encode." in result.out
    assert "not measured: decode" not in result.out
    # A directory of PyTorch's is refused before it is exported.
    refused = call("bench", "models/fp32", str(tiny_classifier.source))
    assert (refused.code, refused.out) == (3, "")
    assert "models/fp32 is a decoder" in refused.err
    assert "is a classifier" in refused.err


@pytest.mark.usefixtures("here")
def test_simulated_formats_are_refused(model_dir: ModelDir, call: Call) -> None:
    for references in (("simulated-int4", "int8-weight-only"), ("fp32", "simulated-int4")):
        result = call("bench", *(model_dir(scheme) for scheme in references), *QUICK)
        assert (result.code, result.out) == (3, "")
        assert "is simulated (simulated-int4)" in result.err
        assert "says nothing about the format" in result.err


@pytest.mark.usefixtures("here")
def test_default_lengths_are_cut_to_what_both_models_take(
    tiny_classifier: TinyModel, call: Call
) -> None:
    folders = [str(tiny_classifier.made(scheme)) for scheme in ("fp32", "int8-weight-only")]
    quick = [*QUICK[:2], *QUICK[4:]]
    assert "--lengths" not in quick
    result = call("bench", *folders, *quick, "--json", "-")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert {case["length"] for model in found["models"] for case in model["cases"]} == {64}
    for length in (128, 512):
        (said,) = (text for text in found["not_measured"] if text.startswith(f"{length} tokens: "))
        assert said.endswith("takes 64, so that 64 are the longest")
        assert f"not measured: {length} tokens" in " ".join(result.err.split())
    asked = call("bench", *folders, *quick, "--lengths", "128")
    assert asked.code == 3
    assert "use lengths up to 64" in asked.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["models/fp32", "models/fp32"], "are the same model directory"),
        (["models/fp32", "./models/../models/fp32"], "are the same model directory"),
        (["./models/fp33"], "did you mean models/fp32"),
        (["models/fp32", "--device", "tpu"], "unknown device 'tpu'"),
        (["models/fp32", "--lengths", "1009"], "use lengths up to 1008"),
        (["models/fp32", "--lengths", "8,x"], "--lengths '8,x' is not a list"),
        (["models/fp32", "--batch-sizes", "0"], "give whole numbers from 1"),
        (["models/fp32", "--new-tokens", "0"], "give whole numbers from 1"),
        (["models/fp32", "--seconds", "-1"], "seconds = -1"),
        (["models/fp32", "--plot", "x.txt"], "must end in .png"),
        (["models/fp32", "--run-name", "x"], "give --log too"),
        (["models"], "is not a model's own directory"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_is_refused(args: list[str], message: str, call: Call) -> None:
    result = call("bench", *args)
    assert (result.code, result.out) == (3, "")
    assert message in result.err
    assert "Traceback" not in result.err


def examples() -> list[str]:
    """The commands that the help shows."""
    lines = bench.get_help(click.Context(bench, info_name="bench")).splitlines()
    return [line.strip() for line in lines if line.startswith("    mlflow-degrade")]


def test_the_help_shows_examples() -> None:
    assert len(examples()) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("example", examples())
def test_the_examples_in_the_help_run(example: str, here: Path, call: Call) -> None:
    result = call(*shlex.split(example)[1:], "--seconds", "0")
    assert result.code == 0, result.err
    for name in ("bench.json", "bench.png"):
        assert (name in example) == (here / name).exists()
