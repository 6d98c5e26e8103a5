"""Log-likelihoods of answers: where they come from, that they last, and what is said of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.special import log_softmax, rel_entr, softmax

from mlflow_degrade import GatePolicy, PairedScores, SampleScores, decide, pair
from mlflow_degrade.cli import cli
from mlflow_degrade.decision.likelihoods import LikelihoodFindings, likelihood_changes
from mlflow_degrade.registry.register_on_pass import log_report
from mlflow_degrade.report import html, likelihoods, markdown
from mlflow_degrade.report.likelihoods import compare_likelihoods, likelihood_metrics
from mlflow_degrade.report.terminal import as_text, likelihood_view
from mlflow_degrade.samples.readers import read_samples
from mlflow_degrade.tracking.evaluations import asked_digests, load_samples, log_evaluation

COLUMNS = ("gold_loglikelihood", "gold_margin", "loglikelihoods")


def record(number: int, values: Sequence[float], target: Any, **scores: Any) -> dict[str, Any]:
    """A question as lm-eval logs it."""
    return {
        "doc_id": number,
        "doc": {"question": f"question {number}"},
        "target": target,
        "arguments": [[f"question {number}", f" choice {k}"] for k in range(len(values))],
        "resps": [[[value, False]] for value in values],
        "filtered_resps": [[value, False] for value in values],
        "filter": "none",
        "metrics": list(scores),
        **scores,
    }


def as_logged(one: dict[str, Any]) -> dict[str, Any]:
    """The same as lm-eval writes it to a file: responses and targets are texts."""
    texts = [[str(value), str(greedy)] for value, greedy in one["filtered_resps"]]
    named = {
        f"gen_args_{i}": {f"arg_{k}": text for k, text in enumerate(given)}
        for i, given in enumerate(one["arguments"])
    }
    return {**one, "filtered_resps": texts, "target": str(one["target"]), "arguments": named}


def log(folder: Path, records: Sequence[dict[str, Any]], task: str = "qa") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(one) + "\n" for one in records)
    (folder / f"samples_{task}_2026-01-01T00-00-00.000000.jsonl").write_text(lines)
    return folder


def questions(n: int, *, shift: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with two to four choices; `shift` moves the right one, the rest is `seed`'s."""
    base, noise = np.random.default_rng(1), np.random.default_rng(seed + 2)
    records = []
    for i in range(n):
        values = base.normal(-6, 2, 2 + i % 3) + (noise.normal(0, 0.3, 2 + i % 3) if seed else 0)
        gold = i % 2
        values[gold] += 1.0 + shift
        right = float(values.argmax() == gold)
        records.append(record(i, values.tolist(), gold, acc=right, acc_norm=right))
    return records


def paired(tmp_path: Path, shift: float = -0.5, n: int = 120) -> PairedScores:
    sides = (questions(n), questions(n, shift=shift, seed=1))
    return pair(*(read_samples(log(tmp_path / str(i), s)) for i, s in enumerate(sides)))


def compared(both: PairedScores) -> LikelihoodFindings:
    found = likelihood_changes(both, confidence=0.9)
    assert found is not None
    return found


def bare(scores: SampleScores) -> SampleScores:
    """The same table as an earlier version wrote it."""
    kept = [name for name in scores.table.column_names if name not in COLUMNS]
    return SampleScores(scores.table.select(kept))


# -- where they come from ----------------------------------------------------------------------


def test_a_log_gives_every_row_the_log_likelihoods(tmp_path: Path) -> None:
    records = [record(0, [-4.5, -2.0, -3.0], 2, acc=0.0, acc_norm=1.0)]
    for number, lines in enumerate((records, [as_logged(r) for r in records])):
        frame = read_samples(log(tmp_path / str(number), lines)).to_pandas()
        assert list(frame["metric"]) == ["acc", "acc_norm"]
        assert list(frame["gold_loglikelihood"]) == [-3.0, -3.0]
        assert list(frame["gold_margin"]) == [-1.0, -1.0]
        assert [list(values) for values in frame["loglikelihoods"]] == [[-4.5, -2.0, -3.0]] * 2


