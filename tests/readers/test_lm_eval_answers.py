"""Which choice a metric takes for the answer, against the formulas of lm-eval's process_results."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_degrade.evaluation.lm_eval_task import sample_records
from mlflow_degrade.samples.readers.lm_eval import choices_of, chosen

# lm-eval 0.4.13, ConfigurableTask.process_results for multiple_choice.
RULES = {
    "acc": lambda lls, _, choices: np.argmax(lls[: len(choices)]),
    "acc_norm": lambda lls, _, choices: np.argmax(
        lls[: len(choices)] / np.array([float(len(c)) for c in choices])
    ),
    "acc_bytes": lambda lls, _, choices: np.argmax(
        lls[: len(choices)] / np.array([float(len(c.encode("utf-8"))) for c in choices])
    ),
    "acc_mutual_info": lambda lls, without, choices: np.argmax(lls[: len(choices)] - without),
}


@pytest.mark.parametrize("metric", RULES)
def test_rules(metric: str) -> None:
    rng = np.random.default_rng(0)
    choices = ["no", "perhaps", "ценю", "a much longer answer"]
    picked = set()
    for _ in range(200):
        lls, without = rng.normal(-10, 4, 4), rng.normal(-10, 4, 4)
        expected = choices[int(RULES[metric](lls, without, choices))]
        assert chosen(metric, [*lls, *without], choices) == expected
        picked.add(expected)
    assert picked == set(choices)


def test_a_choice_in_the_context() -> None:
    requests = [
        ["The trophy is big, so the trophy", " did not fit"],
        ["… the case", " did not fit"],
    ]
    assert choices_of(requests, mutual_information=False) == [
        "The trophy is big, so the trophy", "… the case",
    ]  # fmt: skip


def test_one_sample_has_an_answer_per_metric() -> None:
    sample = {
        "doc_id": 3, "doc": {}, "doc_hash": "d", "target_hash": "t", "filter": "none",
        "target": 1, "metrics": ["acc", "acc_norm"], "acc": 0.0, "acc_norm": 1.0,
        "arguments": [("Q", " no"), ("Q", " certainly")],
        "filtered_resps": [(-3.0, False), (-4.0, False)],
    }  # fmt: skip
    rows = list(sample_records("qa", "multiple_choice", [sample], {}, [1]))
    answers = {row["metric"]: (row["score"], row["response"]) for row in rows}
    assert answers == {"acc": (0.0, "no"), "acc_norm": (1.0, "certainly")}
