"""Logs in the layouts of real tools, where they lie beside this checkout: counts and refusals.

Counts are (only the baseline right, only the candidate right), or worse and better for graded
scores; they were computed with pandas from the files.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_degrade import Decision
from mlflow_degrade.cli import run

CASES = Path(__file__).parents[3] / "shared" / "cases" / "logs"
pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout"),
    pytest.mark.slow,
]

PASS, FAIL, INCONCLUSIVE, INVALID = range(4)

# Baseline, candidate and options; exit code; counts over all tasks; samples without a score.
VERDICTS = [
    ("csv-bool/a.csv csv-bool/b.csv", 2, (11, 4), 0),
    ("csv-candidate-unscored/a.csv csv-candidate-unscored/b.csv", 2, (0, 0), 300),
    ("csv-likert-judge/a.csv csv-likert-judge/b.csv --margin 0.5", 1, (15, 0), 0),
    ("csv-long-model/all.csv -b model=fp16 -c model=int4", 2, (11, 4), 0),
    ("csv-noid/a.csv csv-noid/b.csv", 2, (11, 4), 0),
    ("csv-pred-label/a.csv csv-pred-label/b.csv", 2, (11, 4), 0),
    ("csv-semicolon/a.csv csv-semicolon/b.csv", 2, (11, 4), 0),
    ("csv-tsv/a.tsv csv-tsv/b.tsv", 2, (11, 4), 0),
    ("csv-two-scores/a.csv csv-two-scores/b.csv -o score_column=f1", 2, (11, 4), 0),
    ("csv-wide/scores.csv -b score_column=fp16_correct -c score_column=int4_correct", 2,
     (11, 4), 0),
    ("csv-yesno/a.csv csv-yesno/b.csv", 2, (11, 4), 0),
    ("deepeval/a.json deepeval/b.json", 2, (11, 4), 0),
    ("evalplus/a_eval_results.json evalplus/b_eval_results.json", 2, (11, 4), 0),
    ("graded-identical/n12_a.csv graded-identical/n12_b.csv", 2, (0, 0), 0),
    ("graded-identical/n200_a.csv graded-identical/n200_b.csv", 2, (0, 0), 0),
    ("human-eval/a_samples.jsonl_results.jsonl human-eval/b_samples.jsonl_results.jsonl", 2,
     (11, 4), 0),
    ("inspect-chat-input/a inspect-chat-input/b", 2, (6, 2), 0),
    ("inspect-epochs3/a inspect-epochs3/b", 2, (6, 2), 0),
    ("inspect-json/a inspect-json/b", 2, (6, 2), 0),
    ("inspect-json-longargs/a inspect-json-longargs/b", 2, (6, 2), 0),
    ("inspect-string-input/a inspect-string-input/b", 2, (6, 2), 0),
    ("issue-dotnet-skills-952/a.csv issue-dotnet-skills-952/b.csv", 2, (0, 3), 0),
    ("issue-gptqmodel-1618/a issue-gptqmodel-1618/b", 1, (100, 0), 0),
    ("issue-llmcompressor-1600/a issue-llmcompressor-1600/b --allow unpaired", 2, (9, 4), 0),
    ("issue-llmcompressor-2922/a issue-llmcompressor-2922/b", 2, (28, 24), 0),
    ("issue-lmeval-1687/a issue-lmeval-1687/b", 1, (12, 4), 0),
    ("issue-lmeval-1687/a issue-lmeval-1687/b --filter flexible-extract", 0, (3, 9), 0),
    ("issue-lmeval-3831/a issue-lmeval-3831/b", 1, (22, 6), 0),
    ("issue-nemo-1155/a issue-nemo-1155/b", 2, (0, 0), 20),
    ("issue-nemo-1158/a issue-nemo-1158/b", 2, (0, 0), 20),
    ("issue-opencompass-1097/a issue-opencompass-1097/b", 2, (9, 5), 0),
    ("json-array/a.json json-array/b.json", 2, (11, 4), 0),
    ("json-nested-results/a.json json-nested-results/b.json", 2, (11, 4), 0),
    ("jsonl-token-f1/a300.jsonl jsonl-token-f1/b300.jsonl", 2, (38, 28), 0),
    ("judge-pairwise/battles.csv -b model=fp16 -c model=q4", 2, (45, 35), 0),
    # One document is there twice, with two ids: copies are one cluster.
    ("lm-dup-docs/a lm-dup-docs/b", 2, (6, 2), 0),
    ("lm-gz/a lm-gz/b", 2, (9, 4), 0),
    ("lm-humaneval-rep/a lm-humaneval-rep/b", 1, (19, 5), 0),
    ("lm-ifeval/a lm-ifeval/b", 2, (8, 3), 0),
    ("lm-mmlu-group/a lm-mmlu-group/b", 2, (8, 6), 0),
    ("lm-one-output-path -b model=m/a -c model=m/b", 2, (9, 9), 0),
    ("lm-outfile/a lm-outfile/b", 2, (6, 2), 0),
    ("lm-truthfulqa-mc2/a lm-truthfulqa-mc2/b", 1, (170, 130), 0),
    ("lm-two-models-one-dir/merged -b date=2025-03-01 -c date=2025-03-02", 2, (6, 2), 0),
    ("lm03-writeout/a lm03-writeout/b", 2, (6, 2), 0),
    ("lm040-array/a lm040-array/b", 2, (9, 4), 0),
    ("mlflow-eval-table/a_eval_results_table.json mlflow-eval-table/b_eval_results_table.json", 2,
     (11, 4), 0),
    ("mt-bench/gpt-4_single.jsonl -b model=base -c model=q4 --margin 0.5", 0, (40, 31), 0),
    ("nemo/a nemo/b", 2, (11, 4), 0),
    ("nemo-solve-timeout/a nemo-solve-timeout/b", 2, (0, 0), 20),
    ("parquet-index/a.parquet parquet-index/b.parquet", 2, (11, 4), 0),
    ("promptfoo/results.json -b model=ollama:fp16 -c model=ollama:q4", 2, (11, 4), 0),
    ("ragas/a.csv ragas/b.csv -o score_column=answer_relevancy", 2, (11, 4), 0),
]  # fmt: skip

REFUSALS = [
    ("csv-perplexity-direction/a.csv csv-perplexity-direction/b.csv", "--margin"),
    ("csv-prompt-differs/a.csv csv-prompt-differs/b.csv", "120 of 120 samples have different prom"),
    ("dir-of-arms", "mmlu_fp16.jsonl and mmlu_q4.jsonl both have samples"),
    ("issue-chat-template/a issue-chat-template/b", "500 of 500 samples have different prompts"),
    ("issue-llmcompressor-1600/a issue-llmcompressor-1600/b", "250 samples only in the baseline"),
    ("issue-lmeval-3055/a issue-lmeval-3055/b", "the same model"),
    ("jsonl-prompt-target-differ/a.jsonl jsonl-prompt-target-differ/b.jsonl", "different prompts"),
    ("lm-aggregates-only lm-aggregates-only", "no samples here"),
    ("lm-missing-metric/a lm-missing-metric/b", "4 records list the metric 'exact_match'"),
    ("lm-nan/a lm-nan/b", "1 of 80 scores are NaN"),
    ("lm-predict-only/a lm-predict-only/b", "predictions only, no scores"),
    ("lm-task-renamed/a lm-task-renamed/b", "the tasks differ"),
    ("lm-truncated/a lm-truncated/b", "may have been cut short"),
    ("lm-version/a lm-version/b", "task versions differ"),
    ("csv-wide/scores.csv", "score_column="),
    ("csv-long-model/all.csv", "-b model=… and -c model=…"),
    ("judge-pairwise/battles.csv", "-b model=… and -c model=…"),
    ("mt-bench/gpt-4_single.jsonl", "-b model=… and -c model=…"),
    ("promptfoo/results.json", "-b model=… and -c model=…"),
    ("ragas/a.csv ragas/b.csv", "score_column="),
]


@pytest.fixture(autouse=True)
def among_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)


@pytest.mark.parametrize(
    ("args", "code", "counts", "unscored"), VERDICTS, ids=lambda v: str(v)[:40]
)
def test_counts(
    args: str,
    code: int,
    counts: tuple[int, int],
    unscored: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = run(["compare", *args.split(), "--json", "-"])
    captured = capfd.readouterr()
    assert found == code, captured.err
    decision = Decision.from_json(captured.out)
    total = decision.aggregate
    assert (total.regressions, total.improvements) == counts
    assert sum(sum(task.unscored) for task in decision.tasks) == unscored


@pytest.mark.parametrize(("args", "message"), REFUSALS, ids=lambda v: v[:40])
def test_refusals(args: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *args.split()]) == INVALID
    assert message in capfd.readouterr().err


def test_a_worse_perplexity_never_passes(capfd: pytest.CaptureFixture[str]) -> None:
    sides = [f"csv-perplexity-direction/{side}.csv" for side in "ab"]
    for margin in ("0.1", "1", "5"):
        assert run(["compare", *sides, "--margin", margin, "--json", "-"]) == FAIL
        means = json.loads(capfd.readouterr().out)["tasks"][0]
        assert (round(means["baseline"], 2), round(means["candidate"], 2)) == (14.79, 15.23)


def test_no_folder_ends_in_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    for case in sorted(CASES.iterdir()):
        names = sorted(entry.name for entry in case.iterdir())
        for args in ([case.name], *([f"{case.name}/{name}"] for name in names)):
            assert run(["compare", *args]) == INVALID, args
            assert "Traceback" not in capfd.readouterr().err
