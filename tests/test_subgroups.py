"""Features of paired samples as the subgroup test sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.decision.subgroups import find_subgroups, subgroup_features
from mlflow_degrade.samples.pairing import PairedScores, pair
from mlflow_degrade.samples.table import SampleScores
from mlflow_degrade.stats import kcm_test


def paired(n: int = 200, **columns: Any) -> PairedScores:
    """Two tasks; every fifth sample of the second half gets worse, of the first half better."""
    number = np.arange(n)
    sides = []
    for model in ("a", "b"):
        frame = pd.DataFrame({"task": np.where(number < n // 2, "one", "two"), "doc_id": number})
        frame["metric"], frame["score"] = "acc", np.where(number < n // 2, 0, 1)
        frame["feature.position"] = number
        frame["feature.kind"] = np.where(number % 2, "odd", "even")
        for name, values in columns.items():
            frame[name.replace("__", ".")] = values
        if model == "b":
            frame.loc[number % 5 == 0, "score"] = np.where(number < n // 2, 1, 0)[number % 5 == 0]
        # The rows of the two tables need not have one order.
        order = np.arange(n) if model == "a" else np.random.default_rng(0).permutation(n)
        sides.append(SampleScores.from_pandas(frame.iloc[order], model=model))
    return pair(*sides)


def test_the_feature_that_matters_is_told_from_the_one_that_does_not() -> None:
    result = find_subgroups(paired(), ["position", "kind", "task"])
    assert result.n == 200
    assert result.informative == 40
    assert result.feature("position").p_adjusted < 0.01
    assert result.feature("task").p_adjusted < 0.01
    assert result.feature("kind").p_adjusted > 0.2
    region = result.feature("task").region
    assert region is not None
    assert region.conditions == ("task = two",)
    assert (region.regressions, region.improvements) == (20, 0)


def test_one_task_alone() -> None:
    result = find_subgroups(paired(), ["kind"], tasks=["two"])
    assert (result.n, result.informative) == (100, 20)


def test_samples_without_the_feature_are_left_out() -> None:
    kind = pd.Series(["x"] * 150 + [None] * 50, dtype=object)
    number = [float(i) if i >= 20 else np.nan for i in range(200)]
    assert find_subgroups(paired(feature__kind=kind), ["kind"]).n == 150
    assert find_subgroups(paired(feature__position=number), ["position", "kind"]).n == 180
    nothing = pd.Series([None] * 200, dtype=object)
    with pytest.raises(InputError, match="no sample has all"):
        find_subgroups(paired(feature__kind=nothing), ["kind"])


def test_clusters_are_flipped_together() -> None:
    alone = find_subgroups(paired(), ["position"])
    clusters = [f"c{i // 50}" for i in range(200)]
    together = find_subgroups(paired(cluster=clusters), ["position"])
    assert together.p_value > 3 * alone.p_value


def test_clusters_of_different_tasks_are_different_even_with_one_label() -> None:
    random = np.random.default_rng(7)
    frame = pd.DataFrame({"task": ["one"] * 30 + ["two"] * 30, "doc_id": range(60)})
    frame["metric"], frame["score"] = "acc", 0.5
    frame["feature.position"] = random.permutation(60)
    # Within each task a sample is alone in its cluster: labels that both tasks use join nothing.
    frame["cluster"] = [f"c{i % 30}" for i in range(60)]
    change = random.choice([-0.5, 0.5], 60)
    sides = [
        SampleScores.from_pandas(frame.assign(score=0.5 + shift), model=name)
        for name, shift in (("a", 0.0), ("b", change))
    ]
    found = find_subgroups(pair(*sides), ["position"]).p_value
    features = {"position": frame["feature.position"]}
    assert found == kcm_test(change, features).p_value
    assert found != kcm_test(change, features, clusters=frame["cluster"]).p_value


def test_unknown_names() -> None:
    assert subgroup_features(paired()) == ("task", "position", "kind")
    with pytest.raises(UnknownNameError, match="unknown feature 'kinds': did you mean 'kind'"):
        find_subgroups(paired(), ["kinds"])
    with pytest.raises(UnknownNameError, match="unknown task 'three'"):
        find_subgroups(paired(), ["kind"], tasks=["three"])
    with pytest.raises(InputError, match="no features"):
        find_subgroups(paired(), [])


def test_clusters_stay_with_their_samples_when_others_are_left_out() -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"task": ["one"] * 60 + ["two"] * 30, "doc_id": range(90)})
    frame["metric"], frame["score"] = "acc", 0.5
    position = rng.permutation(90).astype(float)
    position[:10] = np.nan
    frame["feature.position"] = position
    # Only the first task has clusters, of three; every sample of the second stands alone.
    frame["cluster"] = [f"c{i // 3}" for i in range(60)] + [None] * 30
    change = np.append(np.repeat(rng.choice([-0.5, 0.5], 20), 3), rng.choice([-0.5, 0.5], 30))
    sides = [
        SampleScores.from_pandas(frame.assign(score=0.5 + shift), model=name)
        for name, shift in (("a", 0.0), ("b", change))
    ]
    found = find_subgroups(pair(*sides), ["position"])
    labels = np.append(np.arange(60) // 3, np.arange(100, 130))
    expected = kcm_test(change[10:], {"position": position[10:]}, clusters=labels[10:])
    assert found.p_value == expected.p_value
    assert found.features[0].statistic == pytest.approx(expected.features[0].statistic)
