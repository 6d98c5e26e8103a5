"""What must not change when code is moved: decisions, digests and policies, equal to the byte.

The last digits of the numbers depend on the kernels that numpy and scipy choose for a processor
(AVX-512 adds up in another order than AVX2). So the digests of decisions hold where libraries and
kernels are those they were frozen with, and the content holds everywhere: the same keys in the same
order, texts, counts and digests of samples exactly, and real numbers to 1e-11.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frozen_cases as cases
import pytest

from mlflow_degrade.decision.policy import AGGREGATIONS

_TOLERANCE = 1e-11


def _frozen(name: str) -> Any:
    return json.loads((cases.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


_SAME_MACHINE = _frozen("machine") == cases.machine()


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Where two contents differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        if list(old) != list(new):
            yield f"{where}: keys {list(old)} are now {list(new)}"
        for key in old:
            if key in new and (key != "text_digest" or _SAME_MACHINE):
                yield from _differences(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{where}[{i}]")
    elif isinstance(old, float) and isinstance(new, float) and not _SAME_MACHINE:
        if not math.isclose(old, new, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            yield f"{where}: {old!r} is now {new!r}"
    elif old != new or type(old) is not type(new):
        yield f"{where}: {old!r} is now {new!r}"


def _check(old: Any, new: Any) -> None:
    # As JSON, so that tuples are lists.
    found = list(_differences(old, json.loads(json.dumps(new))))
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:40])


def test_decisions() -> None:
    _check(_frozen("decisions"), cases.decisions())


def test_samples() -> None:
    _check(_frozen("samples"), cases.sample_digests())


def test_subgroups() -> None:
    _check(_frozen("subgroups"), cases.paired_subgroups())


def test_policies() -> None:
    for old in _frozen("policies"):
        _check(old, cases.policy_record(old["policy"]))


def test_presets() -> None:
    # Once each recipe had a folder of its own; those of one name were the same.
    now = cases.presets()
    assert {key.split("/")[1] for key in _frozen("presets")} <= set(now)
    for key, old in _frozen("presets").items():
        _check(old, now[key.split("/")[1]])


def test_logs(tmp_path: Path) -> None:
    cases.unpack_logs(tmp_path)
    logs = cases.log_cases()
    frozen = _frozen("logs")
    assert len(frozen) == len(logs)
    for case, old in zip(logs, frozen, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what readers say is no part of what they read
            new = cases.read_log(tmp_path, case)
        found = list(_differences(old, json.loads(json.dumps(new))))
        assert not found, f"{case}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n": 5}, ".n: 4 is now 5"),
        ({"p": 0.25 + 1e-9}, ".p: 0.25 is now"),
        ({"more": 1}, "keys ['n', 'p', 'text'] are now"),
        ({"text": ["a", 1]}, ".text[1]: 'b' is now 1"),
    ],
)
def test_a_difference_is_told(change: dict[str, Any], told: str) -> None:
    old = {"n": 4, "p": 0.25, "text": ["a", "b"]}
    with pytest.raises(AssertionError) as error:
        _check(old, {**old, **change})
    assert told in str(error.value)


def test_the_cases_cover_every_rule_and_kind() -> None:
    frozen = _frozen("decisions")
    contents = [case["content"] for case in frozen.values() if "content" in case]
    assert {c["verdict"] for c in contents} == {"PASS", "FAIL", "INCONCLUSIVE"}
    rules = {c["aggregate"]["aggregation"] for c in contents}
    assert rules == set(AGGREGATIONS)
    assert {c["aggregate"]["proportion"] for c in contents} == {True, False}
