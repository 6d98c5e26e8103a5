"""Evaluations: complete, resumable, reused, and alike for both models."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from engine_models import ModelDir
from evaluations import evaluate_model
from local_tasks import ALL, choice_items, write_choice_task

from mlflow_degrade.core.errors import ModelError
from mlflow_degrade.core.prompting import Prompting
from mlflow_degrade.evaluation import probes
from mlflow_degrade.evaluation.model_evaluation import Entry, model_digest
from mlflow_degrade.evaluation.run import (
    Evaluation,
    EvaluationSettings,
    evaluate_pair,
    evaluation_key,
)
from mlflow_degrade.evaluation.suite import load_suite

pytestmark = pytest.mark.usefixtures("own_cache")

QUIET = EvaluationSettings(device="cpu", progress=False)


def _evaluate(folder: Path, tasks: Path, **options: Any) -> Evaluation:
    return evaluate_model(folder, ["tiny"], include_path=tasks, settings=QUIET, **options)


def test_samples_and_results_are_lm_evals(model_dir: ModelDir, task_folder: Path) -> None:
    found = _evaluate(model_dir("fp32"), task_folder)
    samples = found.samples
    assert samples.tasks == tuple(sorted(ALL))
    assert samples.model_digest == model_digest(model_dir("fp32"))
    assert samples.task_versions == dict.fromkeys(ALL, "1.0")
    assert found.path == "shared-prefix"
    assert found.probe.generation_changes == 0
    assert found.probe.invariant

    means = samples.means()
    results = found.results["tiny_choice"]
    assert means["tiny_choice", "acc", "none"] == pytest.approx(results["acc"])
    assert means["tiny_choice", "acc_norm", "none"] == pytest.approx(results["acc_norm"])
    assert means["tiny_answer", "exact_match", "none"] == pytest.approx(
        found.results["tiny_answer"]["exact_match"]
    )
    frame = samples.to_pandas()
    choice, cloze = (frame[frame["task"] == name] for name in ("tiny_choice", "tiny_cloze"))
    for row in choice[choice["metric"] == "acc"].itertuples():
        # The score is whether the right choice is the most likely one.
        assert row.score == float(row.gold_margin > 0)
        assert row.gold_loglikelihood in row.loglikelihoods
        assert len(row.loglikelihoods) in (2, 3, 4)
    assert choice.groupby("doc_id")["gold_margin"].nunique().eq(1).all()
    surprise = cloze[cloze["metric"] == "perplexity"]
    assert list(surprise["gold_loglikelihood"]) == list(-surprise["score"])
    others = frame[~frame["task"].isin(["tiny_choice", "tiny_cloze"])]
    assert others["gold_loglikelihood"].isna().all()
    perplexity = frame[frame["metric"] == "perplexity"]
    assert not perplexity["higher_is_better"].any()
    assert (perplexity["score"] > 0).all()

    choice = frame[(frame["task"] == "tiny_choice") & (frame["metric"] == "acc")]
    items = choice_items()
    assert len(choice) == len(items)
    for row, item in zip(choice.to_dict("records"), items, strict=True):
        assert row["target"] == item["choices"][item["answer"]]
        assert row["response"] in item["choices"]
        assert row["score"] == float(row["response"] == row["target"])
        assert row["prompt"] == item["question"]
        assert row["feature.category"] == item["category"]
        assert row["feature.prompt_tokens"] > 1
    timing = found.timing
    assert timing["documents"] == sum(run["documents"] for run in found.tasks.values())
    assert timing["documents_per_second"] > 0
    assert found.truncated == 0


def test_what_an_earlier_version_kept_is_not_served(model_dir: ModelDir, task_folder: Path) -> None:
    found = _evaluate(model_dir("fp32"), task_folder)
    suite = load_suite(["tiny"], include_path=task_folder)
    key = evaluation_key(model_dir("fp32"), suite, found.path, QUIET)
    assert key["columns"] == 1
    earlier = {name: value for name, value in key.items() if name != "columns"}
    assert Entry("evaluation", key).folder != Entry("evaluation", earlier).folder
    again = _evaluate(model_dir("fp32"), task_folder)
    assert all(run["reused"] for run in again.tasks.values())
    assert again.samples.table["loglikelihoods"].equals(found.samples.table["loglikelihoods"])


def test_finished_tasks_are_not_run_again(model_dir: ModelDir, task_folder: Path) -> None:
    first = _evaluate(model_dir("fp32"), task_folder, limit=4)
    again = _evaluate(model_dir("fp32"), task_folder, limit=4)
    assert not any(run["reused"] for run in first.tasks.values())
    assert all(run["reused"] for run in again.tasks.values())
    assert again.samples.digest() == first.samples.digest()
    assert again.results == first.results
    assert again.key == first.key
    # Another limit is another evaluation; a task finished under it is one too.
    assert not any(
        run["reused"]
        for run in _evaluate(model_dir("fp32"), task_folder, limit=5).tasks.values()
        if run["documents"] == 5
    )
    fresh = evaluate_model(
        model_dir("fp32"),
        load_suite(["tiny"], include_path=task_folder, limit=4),
        settings=EvaluationSettings(device="cpu", progress=False, resume=False),
    )
    assert not any(run["reused"] for run in fresh.tasks.values())
    assert fresh.samples.digest() == first.samples.digest()


def test_scores_of_another_processor_are_not_taken(
    model_dir: ModelDir, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same cache on a disk that two kinds of machines share."""
    first = _evaluate(model_dir("fp32"), task_folder, limit=4)
    origin = first.samples.origin
    assert origin is not None
    assert first.key["processor"] == origin.processor.model_dump(mode="json")
    assert origin.dependent_operations == ()
    other = origin.processor.model_copy(update={"instruction_sets": ("avx2",), "threads": 1})
    monkeypatch.setattr(probes, "current_processor", lambda _: other)
    there = _evaluate(model_dir("fp32"), task_folder, limit=4)
    assert there.key["processor"] != first.key["processor"]
    assert not any(run["reused"] for run in there.tasks.values())
    assert there.samples.origin == origin.model_copy(update={"processor": other})
    assert there.samples.digest() == first.samples.digest(), "it was this machine, after all"


