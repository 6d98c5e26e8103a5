"""Conversations: scored as lm-eval's Hugging Face backend does, and never taken for another's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from engine_models import ModelDir
from evaluations import evaluate_model
from local_tasks import choice_items, write_choice_task, write_task

from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.core.prompting import Prompting
from mlflow_degrade.engine.conversation import template_digest
from mlflow_degrade.evaluation.harness import HarnessSettings, run_lm_eval
from mlflow_degrade.evaluation.run import EvaluationSettings, evaluation_key
from mlflow_degrade.evaluation.suite import load_suite, prompting_notes

QUIET = EvaluationSettings(device="cpu", progress=False)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"

pytestmark = pytest.mark.usefixtures("own_cache")


def _with(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture
def chatty(model_dir: ModelDir, tmp_path: Path) -> Path:
    """A model directory whose tokenizer has a chat template."""
    return _with(Path(shutil.copytree(model_dir("fp32"), tmp_path / "chatty")), TEMPLATE)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A choice and a generation task, each with few-shot examples."""
    folder = tmp_path / "tasks"
    write_choice_task(
        folder, "choice", items=choice_items(8), fewshot_split="test", description="Choose.\n"
    )
    write_task(
        folder,
        "answer",
        [{"text": f"Count to {i}.", "answer": "the"} for i in range(5)],
        output_type="generate_until",
        fewshot_split="test",
        doc_to_text="text",
        doc_to_target="answer",
        generation_kwargs={"until": ["\n"], "max_new_tokens": 12},
        metric_list=[{"metric": "exact_match"}],
    )
    return folder


def _prompts(folder: Path, tasks: Path, task: str = "choice", **asked: Any) -> list[str]:
    found = evaluate_model(
        folder,
        [task],
        include_path=tasks,
        settings=QUIET,
        limit=2,
        num_fewshot=1,
        prompting=Prompting(**asked),
    )
    return list(found.samples.to_pandas()["prompt"])


def test_settings_show_in_the_prompts(chatty: Path, tasks: Path) -> None:
    turns = _prompts(chatty, tasks, apply_chat_template=True, system_instruction="Be brief.")
    assert all(p.startswith("<|endoftext|><system>\nBe brief.\n\nChoose.") for p in turns)
    assert all(p.count("<user>") == 2 and p.count("<assistant>") == 2 for p in turns)
    whole = _prompts(chatty, tasks, apply_chat_template=True, fewshot_as_multiturn=False)
    assert all(p.count("<user>") == 1 and p.count("<assistant>") == 1 for p in whole)
    plain = _prompts(chatty, tasks, system_instruction="Be brief.")
    assert all(p.startswith("Be brief.\n\nChoose.") and "<user>" not in p for p in plain)


def test_how_a_model_is_asked_is_in_key_and_scores(chatty: Path, tasks: Path) -> None:
    def key(folder: Path = chatty, names: tuple[str, ...] = ("answer",), **asked: Any) -> Any:
        suite = load_suite(names, include_path=tasks, limit=2, prompting=Prompting(**asked))
        return evaluation_key(folder, suite, "batched", QUIET)

    plain = key()
    assert plain["apply_chat_template"] is False
    others = [
        key(apply_chat_template=True),
        key(apply_chat_template=True, fewshot_as_multiturn=False),
        key(apply_chat_template=True, system_instruction="Be brief."),
        key(system_instruction="Be brief."),
        key(gen_kwargs="max_gen_toks=3"),
        key(gen_kwargs="temperature=1,seed=1"),
        key(gen_kwargs="temperature=1,seed=2"),
    ]
    assert all(a != b for i, a in enumerate([plain, *others]) for b in others[i:])
    assert key(apply_chat_template=False) == plain
    digest = template_digest(TEMPLATE)
    assert others[0]["chat_template_sha"] == digest
    _with(chatty, TEMPLATE + "{# another #}")
    assert key(apply_chat_template=True)["chat_template_sha"] != digest
    assert "date" not in others[0]
    _with(chatty, "{{ strftime_now('%d') }}" + TEMPLATE)
    assert "date" in key(apply_chat_template=True), "tomorrow the prompts are others"


def test_scores_say_how_the_model_was_asked(chatty: Path, tasks: Path) -> None:
    asked = Prompting(apply_chat_template=True, gen_kwargs="max_new_tokens=3")
    found = evaluate_model(
        chatty, ["answer"], include_path=tasks, settings=QUIET, limit=2, prompting=asked
    )
    assert found.samples.prompting == {
        "apply_chat_template": True,
        "chat_template_sha": template_digest(TEMPLATE),
        "system_instruction": None,
        "fewshot_as_multiturn": True,
        "gen_kwargs": {"max_gen_toks": 3},
    }
    again = evaluate_model(
        chatty, ["answer"], include_path=tasks, settings=QUIET, limit=2, prompting=asked
    )
    assert again.tasks["answer"]["reused"]
    plain = evaluate_model(chatty, ["answer"], include_path=tasks, settings=QUIET, limit=2)
    assert not plain.tasks["answer"]["reused"]


def test_a_model_without_template_and_unknown_names_are_refused(
    model_dir: ModelDir, chatty: Path, tasks: Path
) -> None:
    with pytest.raises(InputError, match="has no chat template: leave apply_chat_template out"):
        _prompts(model_dir("fp32"), tasks, apply_chat_template=True)
    with pytest.raises(UnknownNameError, match="'rag'"):
        _prompts(chatty, tasks, apply_chat_template="rag")


