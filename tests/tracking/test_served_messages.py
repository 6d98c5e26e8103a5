"""The registered model takes messages, in the template it was tested in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from engine_models import ModelDir, model_dir, tiny_source

from mlflow_degrade.core.prompting import Prompting
from mlflow_degrade.registry.registration import log_model

__all__ = ["model_dir", "tiny_source"]

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ASK = {"role": "user", "content": "The harbour"}
BRIEF = {"role": "system", "content": "Be brief."}
LONG = {"role": "system", "content": "Be long."}

Serve = Callable[..., Any]


@pytest.fixture
def served(store: str, model_dir: ModelDir, tmp_path: Path) -> Serve:
    """Log a copy of the tiny model with a template, and load it as a user does."""

    def serve(template: str | None = TEMPLATE, **asked: Any) -> Any:
        folder = Path(shutil.copytree(model_dir("fp32"), tmp_path / "model", dirs_exist_ok=True))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        with mlflow.start_run():
            info = log_model(folder, prompting=Prompting(**asked).facts("0" * 64))
        return mlflow.pyfunc.load_model(info.model_uri)

    assert store
    return serve


def _answers(model: Any, *rows: dict[str, Any]) -> list[Any]:
    found = model.predict(pd.DataFrame(list(rows)), params={"max_new_tokens": 6})
    return [
        row["text"] if row["log_likelihoods"] is None else [row["text"], *row["log_likelihoods"]]
        for row in found.to_dict("records")
    ]


def test_messages_are_a_prompt_in_the_template(served: Serve) -> None:
    model = served()
    choices = ["is quiet", "water"]
    assert _answers(model, {"messages": [ASK]}) == _answers(
        model, {"prompt": "<user>The harbour<assistant>"}
    )
    # Nothing is put between a template and a choice, as lm-eval does.
    (talk,) = _answers(model, {"messages": [ASK], "choices": choices})
    (plain,) = _answers(model, {"prompt": "<user>The harbour<assistant>", "choices": choices})
    (spaced,) = _answers(model, {"messages": [ASK], "choices": [f" {c}" for c in choices]})
    assert plain[1:] == spaced[1:] != talk[1:]


@pytest.mark.parametrize(
    ("asked", "given", "rendered"),
    [
        ({}, [ASK], [ASK]),
        ({"system_instruction": "Be brief."}, [ASK], [BRIEF, ASK]),
        ({"system_instruction": "Be brief."}, [LONG, ASK], [LONG, ASK]),
        ({"apply_chat_template": True}, [BRIEF, ASK], [BRIEF, ASK]),
    ],
    ids=["none", "recorded", "own", "given"],
)
def test_the_recorded_instruction_holds_unless_another_is_given(
    served: Serve,
    asked: dict[str, Any],
    given: list[dict[str, str]],
    rendered: list[dict[str, str]],
) -> None:
    model = served(**asked)
    seen = model.unwrap_python_model()._conversation(given)
    assert seen == "".join(f"<{m['role']}>{m['content']}" for m in rendered) + "<assistant>"


def test_a_template_without_system_role_is_served_as_it_was_tested(served: Serve) -> None:
    model = served(NO_SYSTEM + TEMPLATE, system_instruction="Be brief.").unwrap_python_model()
    assert model._conversation([ASK]) == "<user>The harbour<assistant>"
    with pytest.raises(ValueError, match="refuses the conversation: no system"):
        model._conversation([LONG, ASK])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASK], "prompt": "The"}, "row 0 has both a prompt and messages"),
        ({"choices": ["a"]}, "row 0 has neither a prompt nor messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role of a message"),
        ({"messages": [ASK, {"role": "assistant", "content": "a"}]}, "the assistant's"),
    ],
)
def test_rows_that_cannot_be_answered_are_refused(
    served: Serve, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        served().predict(pd.DataFrame([row]))


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"prompt": "The harbour"}, {"prompt": "The boat"}]},
        {"dataframe_split": {"columns": ["prompt"], "data": [["The harbour"], ["The boat"]]}},
        {"inputs": [{"prompt": "The harbour"}, {"prompt": "The boat"}]},
        {"inputs": {"prompt": ["The harbour", "The boat"]}},
        {"instances": [{"prompt": "The harbour"}, {"prompt": "The boat"}]},
        {"inputs": ["The harbour", "The boat"]},
    ],
    ids=["records", "split", "rows", "columns", "instances", "texts"],
)
def test_every_body_of_the_server_is_answered_alike(served: Serve, body: dict[str, Any]) -> None:
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    model = served()
    wanted = _answers(model, {"prompt": "The harbour"}, {"prompt": "The boat"})
    given = infer_and_parse_data(body, model.metadata.get_input_schema())
    if body.get("inputs") == ["The harbour", "The boat"]:  # which column is meant is not said
        with pytest.raises(ValueError, match=r"neither a prompt nor messages: send .*records"):
            model.predict(given)
        return
    found = model.predict(given, params={"max_new_tokens": 6})
    assert found["text"].tolist() == wanted


def test_a_model_without_template_says_so(served: Serve) -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        served(None).predict(pd.DataFrame([{"messages": [ASK]}]))


@pytest.mark.slow
def test_the_scoring_server_takes_messages(served: Serve) -> None:
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    client = TestClient(init(served(system_instruction="Be brief.")))

    def post(**body: Any) -> Any:
        return client.post(
            "/invocations",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )

    params = {"max_new_tokens": 6}
    records = post(dataframe_records=[{"messages": [ASK]}], params=params)
    assert records.status_code == 200, records.text
    (answer,) = records.json()["predictions"]
    text = "<system>Be brief.<user>The harbour<assistant>"
    (same,) = post(dataframe_records=[{"prompt": text}], params=params).json()["predictions"]
    assert answer["text"] == same["text"]
    assert post(dataframe_records=[{"messages": []}]).status_code == 400
    # As chat APIs are called.
    records = post(dataframe_records=[{"messages": [ASK]}]).json()["predictions"]
    assert post(messages=[ASK]).json() == records
    split = {"columns": ["messages"], "data": [[[ASK]]]}
    assert post(dataframe_split=split, params=params).json()["predictions"] == [answer]