def test_what_the_scores_depend_on_is_in_the_key(model_dir: ModelDir, task_folder: Path) -> None:
    suite = load_suite(["tiny"], include_path=task_folder, limit=4)
    other = load_suite(["tiny"], include_path=task_folder, limit=5)
    fp32, int8 = model_dir("fp32"), model_dir("int8-weight-only")
    key = evaluation_key(fp32, suite, "batched", QUIET)
    assert key == evaluation_key(fp32, suite, "batched", EvaluationSettings(device="cpu"))
    for changed in (
        evaluation_key(int8, suite, "batched", QUIET),
        evaluation_key(fp32, other, "batched", QUIET),
        evaluation_key(fp32, suite, "one-by-one", QUIET),
    ):
        assert changed != key


def test_models_that_are_compared_take_one_path(model_dir: ModelDir, task_folder: Path) -> None:
    suite = load_suite(["tiny_choice"], include_path=task_folder)
    good, bad = evaluate_pair(model_dir("fp32"), model_dir("int8-dynamic"), suite, QUIET)
    assert good.probe.invariant
    assert not bad.probe.invariant
    assert good.path == bad.path == "one-by-one"
    for arm in (good, bad):
        (plan,) = arm.tasks["tiny_choice"]["plans"]
        assert plan["limits"]["rows"] == 1
        assert plan["positions"] == plan["tokens"]
    (kernel,) = bad.facts()["integer_kernels"]
    assert kernel["operator"] == "MatMulInteger"
    assert kernel["exact"]
    assert good.facts()["integer_kernels"] == []
    together, _ = evaluate_pair(model_dir("fp32"), model_dir("int8-weight-only"), suite, QUIET)
    assert together.path == "batched"


def test_prompt_hashes_cover_the_choices(model_dir: ModelDir, tmp_path: Path) -> None:
    """Lm-eval's own hash covers the first context only."""

    def hashes(place: str, choice: str) -> list[str]:
        items = choice_items(3)
        items[0]["choices"][-1] = choice
        write_choice_task(tmp_path / place, "task", items=items)
        found = evaluate_model(
            model_dir("fp32"), ["task"], include_path=tmp_path / place, settings=QUIET
        )
        frame = found.samples.select(metrics=["acc"]).to_pandas()
        return list(frame["prompt_hash"])

    first, second = hashes("a", "boat"), hashes("b", "harbour")
    assert first[0] != second[0]
    assert first[1:] == second[1:]


