"""The quantize recipe and the gate on a chat model: asked, recorded, reused and served alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from recipe_cases import invoke

from mlflow_degrade import (
    GatePolicy,
    QuantizeOptions,
    Verdict,
    quantize_and_gate,
    verify_version,
)
from mlflow_degrade.core.errors import InputError, PromptMismatchError
from mlflow_degrade.engine.conversation import template_digest
from mlflow_degrade.registry.promotion import promote
from mlflow_degrade.tracking.evaluations import load_facts, load_samples

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def chatty(workshop: Path) -> Path:
    """The tiny model with a chat template."""
    folder = Path(shutil.copytree(workshop / "model", workshop / "chatty"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def _options(workshop: Path, **changes: Any) -> QuantizeOptions:
    values: dict[str, Any] = {
        "model": str(workshop / "chatty"),
        "tasks": ("tiny_boats",),
        "include_path": workshop / "tasks",
        "limit": None,
        "policy": GatePolicy(margin_pp=8),
        "register_as": "chatty",
        "device": "cpu",
        "cost_seconds": 0.1,
        "apply_chat_template": True,
        "system_instruction": "Be brief.",
    }
    return QuantizeOptions(**(values | changes))


def _side(store: MlflowClient, run_id: str, side: str) -> Any:
    found = store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return next(run for run in found if run.data.tags["degrade.side"] == side)


@pytest.mark.slow
def test_a_chat_model_is_asked_recorded_and_served_in_its_template(
    store: MlflowClient, workshop: Path, chatty: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = quantize_and_gate(_options(workshop, model=str(chatty)))
    assert outcome.decision.verdict is Verdict.PASS, outcome.decision.reasons
    assert "has a chat template" not in capfd.readouterr().err
    params = store.get_run(outcome.run_id).data.params
    assert params["apply_chat_template"] == "True"
    assert params["system_instruction"] == "Be brief."
    digest = template_digest(TEMPLATE)
    facts = {
        "apply_chat_template": True,
        "chat_template_sha": digest,
        "system_instruction": "Be brief.",
        "fewshot_as_multiturn": True,
        "gen_kwargs": None,
    }
    for side in ("baseline", "candidate"):
        run = _side(store, outcome.run_id, side)
        samples = load_samples(run.info.run_id)
        assert samples.prompting == facts
        (prompt, *_) = samples.to_pandas()["prompt"]
        assert prompt.startswith("<system> Be brief.\n<user> 0. The")
        key = load_facts(run.info.run_id)["key"]
        assert key["chat_template_sha"] == digest
    asked = outcome.decision.candidate["prompting"]
    assert asked == f"chat template ({digest[:12]}), few-shot as turns, system instruction " + repr(
        "Be brief."
    )
    report = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/report.md")
    assert "Be brief." in report
    assert str(outcome.registered) == "models:/chatty/1"
    assert verify_version("chatty", "1").problems == ()

    model = mlflow.pyfunc.load_model(str(outcome.registered))
    given = pd.DataFrame({"messages": [[{"role": "user", "content": "The harbour"}]]})
    text = "<system> Be brief.\n<user> The harbour\n<assistant> "
    same = pd.DataFrame({"prompt": [text]})
    few = {"max_new_tokens": 4}
    assert model.predict(given, params=few).equals(model.predict(same, params=few))

    # A gate on the registered model asks in the same way; a policy may insist on it.
    with pytest.raises(PromptMismatchError, match="not asked as the policy says: system_instr"):
        promote(
            f"runs:/{outcome.run_id}",
            f"runs:/{_side(store, outcome.run_id, 'baseline').info.run_id}",
            GatePolicy(margin_pp=8, system_instruction="Be long."),
            register_as="none",
        )

    again = quantize_and_gate(_options(workshop))
    other = quantize_and_gate(_options(workshop, system_instruction="Be long."))
    plain = quantize_and_gate(_options(workshop, apply_chat_template=None, system_instruction=None))
    note = "note: baseline and candidate have a chat template; apply_chat_template=true uses it"
    assert note in " ".join(capfd.readouterr().err.split())
    reused = [
        "degrade.reused_from" in _side(store, each.run_id, "baseline").data.tags
        for each in (again, other, plain)
    ]
    assert reused == [True, False, False]
    asked_plainly = f"runs:/{_side(store, plain.run_id, 'baseline').info.run_id}"
    with pytest.raises(PromptMismatchError, match=r"asked in different ways \(apply_chat"):
        promote(f"runs:/{other.run_id}", asked_plainly, GatePolicy(margin_pp=8), register_as="none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "model"}, "has no chat template"),
        ({"apply_chat_template": "rag"}, "chat template of the tokenizer"),
        ({"policy": GatePolicy(apply_chat_template=False)}, "the policy asks for False"),
        ({"policy": GatePolicy(system_instruction="Be long.")}, "the policy asks for 'Be long.'"),
    ],
)
def test_what_cannot_be_asked_is_found_before_any_work(
    store: MlflowClient,
    workshop: Path,
    chatty: Path,
    changes: dict[str, Any],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert chatty.is_dir()
    if "model" in changes:
        changes = {**changes, "model": str(workshop / changes["model"])}
    with pytest.raises(InputError, match=message):
        quantize_and_gate(_options(workshop, **changes))
    assert "Resolve, export" not in capfd.readouterr().err
    assert not store.search_registered_models()


def test_the_gate_recipe_wants_tasks_with_its_options(store: MlflowClient) -> None:
    assert store
    for arguments, message in (
        (["--apply-chat-template", "true"], "name the tasks as well, or put it into the policy"),
        (["--fewshot-as-multiturn", "true", "--tasks", "t"], "only with apply_chat_template=true"),
        (["--gen-kwargs", json.dumps({"temperature": 1}), "--tasks", "t"], "add seed=0"),
    ):
        result = invoke("gate", "--candidate", "runs:/a", "--baseline", "runs:/b", *arguments)
        assert result.exit_code == 3
        said = " ".join(result.output.split())
        assert message in said
        assert "GatePolicy(" not in said  # the value is what was given, not all options