def test_the_right_choice_may_be_named_by_its_text(tmp_path: Path) -> None:
    frame = read_samples(log(tmp_path, [record(0, [-1.0, -2.0], "choice 0", acc=1.0)])).to_pandas()
    assert frame["gold_margin"][0] == 1.0


@pytest.mark.parametrize(
    ("target", "accuracy"),
    [(0, 0.0), ([0, 1], 1.0), (0, 0.37), (7, 0.0), (-1, 0.0), ("choice 9", 0.0)],
    ids=["score says otherwise", "several", "graded", "beyond", "not stated", "no choice"],
)
def test_a_target_that_is_not_the_one_right_choice_gives_no_margin(
    tmp_path: Path, target: Any, accuracy: float
) -> None:
    scores = read_samples(log(tmp_path, [record(0, [-1.0, -2.0], target, acc=accuracy)]))
    assert "gold_margin" not in scores.table.column_names
    assert scores.table["loglikelihoods"].to_pylist() == [[-1.0, -2.0]]


def test_mutual_information_logs_the_choices_twice(tmp_path: Path) -> None:
    one = record(0, [-1.0, -2.0, -9.0, -9.5], 0, acc=1.0, acc_mutual_info=0.0)
    scores = read_samples(log(tmp_path, [one]))
    assert scores.table["loglikelihoods"].to_pylist() == [[-1.0, -2.0]] * 2


def test_one_answer_has_a_log_likelihood_and_no_margin(tmp_path: Path) -> None:
    scores = read_samples(log(tmp_path, [record(0, [-7.5], "word", acc=0.0)]))
    assert scores.table["gold_loglikelihood"].to_pylist() == [-7.5]
    assert not {"gold_margin", "loglikelihoods"} & set(scores.table.column_names)


def test_texts_and_what_is_not_finite_have_none(tmp_path: Path) -> None:
    text = {**record(0, [-1.0], "word", acc=1.0), "filtered_resps": ["word"]}
    rolling = {**record(1, [-1.0], "word", acc=1.0), "filtered_resps": ["-50.2"]}
    broken = record(2, [-1.0, float("-inf")], 0, acc=1.0)
    scores = read_samples(log(tmp_path, [text, rolling, as_logged(broken)]))
    assert not set(COLUMNS) & set(scores.table.column_names)


# -- that they last ----------------------------------------------------------------------------


def test_they_survive_files_frames_and_stacking(tmp_path: Path) -> None:
    scores = read_samples(log(tmp_path, questions(12)))
    for other in (
        SampleScores.read_parquet(scores.write_parquet(tmp_path / "a.parquet")),
        SampleScores.from_pandas(scores.to_pandas()),
        scores.with_model("other"),
        scores.select(metrics=["acc", "acc_norm"]),
    ):
        for name in COLUMNS:
            assert other.table[name].equals(scores.table[name])
    text = record(0, [-1.0], "word", exact_match=1.0) | {"filtered_resps": ["word"]}
    stacked = SampleScores.concat([scores, read_samples(log(tmp_path / "b", [text], "text"))])
    for name in COLUMNS:
        assert stacked.table[name].null_count == 1
        assert stacked.table[name][: len(scores)].to_pylist() == scores.table[name].to_pylist()


def test_they_survive_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    scores = read_samples(log(tmp_path, questions(12)))
    with mlflow.start_run() as run:
        log_evaluation(scores, {"model": "a"})
    loaded = load_samples(mlflow.get_run(run.info.run_id))
    for name in COLUMNS:
        assert loaded.table[name].equals(scores.table[name])


