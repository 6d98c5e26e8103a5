"""Encoders and classifiers through lm-eval: PyTorch's choices and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoder_models import (
    LABELS,
    TinyModel,
    tiny_classifier,
    tiny_encoder,
    torch_embeddings,
    torch_logits,
)
from evaluations import evaluate_model
from local_tasks import choice_items, write_choice_task
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.core.prompting import Prompting
from mlflow_degrade.evaluation.encoder_backend import NAME, OnnxEncoderLM
from mlflow_degrade.evaluation.harness import HarnessSettings, run_lm_eval
from mlflow_degrade.evaluation.run import EvaluationSettings, evaluate_pair
from mlflow_degrade.evaluation.suite import default_tasks, load_suite

__all__ = ["tiny_classifier", "tiny_encoder"]

QUIET = EvaluationSettings(device="cpu", progress=False)
LABEL_ITEMS = [
    {"question": f"{text} {i}", "choices": list(LABELS), "answer": i % len(LABELS)}
    for i, text in enumerate(SENTENCES * 2)
]


def test_an_encoder_chooses_what_pytorch_would(
    tiny_encoder: TinyModel, task_folder: Path, own_cache: Path
) -> None:
    assert own_cache
    found = evaluate_model(
        tiny_encoder.made("fp32"), ["tiny_choice"], include_path=task_folder, settings=QUIET
    )
    rows = found.samples.to_pandas()
    # Lengths of choices mean nothing to a cosine: acc_norm is left out.
    assert set(rows["metric"]) == {"acc"}
    assert set(found.results["tiny_choice"]) == {"acc"}
    items = choice_items()
    assert len(rows) == len(items)
    for row, item in zip(rows.to_dict("records"), items, strict=True):
        vectors = torch_embeddings(tiny_encoder.source, [item["question"], *item["choices"]])
        best = int((vectors[1:] @ vectors[0]).argmax())
        assert row["response"] == item["choices"][best]
        assert row["score"] == float(best == item["answer"])
        assert row["feature.prompt_tokens"] > 2
    assert found.path == "batched"
    assert found.probe.quantity == "similarities"
    (plan,) = found.tasks["tiny_choice"]["plans"]
    assert plan["truncated"] == 0
    again = evaluate_model(
        tiny_encoder.made("fp32"), ["tiny_choice"], include_path=task_folder, settings=QUIET
    )
    assert again.tasks["tiny_choice"]["reused"]
    assert again.samples.digest() == found.samples.digest()


def test_a_classifier_chooses_its_label(
    tiny_classifier: TinyModel, tmp_path: Path, own_cache: Path
) -> None:
    assert own_cache
    write_choice_task(tmp_path / "tasks", "labels", items=LABEL_ITEMS)
    found = evaluate_model(
        tiny_classifier.made("fp32"), ["labels"], include_path=tmp_path / "tasks", settings=QUIET
    )
    rows = found.samples.to_pandas()
    texts = [str(item["question"]) for item in LABEL_ITEMS]
    best = torch_logits(tiny_classifier.source, texts).argmax(axis=1)
    assert rows["response"].tolist() == [LABELS[i] for i in best]
    assert found.probe.quantity == "log-probabilities"
    write_choice_task(tmp_path / "tasks", "words")
    with pytest.raises(InputError, match="is not one of the labels"):
        evaluate_model(
            tiny_classifier.made("fp32"), ["words"], include_path=tmp_path / "tasks", settings=QUIET
        )


def test_a_pair_is_run_alike(tiny_encoder: TinyModel, task_folder: Path, own_cache: Path) -> None:
    assert own_cache
    suite = load_suite(["tiny_choice"], include_path=task_folder)
    first, second = evaluate_pair(
        tiny_encoder.made("fp32"), tiny_encoder.made("int8-dynamic"), suite, QUIET
    )
    assert first.path == second.path == "one-by-one"
    (plan,) = first.tasks["tiny_choice"]["plans"]
    assert plan["positions"] == plan["tokens"]
    together, _ = evaluate_pair(
        tiny_encoder.made("fp32"), tiny_encoder.made("int8-weight-only"), suite, QUIET
    )
    assert together.path == "batched"


@pytest.mark.parametrize("task", ["tiny_answer", "tiny_text", "tiny_cloze"])
def test_other_tasks_are_refused_before_the_model_runs(
    tiny_encoder: TinyModel, task_folder: Path, own_cache: Path, task: str
) -> None:
    assert own_cache
    folder = tiny_encoder.made("fp32")
    with pytest.raises(InputError, match=f"'{task}'.*multiple-choice tasks only"):
        evaluate_model(folder, [task], include_path=task_folder, settings=QUIET)
    asked = HarnessSettings("onnx", f"pretrained={folder}", (task,), str(task_folder))
    with pytest.raises(InputError, match=f"'{task}'.*multiple-choice tasks only"):
        run_lm_eval(asked)
    with pytest.raises(InputError, match="multiple-choice tasks only"):
        _simple_evaluate(folder, task_folder, task)


def _simple_evaluate(folder: Path, task_folder: Path, task: str) -> object:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model=NAME,
        model_args={"pretrained": str(folder), "device": "cpu"},
        tasks=[task],
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        bootstrap_iters=0,
    )


def test_the_evaluate_command_takes_names_and_picks_the_engine(
    tiny_encoder: TinyModel, task_folder: Path, own_cache: Path
) -> None:
    assert own_cache
    # Not exported yet: the command exports it into the cache.
    arguments = f"pretrained={tiny_encoder.source}"
    asked = HarnessSettings("onnx", arguments, ("tiny_choice",), str(task_folder), device="cpu")
    run = run_lm_eval(asked)
    assert run is not None
    rows = run.output.samples.to_pandas()
    assert set(rows["metric"]) == {"acc"}
    assert len(rows) == len(choice_items())
    direct = evaluate_model(
        tiny_encoder.made("fp32"), ["tiny_choice"], include_path=task_folder, settings=QUIET
    )
    assert sorted(rows["score"]) == sorted(direct.samples.to_pandas()["score"])


def test_the_backend_settles_its_path_and_has_no_chat(
    tiny_encoder: TinyModel, task_folder: Path
) -> None:
    model = OnnxEncoderLM(str(tiny_encoder.made("int8-dynamic")), device="cpu")
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (text, f" {word}"), i, ("task", n, 1))
        for n, text in enumerate(SENTENCES)
        for i, word in enumerate(("boat", "water"))
    ]
    assert len(model.loglikelihood(requests)) == len(requests)
    assert model.encoder.unpadded
    with pytest.raises(InputError, match="no chat template"):
        model.apply_chat_template([{"role": "user", "content": "Hello"}])
    with pytest.raises(InputError, match="no chat template"):
        evaluate_model(
            tiny_encoder.made("fp32"),
            ["tiny_choice"],
            include_path=task_folder,
            settings=QUIET,
            prompting=Prompting(apply_chat_template=True),
        )


def test_a_task_without_a_usable_metric_is_refused(
    tiny_encoder: TinyModel, tmp_path: Path, own_cache: Path
) -> None:
    assert own_cache
    write_choice_task(tmp_path / "tasks", "normed", metric_list=[{"metric": "acc_norm"}])
    with pytest.raises(InputError, match=r"'normed' has the metrics.*acc_norm"):
        evaluate_model(
            tiny_encoder.made("fp32"), ["normed"], include_path=tmp_path / "tasks", settings=QUIET
        )


def test_the_packaged_suite_fits_the_family(
    tiny_encoder: TinyModel, tiny_classifier: TinyModel
) -> None:
    assert default_tasks(tiny_encoder.source) == ("starter-encoder",)
    names = {task.name for task in load_suite(["starter-encoder"], limit=5).tasks}
    assert names == {"starter_definitions", "starter_geography", "starter_relations"}
    with pytest.raises(InputError, match="no packaged suite"):
        default_tasks(tiny_classifier.source)
