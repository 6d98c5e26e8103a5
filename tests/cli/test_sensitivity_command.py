"""``mlflow-degrade sensitivity`` on a tiny model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine_models import ModelDir, model_dir, tiny_source

from mlflow_degrade.cli.sensitivity import sensitivity

__all__ = ["model_dir", "tiny_source"]

Call = Callable[..., Any]


@pytest.fixture
def here(there: Path, model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/fp32 and models/int8 in the working directory, and a cache that tests share."""
    (there / "models").mkdir()
    (there / "models" / "fp32").symlink_to(model_dir("fp32"))
    (there / "models" / "int8").symlink_to(model_dir("int8-weight-only"))
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(model_dir("fp32").parents[1]))
    return there


def test_standard_output_holds_the_json_and_nothing_else(here: Path, call: Call) -> None:
    (here / "texts.txt").write_text("The harbour is quiet.\n\nSeven plus five is twelve.\n")
    result = call("sensitivity", "models/fp32", "--prompts", "texts.txt", "--json", "-")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["scheme"], found["texts"], len(found["layers"])) == ("int8-dynamic", 2, 15)
    assert "mlp/down_proj" in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["models/fp32", "--scheme", "fp16"], "does not quantize layers one by one"),
        (["models/fp32", "--scheme", "int8-dynamo"], "did you mean 'int8-dynamic'"),
        (["models/fp32", "--plot", "x.txt"], "must end in .png"),
        (["./models/fp33"], "did you mean models/fp32"),
        (["models/int8"], "already 'int8-weight-only'"),
        (["models/fp32", "--top", "0"], "--top"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_is_refused(args: list[str], message: str, call: Call) -> None:
    result = call("sensitivity", *args)
    assert (result.code, result.out) == (3, "")
    assert message in result.err
    assert "Traceback" not in result.err


def examples() -> list[str]:
    """The commands that the help shows."""
    lines = sensitivity.get_help(click.Context(sensitivity, info_name="sensitivity")).splitlines()
    return [line.strip() for line in lines if line.startswith("    mlflow-degrade")]


@pytest.mark.parametrize("example", examples())
def test_the_examples_in_the_help_run(example: str, here: Path, call: Call) -> None:
    result = call(*shlex.split(example)[1:])
    assert result.code == 0, result.err
    assert "kind of layer" in result.out
    for name in ("layers.png", "kinds.json"):
        assert (name in example) == (here / name).exists()


def test_the_help_shows_examples() -> None:
    assert len(examples()) >= 3
