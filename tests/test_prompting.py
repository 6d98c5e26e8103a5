"""How models are asked: what may be said, and that two ways of asking are not paired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_degrade.core.errors import (
    InputError,
    PolicyError,
    PromptMismatchError,
    SampleSchemaError,
)
from mlflow_degrade.core.prompting import Prompting, differences, in_words, parse_gen_kwargs
from mlflow_degrade.decision.policy import GatePolicy
from mlflow_degrade.decision.verdict import decide
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers._lm_eval_files import prompting_of
from mlflow_degrade.samples.table import SampleScores

PLAIN = Prompting().facts(None)
CHAT = Prompting(apply_chat_template=True).facts("a" * 64)


def _scores(facts: dict[str, Any] | None, model: str = "m", prompt: str = "p") -> SampleScores:
    rows = {"task": "qa", "doc_id": range(40), "metric": "acc", "score": [1, 0] * 20}
    frame = pd.DataFrame({**rows, "prompt_hash": prompt})
    return SampleScores.from_pandas(frame, model=model, model_digest=model, prompting=facts)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("Yes", True), ("false", False), ("0", False), ("", None), ("rag", "rag")],
)
def test_a_template_is_a_flag_or_a_name(text: str, value: object) -> None:
    assert Prompting.read({"apply_chat_template": text}).apply_chat_template is value or value == (
        Prompting.read({"apply_chat_template": text}).apply_chat_template
    )


def test_what_is_not_given_is_left_open() -> None:
    empty = dict.fromkeys(Prompting.model_fields, "")
    assert Prompting.read(empty) == Prompting()
    assert Prompting.read({**empty, "limit": 3}).stated() == {}
    assert not Prompting().multiturn
    assert Prompting(apply_chat_template=True).multiturn
    assert not Prompting(apply_chat_template=True, fewshot_as_multiturn=False).multiturn


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("max_new_tokens=8", {"max_gen_toks": 8}),
        ("temperature=0", {"do_sample": False, "temperature": 0}),
        (
            "temperature=.7,seed=3,top_p=0.9",
            {"do_sample": True, "seed": 3, "temperature": 0.7, "top_p": 0.9},
        ),
        ('{"until": [",", "."]}', {"until": [",", "."]}),
        ({"until": "end"}, {"until": "end"}),
        ("until='7'", {"until": "7"}),
    ],
)
def test_generation_arguments_have_one_name_and_meaning(given: Any, expected: object) -> None:
    assert Prompting.read({"gen_kwargs": given}).gen_kwargs == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fewshot_as_multiturn": "true"}, "only with apply_chat_template=true"),
        ({"fewshot_as_multiturn": True, "apply_chat_template": "false"}, "apply_chat_template"),
        ({"fewshot_as_multiturn": "sometimes"}, "fewshot_as_multiturn = 'sometimes'"),
        ({"gen_kwargs": "temperature"}, "'temperature' is not of the form key=value"),
        ({"gen_kwargs": "until=,"}, "key=value; values with commas need a JSON object"),
        ({"gen_kwargs": '{"until": '}, "no JSON object"),
        ({"gen_kwargs": 7}, "key=value"),
        ({"gen_kwargs": "num_beams=4"}, "'num_beams' is not implemented; known are"),
        ({"gen_kwargs": "max_gen_toks=0"}, "max_gen_toks = 0 must be a whole number of at least 1"),
        (
            {"gen_kwargs": "max_gen_toks=8,max_tokens=9"},
            "max_tokens mean the same",
        ),
        ({"gen_kwargs": "top_p=1.5"}, "top_p = 1.5 must be a number above 0 and at most 1"),
        ({"gen_kwargs": "temperature=-1"}, "temperature = -1 must be a number of at least 0"),
        ({"gen_kwargs": "temperature=inf,seed=1"}, "temperature = inf must be"),
        ({"gen_kwargs": "top_k=true"}, "top_k = True must be a whole number"),
        ({"gen_kwargs": '{"until": []}'}, "until = [] must be a stop sequence"),
        ({"gen_kwargs": "do_sample=1"}, "do_sample = 1 must be true or false"),
        ({"gen_kwargs": "temperature=0.7"}, "without a seed, and no one could repeat the result"),
        ({"gen_kwargs": "do_sample=true,temperature=1"}, "add seed=0"),
        ({"gen_kwargs": "do_sample=true,seed=1"}, "needs a temperature above 0"),
        ({"gen_kwargs": "do_sample=false,temperature=1"}, "contradict each other"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        Prompting.read(values)
    assert message in str(refused.value)
    assert str(refused.value).startswith("parameter ")
    with pytest.raises(PolicyError) as refused_policy:
        GatePolicy.from_mapping(values)
    assert message in str(refused_policy.value)


@given(
    st.dictionaries(
        st.sampled_from(["max_gen_toks", "top_k", "seed"]), st.integers(1, 10**6), min_size=1
    )
)
def test_text_and_mapping_say_the_same(values: dict[str, int]) -> None:
    text = ",".join(f"{name}={value}" for name, value in values.items())
    assert parse_gen_kwargs(text) == values
    assert Prompting(gen_kwargs=text) == Prompting(gen_kwargs=values)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (CHAT, "apply_chat_template"),
        (Prompting(system_instruction="Be brief.").facts(None), "system_instruction"),
        (Prompting(gen_kwargs="max_gen_toks=3").facts(None), "gen_kwargs"),
    ],
)
def test_other_settings_are_refused_by_name(other: dict[str, Any], name: str) -> None:
    plain, changed = _scores(PLAIN), _scores(other, "n")
    for sides in ((plain, changed), (changed, plain)):
        with pytest.raises(PromptMismatchError, match=rf"asked in different ways \({name}"):
            pair(*sides)
        allowed = pair(*sides, allow=["prompts"])
        assert name in allowed.notes[0]


def test_the_template_counts_and_not_only_that_there_is_one() -> None:
    named = Prompting(apply_chat_template="default").facts("a" * 64)
    edited = Prompting(apply_chat_template=True).facts("b" * 64)
    assert pair(_scores(CHAT), _scores(named, "n")).n == 40
    with pytest.raises(PromptMismatchError, match=r"'aaaa.*'bbbb"):
        pair(_scores(CHAT), _scores(edited, "n"))


def test_turns_are_named_where_prompts_differ() -> None:
    """Without examples one message and turns are the same prompt, so the prompts decide."""
    message = Prompting(apply_chat_template=True, fewshot_as_multiturn=False).facts("a" * 64)
    assert pair(_scores(CHAT), _scores(message, "n")).n == 40
    with pytest.raises(PromptMismatchError, match="fewshot_as_multiturn is True and False"):
        pair(_scores(CHAT), _scores(message, "n", prompt="other"))


def test_what_is_not_known_of_one_side_is_no_difference() -> None:
    assert pair(_scores(None), _scores(CHAT, "n")).n == 40
    assert differences(None, CHAT) == {}
    assert differences({"gen_kwargs": None}, {"gen_kwargs": {}}) == {}


def test_scores_keep_how_they_were_made(tmp_path: Path) -> None:
    scores = _scores(CHAT)
    read = SampleScores.read_parquet(scores.write_parquet(tmp_path / "s.parquet"))
    assert read.prompting == scores.prompting == CHAT
    assert read.with_model("other").prompting == CHAT
    assert read.digest() == _scores(None).digest(), "the digest covers keys and scores"
    assert SampleScores.concat([scores, scores.select(tasks=["qa"])]).prompting == CHAT
    with pytest.raises(SampleSchemaError, match="asked in two ways"):
        SampleScores.concat([scores, _scores(PLAIN)])


def test_a_policy_says_how_models_are_asked(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("apply_chat_template: true\nsystem_instruction: Be brief.\n")
    policy = GatePolicy.from_yaml(file)
    asked = policy.facts("a" * 64)
    assert policy.pair(_scores(asked), _scores(asked, "n")).n == 40
    with pytest.raises(PromptMismatchError, match="baseline was not asked as the policy says: sys"):
        policy.pair(_scores(CHAT), _scores(CHAT, "n"))
    with pytest.raises(PromptMismatchError, match=r"candidate.*system_instruction is not recorded"):
        policy.pair(_scores(asked), _scores(None, "n"))
    plain = GatePolicy(apply_chat_template=False)
    with pytest.raises(PromptMismatchError, match="apply_chat_template is True instead of False"):
        plain.pair(_scores(CHAT), _scores(CHAT, "n"))
    assert plain.pair(_scores(PLAIN), _scores(PLAIN, "n")).n == 40


def test_a_policy_that_says_nothing_is_the_policy_it_was() -> None:
    assert not set(Prompting.model_fields) & set(GatePolicy().model_dump())
    chat = GatePolicy(apply_chat_template=True)
    assert chat.digest() != GatePolicy().digest() != GatePolicy(apply_chat_template=False).digest()
    assert GatePolicy.from_mapping(chat.model_dump(mode="json")) == chat


def test_parameters_and_policy_are_taken_together() -> None:
    policy = GatePolicy(apply_chat_template=True)
    given = Prompting(system_instruction="Be brief.").completed(policy.prompting)
    assert given == Prompting(apply_chat_template=True, system_instruction="Be brief.")
    with pytest.raises(InputError, match="apply_chat_template = False, and the policy asks for"):
        Prompting(apply_chat_template=False).completed(policy.prompting)


def test_the_evidence_says_how_models_were_asked() -> None:
    decision = decide(pair(_scores(CHAT), _scores(CHAT, "n")), GatePolicy())
    assert decision.baseline["prompting"] == "chat template (aaaaaaaaaaaa), few-shot as turns"
    plain = decide(pair(_scores(PLAIN), _scores(PLAIN, "n")), GatePolicy())
    assert "prompting" not in plain.baseline
    text = in_words(Prompting(system_instruction="Hi", gen_kwargs="max_gen_toks=3").facts(None))
    assert text == "system instruction 'Hi', gen_kwargs {\"max_gen_toks\": 3}"


def test_lm_evals_results_say_how_it_asked() -> None:
    assert prompting_of({}) == prompting_of({"config": {"limit": 3}}) == {}
    older = {"config": {"gen_kwargs": "temperature=0,max_new_tokens=5"}}
    plain = {"max_gen_toks": 5, "temperature": 0, "do_sample": False}
    assert prompting_of(older) == {"gen_kwargs": plain}
    about = {
        "config": {"gen_kwargs": {"best_of": 2}},
        "chat_template_sha": None,
        "system_instruction": "Be brief.",
        "fewshot_as_multiturn": True,
    }
    found = prompting_of(about)
    assert found == {
        **Prompting(system_instruction="Be brief.").facts(None),
        "gen_kwargs": {"best_of": 2},
    }
    found = prompting_of({**about, "chat_template_sha": "a" * 64, "config": {"gen_kwargs": None}})
    assert found == {**CHAT, "system_instruction": "Be brief."}
