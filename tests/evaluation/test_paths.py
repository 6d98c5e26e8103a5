"""Compared models share prefixes only where that pays and changes no score of either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_models import ModelDir
from evaluations import evaluate_model
from local_tasks import write_choice_task

from mlflow_degrade.evaluation.model_evaluation import Arm
from mlflow_degrade.evaluation.run import EvaluationSettings, evaluate_pair, scoring_path
from mlflow_degrade.evaluation.scoring_path import choose
from mlflow_degrade.evaluation.suite import Suite, load_suite

pytestmark = pytest.mark.usefixtures("own_cache")

QUIET = EvaluationSettings(device="cpu", progress=False)


@pytest.fixture
def few_shot(tmp_path: Path) -> Suite:
    """Every prompt begins with the same examples."""
    write_choice_task(
        tmp_path, "tiny_shots", fewshot_split="test", fewshot_config={"sampler": "first_n"}
    )
    return load_suite(["tiny_shots"], include_path=tmp_path, num_fewshot=4)


def test_few_shot_prompts_share_their_examples(model_dir: ModelDir, few_shot: Suite) -> None:
    fp32, int8 = model_dir("fp32"), model_dir("int8-weight-only")
    baseline, candidate = evaluate_pair(fp32, int8, few_shot, QUIET)
    for found in (baseline, candidate):
        assert found.path == found.key["path"] == "shared-prefix"
        assert found.equivalence is not None
        assert found.equivalence.equivalent
        facts = found.facts()
        assert facts["equivalence"]["max_abs_difference"] <= 1e-4
        (plan,) = found.tasks["tiny_shots"]["plans"]
        assert 2 * plan["positions"] < plan["sharing"]["unshared_positions"]
    batched = evaluate_model(fp32, few_shot, settings=QUIET, path="batched")
    assert batched.key != baseline.key
    assert not any(run["reused"] for run in batched.tasks.values())
    one, other = (e.samples.to_pandas() for e in (baseline, batched))
    np.testing.assert_array_equal(one["score"], other["score"])
    assert list(one["response"]) == list(other["response"])
    # Nothing is measured again, whatever the order.
    again = evaluate_model(fp32, few_shot, settings=QUIET)
    assert again.path == "shared-prefix"
    assert all(run["reused"] for run in again.tasks.values())


def test_one_model_whose_scores_change_puts_both_into_batches(
    model_dir: ModelDir, few_shot: Suite
) -> None:
    arms = {
        side: Arm(model_dir(scheme), few_shot, QUIET, side)
        for side, scheme in (("baseline", "fp32"), ("candidate", "int4-weight-only"))
    }
    good = choose(arms)
    assert good.path == "shared-prefix"
    assert "is run once" in good.sentences()[-1]
    found = arms["candidate"].equivalence
    assert found is not None
    arms["candidate"].__dict__["equivalence"] = replace(found, max_abs_difference=0.5)
    bad = choose(arms)
    assert bad.path == "batched"
    assert bad.sentences()[-2:] == [
        "candidate: shared prefixes change log-probabilities by up to 0.5 nats (limit 0.02)",
        "so both are scored without shared prefixes",
    ]


def test_prompts_too_short_to_be_cut_are_scored_in_batches(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    items = [{"question": "so", "choices": ["a", "b"], "answer": i % 2} for i in range(4)]
    write_choice_task(tmp_path, "tiny_short", items=items)
    suite = load_suite(["tiny_short"], include_path=tmp_path)
    choice = scoring_path({"model": model_dir("fp32")}, suite, QUIET)
    assert choice.path == "batched"
    assert choice.equivalences == {}
    assert evaluate_model(model_dir("fp32"), suite, settings=QUIET).equivalence is None


def test_a_model_that_depends_on_its_batch_is_not_tried(
    model_dir: ModelDir, few_shot: Suite
) -> None:
    models = {"baseline": model_dir("fp32"), "candidate": model_dir("int8-dynamic")}
    choice = scoring_path(models, few_shot, QUIET)
    assert choice.path == "one-by-one"
    assert choice.equivalences == {}
    assert choice.sentences()[-1] == "so both are scored one sample at a time"
