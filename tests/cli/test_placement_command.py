"""``mlflow-degrade placement`` on a tiny model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import onnxruntime
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine_models import ModelDir, model_dir, tiny_source

from mlflow_degrade.cli.node_assignment import placement

__all__ = ["model_dir", "tiny_source"]

Call = Callable[..., Any]

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def here(there: Path, model_dir: ModelDir) -> Path:
    """models/int8 in the working directory."""
    (there / "models").mkdir()
    (there / "models" / "int8").symlink_to(model_dir("int8-weight-only"))
    return there


@pytest.mark.usefixtures("here")
def test_standard_output_holds_the_json_and_nothing_else(call: Call) -> None:
    result = call("placement", "models/int8", "--device", "cpu", "--json", "-")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["providers"] == ["CPUExecutionProvider"]
    assert found["nodes"]["CPUExecutionProvider"]["MatMulNBits"] == 15
    assert (found["fallen_back"], found["copies"]) == ({}, {"to_device": 0, "to_host": 0})
    assert "Placement of models/int8" in result.err
    assert "0 memory copies" in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["models/int8", "--device", "cuda0"], "did you mean 'cuda'"),
        pytest.param(
            ["models/int8", "--device", "cuda"],
            "mlflow-degrade[gpu]",
            marks=pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA"),
        ),
        pytest.param(
            ["models/int8", "--device", "tensorrt"],
            "has no TensorrtExecutionProvider",
            marks=pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA"),
        ),
        (["./models/int9"], "did you mean models/int8"),
        (["models/int8", "--operators", "0"], "--operators"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_is_refused(args: list[str], message: str, call: Call) -> None:
    result = call("placement", *args)
    assert (result.code, result.out) == (3, "")
    assert message in result.err
    assert "Traceback" not in result.err


def examples() -> list[str]:
    """The commands that the help shows."""
    lines = placement.get_help(click.Context(placement, info_name="placement")).splitlines()
    return [line.strip() for line in lines if line.startswith("    mlflow-degrade")]


@pytest.mark.parametrize("example", examples())
@pytest.mark.usefixtures("here")
def test_the_examples_in_the_help_run(example: str, call: Call) -> None:
    result = call(*shlex.split(example)[1:])
    assert result.code == 0, result.err
    assert "on the CPU; 0 memory copies" in " ".join((result.out + result.err).split())


def test_the_help_shows_examples() -> None:
    assert len(examples()) >= 3
