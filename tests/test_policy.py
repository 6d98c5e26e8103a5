"""The policy file is strict, and says what is wrong in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_degrade.core.errors import PolicyError
from mlflow_degrade.decision.policy import AGGREGATIONS, GatePolicy


def test_yaml_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "rule: non_inferiority\nalpha: 0.01\nmargin_pp: 0.5\naggregation: pooled\n"
        "tasks:\n  'mmlu_*': {tier: advisory}\n  mmlu_law: {metric: acc_norm, margin_pp: 3}\n"
    )
    policy = GatePolicy.from_yaml(file)
    assert policy.rule == "non_inferiority"
    assert policy.task("mmlu_physics").tier == "advisory"
    # An exact name wins over the pattern that also matches it.
    assert policy.task("mmlu_law").tier == "gating"
    assert policy.choices("metric", ["mmlu_law", "mmlu_physics"]) == {"mmlu_law": "acc_norm"}
    assert GatePolicy.from_mapping(policy.model_dump()).digest() == policy.digest()


def test_default_metric_reaches_every_task() -> None:
    policy = GatePolicy(metric="acc")
    assert policy.choices("metric", ["a", "b"]) == {"a": "acc", "b": "acc"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("margins: 1", "unknown key 'margins', did you mean 'margin'"),
        ("tasks: {qa: {teir: gating}}", "unknown key 'tasks.qa.teir', did you mean 'tier'"),
        ("alpha: 0", "alpha = 0"),
        ("alpha: 0.6", "less than or equal to 0.5"),
        ("margin_pp: 0", "margin_pp = 0"),
        ("margin_pp: 100", "less than 100"),
        ("margin_pp: .nan", "margin_pp"),
        ("power: 1", "power = 1"),
        ("aggregation: mean", "aggregation = 'mean'"),
        ("rule: better", "no_degradation"),
        ("allow: [everything]", "cannot be allowed"),
        ("- a\n- b", "holds a list"),
        ("a: [", "not valid YAML"),
        ("alpha: 0.05\npower: 0.8\nalpha: 0.5", "'alpha' is given twice, in lines 1 and 3"),
        ("tasks:\n  a: {tier: gating, tier: advisory}", "'tier' is given twice, in lines 2 and 2"),
    ],
)
def test_bad_policies_are_explained(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(PolicyError, match=r"(?s)" + message.replace("[", r"\[")):
        GatePolicy.from_yaml(file)


def test_what_a_merge_brings_in_may_be_given_anew(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("tasks:\n  a: &a {tier: gating, metric: acc}\n  b: {<<: *a, metric: exact}\n")
    policy = GatePolicy.from_yaml(file)
    assert (policy.task("b").tier, policy.task("b").metric) == ("gating", "exact")


def test_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        GatePolicy.from_yaml(tmp_path / "none.yaml")


def test_empty_file_is_the_default_policy(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("")
    assert GatePolicy.from_yaml(file) == GatePolicy()


def test_every_aggregation_is_accepted() -> None:
    assert {GatePolicy(aggregation=name).aggregation for name in AGGREGATIONS} == set(AGGREGATIONS)
