"""Options about how a model is asked: what is wrong in them is said before anything is loaded."""

from __future__ import annotations

from typing import Any

import click
import pytest

from mlflow_degrade.cli import run
from mlflow_degrade.cli.options import options_of
from mlflow_degrade.core.prompting import Prompting

EVALUATE = ["evaluate", "--model", "onnx", "--model-args", "pretrained=absent", "--tasks", "t"]
GATE = ["gate", "--candidate", "runs:/a", "--baseline", "runs:/b"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--apply-chat-template"], {"apply_chat_template": True}),
        (["--apply-chat-template", "rag"], {"apply_chat_template": "rag"}),
        (["--apply-chat-template", "false"], {"apply_chat_template": False}),
        (
            ["--apply-chat-template", "--fewshot-as-multiturn", "false", "--gen-kwargs", "top_k=3"],
            {
                "apply_chat_template": True,
                "fewshot_as_multiturn": False,
                "gen_kwargs": {"top_k": 3},
            },
        ),
        (["--system-instruction", "Be brief."], {"system_instruction": "Be brief."}),
    ],
    ids=str,
)
def test_options_mean_what_parameters_mean(arguments: list[str], expected: dict[str, Any]) -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @options_of(Prompting)
    def command(**given: Any) -> None:
        seen.update(given)

    command.main(arguments, standalone_mode=False)
    assert Prompting.read(seen).stated() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*EVALUATE, "--fewshot-as-multiturn"], "only with apply_chat_template=true"),
        ([*EVALUATE, "--gen-kwargs", "num_beams=2"], "'num_beams' is not implemented"),
        ([*EVALUATE, "--apply-chat-template", "--gen-kwargs", "temperature=1"], "without a seed"),
        ([*GATE, "--apply-chat-template"], "name the tasks as well"),
        ([*GATE, "--tasks", "t", "--fewshot-as-multiturn"], "only with apply_chat_template=true"),
        ([*GATE, "--tasks", "t", "--gen-kwargs", "top_p=7"], "top_p = 7 must be"),
    ],
)
def test_what_cannot_be_meant_is_one_message(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 3
    error = capfd.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
