"""The memory of a search: every candidate once, in the same order after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow_stores import make_store

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.decision.selection import Damage
from mlflow_degrade.optimize.search_space import SearchCandidate, SearchSpace, load_space
from mlflow_degrade.report.search import Outcome, Trial
from mlflow_degrade.tracking.studies import SearchStudy

_IDENTITY = {"space": "14 candidates", "seed": 0}


def _open(storage: str, space: SearchSpace, name: str = "study", seed: int = 0) -> SearchStudy:
    return SearchStudy.open(name, {**_IDENTITY, "seed": seed}, space, seed, storage)


def _record(study: SearchStudy, candidate: SearchCandidate) -> Trial:
    """Made up: fewer bits are smaller and worse, GPTQ cannot be made, dynamic ones are pruned."""
    name, number = candidate.name, len(study.trials) + 1
    outcome: Outcome = "measured"
    if "gptq" in name:
        outcome = "failed"
    elif "dynamic" in name:
        outcome = "pruned"
    bits = 4 if "int4" in name else 8
    harm = Damage(100, 0.08 / bits, 0.01, 0.02)
    measured = {"speed": 16 / bits, "size": bits / 32, "damage": harm}
    return Trial(
        number, name, candidate.digest, candidate.params, outcome,
        **({} if outcome == "failed" else measured),
    )  # fmt: skip


def _step(study: SearchStudy) -> str | None:
    candidate = study.propose()
    if candidate is None:
        return None
    entered = study.begin(candidate)
    study.finish(entered, _record(study, candidate))
    return candidate.name


def test_a_space_is_exhausted_and_nothing_is_tried_twice(tmp_path: Path) -> None:
    storage, space = make_store(tmp_path), load_space("decoder")
    study = _open(storage, space)
    names = []
    while (name := _step(study)) is not None:
        names.append(name)
    assert names[0] == space.candidates[0].name
    assert sorted(names) == sorted(candidate.name for candidate in space.candidates)
    assert [trial.name for trial in study.trials] == names
    assert study.trials[0] == Trial.from_dict(study.trials[0].as_dict())

    # Opened anew before every trial, and with one that was begun and not finished in between.
    other = []
    for number in range(len(names)):
        again = _open(storage, space, "other")
        if number == 5:
            proposed = again.propose()
            assert proposed is not None
            again.begin(proposed)
            again = _open(storage, space, "other")
        other.append(_step(again))
    assert other == names
    assert _open(storage, space, "other").propose() is None

    third = _open(storage, space, "third", seed=1)
    assert [_step(third) for _ in names] != names


def test_another_search_under_the_same_name_is_refused(tmp_path: Path) -> None:
    storage, space = make_store(tmp_path), load_space("encoder")
    _open(storage, space)
    with pytest.raises(InputError, match=r"differs from this one in the seed \(0 then, 1 now\)"):
        _open(storage, space, seed=1)
