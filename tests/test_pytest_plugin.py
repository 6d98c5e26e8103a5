"""``assert_not_worse``: as pytest runs it, and how often it is right on simulated models."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mlflow_degrade import DegradeError, GatePolicy, SampleScores
from mlflow_degrade.core.errors import InputError, UnpairedSamplesError
from mlflow_degrade.testing import assert_not_worse as check

_TESTS = """
from mlflow_degrade.testing import assert_not_worse as imported

GOOD = {f"q{n}": 1 for n in range(600)}
BAD = GOOD | {f"q{n}": 0 for n in range(40)}
FEW = {"q1": 1, "q2": 0}

def test_good(assert_not_worse):
    assert assert_not_worse(GOOD, GOOD | {"q0": 0}, margin_pp=1).verdict.value == "PASS"

def test_bad(assert_not_worse):
    assert_not_worse(GOOD, BAD, margin_pp=1, report="report.html")

def test_few():
    imported(FEW, {"q1": 1, "q2": 1})

def test_few_for_a_proof():
    imported(FEW, {"q1": 1, "q2": 1}, inconclusive="fail")

def test_other_samples():
    imported(FEW, {"q1": 1, "q3": 1})
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A session of pytest over these tests: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("session")
    (folder / "test_models.py").write_text(_TESTS)
    options = ["-ra", "--junit-xml", "junit.xml", "-p", "no:tach"]
    if not entry_points(group="pytest11", name="degrade"):  # an older editable installation
        options += ["-p", "mlflow_degrade.testing"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return folder, done.stdout


def test_each_verdict_has_its_outcome(session: tuple[Path, str]) -> None:
    assert "3 failed, 1 passed, 1 skipped" in session[1]


def test_a_failure_says_what_got_worse_and_by_how_much(session: tuple[Path, str]) -> None:
    shown = session[1]
    assert "AssertionError: FAIL: The candidate is worse than the baseline: −6.67 pp." in shown
    assert "What would have to change" in shown
    assert "q0: right → wrong" in shown
    assert (session[0] / "report.html").stat().st_size > 1000


def test_a_failure_shows_the_test_and_nothing_of_ours(session: tuple[Path, str]) -> None:
    assert "samples/pairing.py" not in session[1]
    assert "mlflow_degrade/testing.py" not in session[1]


def test_the_reason_of_a_skip_says_what_helps(session: tuple[Path, str]) -> None:
    (reason,) = re.findall(r"^SKIPPED .*: (INCONCLUSIVE: .*)$", session[1], re.M)
    assert re.search(r"Evaluate about \d+ samples", reason)


def test_all_verdicts_are_listed_and_kept_in_junit(session: tuple[Path, str]) -> None:
    listed = session[1].partition("verdicts of mlflow-degrade")[2]
    verdicts = re.findall(r"^(PASS|FAIL|INCONCLUSIVE) .*::(test_\w+)$", listed, re.M)
    assert {name: verdict for verdict, name in verdicts} == {
        "test_good": "PASS",
        "test_bad": "FAIL",
        "test_few": "INCONCLUSIVE",
        "test_few_for_a_proof": "INCONCLUSIVE",
    }
    assert len(verdicts) == 4
    suite = ElementTree.parse(session[0] / "junit.xml")
    kept = [p.get("value", "").split()[0] for p in suite.iter("property")]
    assert Counter(kept) == {"PASS": 1, "FAIL": 1, "INCONCLUSIVE": 2}


def test_starting_pytest_loads_nothing_heavy() -> None:
    code = "import sys, mlflow_degrade.testing; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"numpy", "pandas", "mlflow", "scipy", "rich", "torch"}


class TestWhatItTakes:
    def test_files_frames_tables_and_mappings(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"task": "qa", "doc_id": range(600), "metric": "acc", "score": 1.0})
        worse = frame.assign(score=[0.0] * 60 + [1.0] * 540)
        frame.to_csv(tmp_path / "a.csv", index=False)
        worse.to_csv(tmp_path / "b.csv", index=False)
        for pair in (
            (frame, worse),
            (tmp_path / "a.csv", str(tmp_path / "b.csv")),
            (SampleScores.from_pandas(frame), SampleScores.from_pandas(worse)),
        ):
            with pytest.raises(AssertionError, match="FAIL: The candidate is worse"):
                check(*pair, margin_pp=1)

    def test_a_policy_in_any_form_and_a_margin_above_it(self, tmp_path: Path) -> None:
        (tmp_path / "policy.yaml").write_text("rule: non_inferiority\nmargin_pp: 8\n")
        before = dict.fromkeys(range(600), 1)
        after = before | dict.fromkeys(range(12), 0)
        for policy in (
            tmp_path / "policy.yaml",
            {"rule": "non_inferiority", "margin_pp": 8},
            GatePolicy(rule="non_inferiority", margin_pp=8),
        ):
            assert check(before, after, policy=policy).verdict.value == "PASS"
            with pytest.raises(AssertionError, match="FAIL"):
                check(before, after, margin_pp=1, policy=policy)

    def test_what_does_not_belong_together_is_an_error(self) -> None:
        with pytest.raises(UnpairedSamplesError):
            check({"a": 1}, {"b": 1})
        with pytest.raises(DegradeError):
            check({"a": 1}, {"a": math.nan})
        with pytest.raises(InputError, match="'skip' or 'fail'"):
            check({"a": 1}, {"a": 1}, inconclusive="pass")  # type: ignore[arg-type]