def test_few_shot_and_chat_template(model_dir: ModelDir, tmp_path: Path) -> None:
    write_choice_task(tmp_path, "task", fewshot_split="test")
    folder = tmp_path / "chatty"
    shutil.copytree(model_dir("fp32"), folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    def prompts(**options: Any) -> list[str]:
        found = evaluate_model(
            folder, ["task"], include_path=tmp_path, settings=QUIET, limit=3, **options
        )
        return list(found.samples.to_pandas()["prompt"])

    plain = prompts()
    shots = prompts(num_fewshot=2)
    assert all(p.endswith(q) and p.count("\n\n") == 2 for p, q in zip(shots, plain, strict=True))
    assert shots == prompts(num_fewshot=2)
    asked = Prompting(apply_chat_template=True)
    chat = prompts(prompting=asked)
    assert chat == [f"<user> {q}<assistant>" for q in plain]
    turns = prompts(num_fewshot=1, prompting=asked)
    assert all(p.count("<user>") == 2 and p.count("<assistant>") == 2 for p in turns)


def test_a_missing_model_is_named(task_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        _evaluate(tmp_path / "absent", task_folder)


_KILLED = """
    import sys
    from mlflow_degrade.evaluation.run import EvaluationSettings, evaluate_model
    from mlflow_degrade.evaluation.suite import load_suite
    from mlflow_degrade.evaluation.lm_eval_task import Journal

    add = Journal.add_partial

    def add_slowly(self, *answer):
        add(self, *answer)
        if len(self) == 20:
            print("twenty", flush=True)
            sys.stdin.read()

    Journal.add_partial = add_slowly
    evaluate_model(
        sys.argv[1], load_suite(["tiny_choice"], include_path=sys.argv[2]),
        settings=EvaluationSettings(device="cpu", batch_size=4, progress=False),
    )
"""


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=lambda how: how.name,
)
def test_a_killed_evaluation_goes_on_where_it_stopped(
    model_dir: ModelDir, task_folder: Path, how: signal.Signals
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_KILLED)]
    with subprocess.Popen(
        [*command, str(model_dir("fp32")), str(task_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ.copy(),
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "twenty"
        process.send_signal(how)
        start = time.monotonic()
        assert process.wait(timeout=30) != 0
        assert time.monotonic() - start < 20
    found = evaluate_model(
        model_dir("fp32"), ["tiny_choice"], include_path=task_folder, settings=QUIET
    )
    run = found.tasks["tiny_choice"]
    assert run["resumed"] == 20
    assert run["requests"] > 20
    whole = evaluate_model(
        model_dir("fp32"),
        ["tiny_choice"],
        include_path=task_folder,
        settings=EvaluationSettings(device="cpu", progress=False, resume=False),
    )
    assert whole.tasks["tiny_choice"]["resumed"] == 0
    assert found.samples.digest() == whole.samples.digest()


def test_a_torn_last_line_of_the_journal_is_dropped(tmp_path: Path) -> None:
    from mlflow_degrade.evaluation.lm_eval_task import Journal

    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for i in range(3):
            journal.add_partial("loglikelihood", ("a", str(i)), (-float(i), False))
    path.write_bytes(path.read_bytes()[:-5])
    with Journal(path) as journal:
        assert len(journal) == 2
        assert journal.answer("loglikelihood", ("a", "1")) == (-1.0, False)
        assert journal.answer("loglikelihood", ("a", "2")) is None
        journal.add_partial("loglikelihood", ("a", "2"), (-2.0, False))
    with Journal(path) as journal:
        assert len(journal) == 3


def test_sampled_texts_are_not_taken_from_the_journal(tmp_path: Path) -> None:
    from mlflow_degrade.evaluation.lm_eval_task import Journal

    with Journal(tmp_path / "journal.jsonl") as journal:
        for settings in ({"do_sample": True}, {"do_sample": False}):
            journal.add_partial("generate_until", ("a", settings), "text")
        assert journal.answer("generate_until", ("a", {"do_sample": True})) is None
        assert journal.answer("generate_until", ("a", {"do_sample": False})) == "text"


def test_a_model_that_gives_nan_leaves_nothing_that_looks_finished(
    model_dir: ModelDir, task_folder: Path, own_cache: Path, tmp_path: Path
) -> None:
    import numpy as np
    from onnx import numpy_helper

    from mlflow_degrade.core.errors import NonFiniteLogitsError
    from mlflow_degrade.optimize.onnx_graph.files import load_graph, save_graph

    folder = tmp_path / "broken"
    shutil.copytree(model_dir("fp32"), folder)
    model = load_graph(folder)
    tensor = next(t for t in model.graph.initializer if "norm" in t.name and len(t.dims) == 1)
    spoiled = np.full(tuple(tensor.dims), np.nan, np.float32)
    tensor.CopyFrom(numpy_helper.from_array(spoiled, tensor.name))
    for name in ("model.onnx", "model.onnx.data", "degrade.json"):
        (folder / name).unlink()
    save_graph(model, folder)
    with pytest.raises(NonFiniteLogitsError):
        _evaluate(folder, task_folder)
    assert not list(own_cache.rglob("facts.json"))


def test_progress_is_one_bar_and_libraries_keep_quiet(
    model_dir: ModelDir, task_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate_model(
        model_dir("fp32"),
        ["tiny_choice"],
        include_path=task_folder,
        settings=EvaluationSettings(device="cpu"),
        label="the candidate",
    )
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert any("tiny_choice (the candidate)" in line for line in lines), err
    assert not any("it/s" in line or "WARNING" in line for line in lines), err
    assert len(lines) <= 3, err