def test_digests_and_decisions_do_not_know_them(tmp_path: Path) -> None:
    with_them = paired(tmp_path)
    without = pair(bare(with_them.baseline), bare(with_them.candidate))
    assert with_them.baseline.digest() == without.baseline.digest()
    assert decide(with_them, GatePolicy()).to_json() == decide(without, GatePolicy()).to_json()


def test_rows_that_say_more_are_of_the_same_questions() -> None:
    key = {"model": "a", "suite": "s"}
    assert asked_digests(key) == asked_digests({**key, "columns": 1})


def test_a_list_in_text_is_refused() -> None:
    frame = pd.DataFrame({"task": "qa", "doc_id": ["1"], "metric": "acc", "score": [1.0]})
    with pytest.raises(ValueError, match=r"column 'loglikelihoods' has type .*list<.*double>"):
        SampleScores.from_pandas(frame.assign(loglikelihoods="[-1.0]"))


# -- what is said of them ----------------------------------------------------------------------


def test_the_figures_are_those_of_their_formulas(tmp_path: Path) -> None:
    both = paired(tmp_path)
    found = compared(both).together
    left, right = (
        s.to_pandas().query("metric == 'acc'").sort_values("doc_id", key=lambda c: c.astype(int))
        for s in (both.baseline, both.candidate)
    )
    pairs = list(zip(left["loglikelihoods"], right["loglikelihoods"], strict=True))
    kl = np.mean([rel_entr(softmax(p), softmax(q)).sum() for p, q in pairs])
    also = np.mean([(softmax(p) * (log_softmax(p) - log_softmax(q))).sum() for p, q in pairs])
    assert kl == pytest.approx(also)
    gold = right["gold_loglikelihood"].to_numpy() - left["gold_loglikelihood"].to_numpy()
    margin = right["gold_margin"].to_numpy() - left["gold_margin"].to_numpy()
    assert found.kl_divergence is not None
    assert found.kl_divergence.value == pytest.approx(kl, rel=1e-12)
    assert found.same_answer == np.mean([np.argmax(p) == np.argmax(q) for p, q in pairs])
    assert found.margin is not None
    assert found.margin.value == pytest.approx(margin.mean())
    assert found.margin.low is not None
    half = 1.658 * margin.std(ddof=1) / np.sqrt(120)  # the t quantile of 119 degrees of freedom
    assert found.margin.low == pytest.approx(margin.mean() - half, abs=1e-4)
    ratio = found.perplexity_ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(np.exp(-gold.mean()))
    assert ratio.low is not None
    assert ratio.high is not None
    assert 1 < ratio.low < ratio.value < ratio.high


def test_a_model_against_itself_changed_nothing(tmp_path: Path) -> None:
    scores = read_samples(log(tmp_path, questions(30)))
    found = compared(pair(scores, scores.with_model("b"), allow=["same-model"]))
    assert found.together.kl_divergence is not None
    assert found.together.kl_divergence.value == 0.0
    assert found.together.same_answer == 1.0
    assert found.together.margin is not None
    assert (found.together.margin.value, found.together.margin.low) == (0.0, None)
    assert "moved on fewer than 15 of 30 samples" in likelihoods.summary(found)


def test_copies_of_a_question_are_one_observation(tmp_path: Path) -> None:
    both = paired(tmp_path, n=60)

    def copied(scores: SampleScores) -> SampleScores:
        frame = scores.to_pandas().assign(cluster=scores.to_pandas()["doc_id"])
        again = frame.assign(doc_id=frame["doc_id"] + "b", doc_hash=frame["doc_hash"] + "b")
        return SampleScores.from_pandas(pd.concat([frame, again]), model=scores.model)

    once, twice = compared(both), compared(pair(copied(both.baseline), copied(both.candidate)))
    assert once.together.margin is not None
    assert twice.together.margin is not None
    assert twice.together.margin.n == 2 * once.together.margin.n
    assert twice.together.margin.low == pytest.approx(once.together.margin.low, rel=0.02)