# -- how often it is right ----------------------------------------------------------------

_RUNS = 200
_SAMPLES = 1319  # of GSM8K's test set
_FLIPS = 0.05


def _simulated(drop: float, random: np.random.Generator) -> tuple[npt.NDArray[np.int_], ...]:
    """Right answers of two models, of which 5% differ: half and half, or with a drop."""
    before = random.random(_SAMPLES) < 0.5
    lost, gained = (_FLIPS + drop), (_FLIPS - drop)  # of those right, and of those wrong before
    after = before ^ (random.random(_SAMPLES) < np.where(before, lost, gained))
    return before.astype(int), after.astype(int)


def _outcomes(drop: float, seed: int, **options: object) -> Counter[str]:
    """How a test ends in continuous integration, over many runs."""
    random, found = np.random.default_rng(seed), Counter[str]()
    for _ in range(_RUNS):
        before, after = (dict(enumerate(side)) for side in _simulated(drop, random))
        try:
            check(before, after, **options)  # type: ignore[arg-type]
            found["passed"] += 1
        except AssertionError:
            found["failed"] += 1
        except pytest.skip.Exception:
            found["skipped"] += 1
    return found


def _rate(count: int) -> tuple[float, float]:
    """A share of the runs and its standard error."""
    share = count / _RUNS
    return share, math.sqrt(share * (1 - share) / _RUNS)


@pytest.mark.slow
def test_equal_models_are_stopped_in_five_percent_at_most(
    record_property: Callable[[str, object], None],
) -> None:
    found = _outcomes(0.0, seed=1)
    share, error = _rate(found["failed"])
    record_property("false alarms", f"{share:.3f} ± {error:.3f}")
    print(f"false alarms {share:.3f} ± {error:.3f}; {dict(found)}")
    assert share <= 0.05
    assert found["passed"] >= 0.9 * _RUNS, "a margin of two points can be shown by so many samples"


@pytest.mark.slow
def test_a_drop_of_a_point_and_a_half_is_found_in_four_of_five(
    record_property: Callable[[str, object], None],
) -> None:
    found = _outcomes(0.015, seed=2)
    share, error = _rate(found["failed"])
    record_property("drops found", f"{share:.3f} ± {error:.3f}")
    print(f"drops found {share:.3f} ± {error:.3f}; {dict(found)}")
    assert abs(share - 0.8) <= 2 * error


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_margin_and_the_rule_do_not_move_the_alarm() -> None:
    """FAIL is the claim "worse" at alpha; the margin only says what silence means."""
    known = {
        (margin, rule): _outcomes(0.0, 1, margin_pp=margin, policy={"rule": rule})["failed"]
        for margin in (1, 2)
        for rule in ("no_degradation", "non_inferiority")
    }
    assert len(set(known.values())) == 1, known