def test_a_template_that_nobody_asked_for_is_noted(
    model_dir: ModelDir, chatty: Path, tasks: Path
) -> None:
    def notes(folder: Path, *names: str, **asked: Any) -> list[str]:
        suite = load_suite(names or ["answer"], include_path=tasks, prompting=Prompting(**asked))
        return prompting_notes({"baseline": folder}, suite)

    (note,) = notes(chatty)
    assert note == "note: baseline has a chat template; apply_chat_template=true uses it"
    assert notes(chatty, apply_chat_template=True) == []
    assert notes(chatty, apply_chat_template=False) == []
    assert notes(model_dir("fp32")) == []
    (useless,) = notes(model_dir("fp32"), "choice", gen_kwargs="max_gen_toks=3")
    assert "no task generates text" in useless


def test_a_template_without_system_role_is_asked_without(
    chatty: Path, tasks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _with(chatty, NO_SYSTEM + TEMPLATE)
    prompts = _prompts(chatty, tasks, apply_chat_template=True, system_instruction="Be brief.")
    assert all("Be brief." not in prompt and "<user>" in prompt for prompt in prompts)
    (record,) = [r for r in caplog.records if "system" in r.getMessage()]
    assert "Asked without its system message" in record.getMessage()


def test_named_templates_are_rendered(chatty: Path, tasks: Path) -> None:
    more = chatty / "additional_chat_templates"
    more.mkdir()
    (more / "short.jinja").write_text("SHORT{{ messages[-1]['content'] }}")
    assert all(
        prompt.startswith("SHORT")
        for prompt in _prompts(chatty, tasks, apply_chat_template="short")
    )
    assert "<user>" in _prompts(chatty, tasks, apply_chat_template="default")[0]


def test_sampled_texts_come_from_their_seed(chatty: Path, tasks: Path) -> None:
    def texts(seed: int) -> list[str]:
        found = evaluate_model(
            chatty,
            ["answer"],
            include_path=tasks,
            settings=EvaluationSettings(device="cpu", progress=False, resume=False),
            prompting=Prompting(gen_kwargs={"temperature": 1.5, "seed": seed, "max_gen_toks": 6}),
        )
        return list(found.samples.to_pandas()["response"])

    assert texts(1) == texts(1) != texts(2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fewshot_as_multiturn": True}, "apply_chat_template=true"),
        ({"gen_kwargs": "num_beams=2"}, "not implemented"),
        ({"gen_kwargs": "temperature=1"}, "without a seed"),
        ({"model": "hf", "gen_kwargs": "temperature=1"}, "without a seed"),
        ({"model": "hf", "gen_kwargs": "temperature"}, "key=value"),
    ],
)
def test_lm_eval_is_not_asked_what_cannot_be_meant(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HarnessSettings(**{"model": "onnx", "model_args": "", "tasks": ("t",), **values})


def test_other_models_have_arguments_and_seeds_of_their_own() -> None:
    asked = HarnessSettings(
        "hf", "", ("t",), gen_kwargs="temperature=1,do_sample=true,num_beams=2", seed=1
    )
    assert asked.generation == {"temperature": 1, "do_sample": True, "num_beams": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        {"apply_chat_template": True},
        {"apply_chat_template": True, "fewshot_as_multiturn": False},
        {"apply_chat_template": True, "system_instruction": "Be brief."},
        {"system_instruction": "Be brief.", "gen_kwargs": "max_gen_toks=5"},
        {"apply_chat_template": "short", "gen_kwargs": '{"until": ["e", "a"]}'},
    ],
    ids=str,
)
def test_lm_evals_own_backend_finds_the_same(
    chatty: Path, tiny_source: Path, tasks: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    (chatty / "degrade.json").unlink()  # whose digest no longer fits
    for folder in (chatty, source):
        _with(folder, TEMPLATE)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "short.jinja").write_text(
            "{{ messages[-1]['content'] }}\n"
        )
    runs = []
    for model, arguments in (
        ("hf", f"pretrained={source},dtype=float32"),
        ("onnx", f"pretrained={chatty}"),
    ):
        run = run_lm_eval(
            HarnessSettings(
                model,
                arguments,
                ("choice", "answer"),
                include_path=str(tasks),
                num_fewshot=2,
                device="cpu",
                batch_size="1",
                seed=0,
                **asked,
            )
        )
        assert run is not None
        runs.append(run)
    theirs, ours = (run._samples for run in runs)
    for task in ("choice", "answer"):
        for hers, mine in zip(theirs[task], ours[task], strict=True):
            assert [a[:1] for a in hers["arguments"]] == [a[:1] for a in mine["arguments"]]
            if task == "answer":
                assert mine["resps"] == hers["resps"]
                continue
            for (his,), (my,) in zip(hers["resps"], mine["resps"], strict=True):
                assert my[0] == pytest.approx(his[0], abs=1e-4)
                assert my[1] == his[1]
    facts = [run.output.samples.prompting for run in runs]
    assert facts[0] == facts[1]
    assert (facts[0] or {})["chat_template_sha"] == (
        None
        if "apply_chat_template" not in asked
        else template_digest(
            TEMPLATE if asked["apply_chat_template"] is True else "{{ messages[-1]['content'] }}\n"
        )
    )
    # Task by task, through our own flow, the same numbers again.
    direct = evaluate_model(
        chatty,
        ["choice", "answer"],
        include_path=tasks,
        num_fewshot=2,
        settings=QUIET,
        prompting=Prompting(**asked),
    )
    means = direct.samples.means()
    for task, metric in (("choice", "acc"), ("choice", "acc_norm"), ("answer", "exact_match")):
        assert means[task, metric, "none"] == runs[0].output.samples.means()[task, metric, "none"]