def test_everybody_reads_it_and_no_verdict_knows(tmp_path: Path) -> None:
    both = paired(tmp_path)
    decision = decide(both, GatePolicy())
    found = compare_likelihoods(decision, both)
    assert found is not None
    assert not found.enters_verdict
    assert found.confidence == pytest.approx(0.9)
    shown = as_text(likelihood_view(found), width=400)
    pages = [m.report(decision, both, likelihood=found) for m in (markdown, html)]
    for text in (shown, *pages):
        for words in ("KL divergence", "erplexity ratio", "top-1 agreement", "does not enter"):
            assert words in text
    assert "an early sign of degradation, or of less confidence" in shown
    metrics = likelihood_metrics(found)
    assert metrics["degrade/gold_margin_change"] == metrics["degrade/qa/gold_margin_change"]
    assert "degrade/kl_divergence" in metrics
    assert likelihood_metrics(None) == {}
    assert LikelihoodFindings.model_validate_json(found.to_json()) == found


def test_a_gate_logs_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    both = paired(tmp_path)
    decision = decide(both, GatePolicy())
    found = compare_likelihoods(decision, both)
    assert found is not None
    with mlflow.start_run() as run:
        log_report(decision, both)
    logged = mlflow.get_run(run.info.run_id)
    text = mlflow.artifacts.load_text(f"{logged.info.artifact_uri}/likelihoods.json")
    assert text == found.to_json()
    expected = likelihood_metrics(found)
    assert len(expected) == 16
    assert {name: logged.data.metrics[name] for name in expected} == expected


def test_one_side_without_is_a_note_and_both_are_nothing(tmp_path: Path) -> None:
    both = paired(tmp_path)
    half = pair(both.baseline, bare(both.candidate))
    found = compare_likelihoods(decide(half, GatePolicy()), half)
    assert found is not None
    assert found.tasks == {}
    said = as_text(likelihood_view(found), width=400)
    assert "the candidate has none of qa" in said
    assert "lm-eval and --log_samples" in said
    assert likelihoods.TITLE not in said
    none = pair(bare(both.baseline), bare(both.candidate))
    assert likelihood_changes(none, confidence=0.9) is None


def test_an_infinite_log_likelihood_is_left_out(tmp_path: Path) -> None:
    both = paired(tmp_path)
    frame = both.candidate.to_pandas()
    frame["loglikelihoods"] = [
        [*values[:-1], -np.inf] if doc == "3" else values
        for doc, values in zip(frame["doc_id"], frame["loglikelihoods"], strict=True)
    ]
    frame.loc[frame["doc_id"] == "3", "gold_margin"] = -np.inf
    found = compared(pair(both.baseline, SampleScores.from_pandas(frame, model="b")))
    for mean in (found.together.kl_divergence, found.together.margin):
        assert mean is not None
        assert mean.n == 119


def test_compare_shows_it_beside_an_unchanged_decision(tmp_path: Path) -> None:
    left = log(tmp_path / "a", questions(120))
    right = log(tmp_path / "b", questions(120, shift=-0.5, seed=1))
    report, decision = tmp_path / "r.md", tmp_path / "d.json"
    arguments = [str(left), str(right), "--report", str(report), "--json", str(decision)]
    done = CliRunner().invoke(cli, ["compare", *arguments])
    assert likelihoods.TITLE in done.output
    assert likelihoods.TITLE in report.read_text(encoding="utf-8")
    assert "margin" not in json.loads(decision.read_text())["aggregate"]
    for folder in (left, right):
        (file,) = folder.iterdir()
        lines = io.StringIO(file.read_text())
        stripped = [{**json.loads(x), "filtered_resps": None, "resps": None} for x in lines]
        file.write_text("".join(json.dumps(one) + "\n" for one in stripped))
    done = CliRunner().invoke(cli, ["compare", *arguments])
    assert done.exit_code in (0, 1, 2)
    assert "og-likelihood" not in done.output
