"""A pytest plugin: a test that fails when a model got worse.

pytest finds it where mlflow-degrade is installed. ``assert_not_worse`` is a fixture, and a function
to import; each verdict is shown at the end of the session and written to pytest's JUnit file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    import pandas as pd

    from .decision.results import Decision
    from .samples.pairing import PairedScores
    from .samples.table import SampleScores

    Samples = SampleScores | pd.DataFrame | Mapping[Any, float] | str | os.PathLike[str]

__all__ = ["assert_not_worse"]

_PROPERTY = "mlflow-degrade"
_running: list[pytest.Item] = []


def assert_not_worse(
    baseline: Samples,
    candidate: Samples,
    margin_pp: float | None = None,
    *,
    policy: Any = None,
    inconclusive: Literal["skip", "fail"] = "skip",
    report: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Decision:
    """Fail the test where the candidate is shown to be worse than the baseline.

    A test is an alarm, so by default it fails on FAIL alone: of candidates that are as good as the
    baseline at most a share of alpha (5%) is stopped. INCONCLUSIVE skips the test with the reason,
    as neither outcome is shown. What must not pass unproven, such as a promotion, takes
    ``inconclusive="fail"``: then a green test says that the verdict is PASS.

    Parameters
    ----------
    baseline, candidate : SampleScores, DataFrame, mapping, str or path
        Scores of the same samples: what `mlflow_degrade.read_samples` takes (a file, a directory,
        ``runs:/<id>``), a table, a frame with the columns of one, or a score for each id.
    margin_pp : float, optional
        Largest acceptable drop in percentage points; the policy's, by default 2.
    policy : GatePolicy, mapping, str or path, optional
        A policy, its keys, or a file of it.
    inconclusive : {"skip", "fail"}
        What becomes of a test whose samples cannot tell.
    report : str or path, optional
        Where to write the HTML report, whatever the verdict.
    **options
        Of the reader, for both sides, e.g. ``id_column="example_id"``.

    Returns
    -------
    Decision
        On PASS.

    Raises
    ------
    AssertionError
        The verdict is FAIL, or is not PASS under ``inconclusive="fail"``.
    DegradeError
        The samples cannot be read or do not belong together: an error, never a skipped test.

    Examples
    --------
    >>> before = {f"q{n}": 1 for n in range(400)}
    >>> assert_not_worse(before, before | {"q0": 0}, margin_pp=2).verdict.value
    'PASS'
    """
    __tracebackhide__ = True
    from .core.errors import DegradeError, InputError
    from .decision.results import Verdict
    from .decision.verdict import decide

    if inconclusive not in ("skip", "fail"):
        raise InputError(f"inconclusive = {inconclusive!r}: 'skip' or 'fail'.")
    try:
        asked = _policy(policy, margin_pp)
        sides = _read(baseline, "baseline", options), _read(candidate, "candidate", options)
        paired = asked.pair(*sides)
        decision = decide(paired, asked)
    except DegradeError as error:
        # The message says all; where it was raised in here helps nobody.
        raise error.with_traceback(None) from None
    if report is not None:
        _write_report(report, decision, paired)
    for item in _running:
        item.user_properties.append((_PROPERTY, _line(decision)))
    if decision.verdict is Verdict.PASS:
        return decision
    if decision.verdict is Verdict.INCONCLUSIVE and inconclusive == "skip":
        pytest.skip(_reason(decision))
    raise AssertionError(_message(decision, paired))


@pytest.fixture(name="assert_not_worse")
def _assert_not_worse() -> Callable[..., Decision]:
    """Fail the test where a candidate is worse than a baseline; see mlflow_degrade.testing."""
    return assert_not_worse


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.remove(item)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for found in terminalreporter.stats.values() for r in found]
    lines = [
        f"{text}  {report.nodeid}"
        for report in reports
        # A test has a report for each phase, with the properties of all until then.
        if getattr(report, "when", None) == "teardown" or getattr(report, "skipped", False)
        for name, text in getattr(report, "user_properties", ())
        if name == _PROPERTY
    ]
    if lines:
        terminalreporter.section("verdicts of mlflow-degrade")
        for line in dict.fromkeys(lines):
            terminalreporter.write_line(line)


def _policy(given: Any, margin_pp: float | None) -> Any:
    from .decision.policy import GatePolicy

    if given is None:
        policy = GatePolicy()
    elif isinstance(given, GatePolicy):
        policy = given
    elif isinstance(given, Mapping):
        policy = GatePolicy.from_mapping(dict(given), "policy")
    else:
        policy = GatePolicy.from_yaml(given)
    if margin_pp is None:
        return policy
    stated = policy.model_dump(mode="json", exclude_unset=True) | {"margin_pp": margin_pp}
    return GatePolicy.from_mapping(stated, "policy and margin_pp")


def _read(given: Samples, side: str, options: dict[str, Any]) -> SampleScores:
    import pandas as pd

    from .samples.readers import read_samples
    from .samples.table import SampleScores

    if isinstance(given, SampleScores):
        return given
    if isinstance(given, pd.DataFrame):
        return SampleScores.from_pandas(given, model=side)
    if isinstance(given, Mapping):
        columns = {"task": "samples", "doc_id": [str(key) for key in given], "metric": "score"}
        frame = pd.DataFrame(columns | {"score": [float(score) for score in given.values()]})
        return SampleScores.from_pandas(frame, model=side)
    found = read_samples(given, **options)
    return found if found.model is not None else found.with_model(os.fspath(given))


def _write_report(path: str | os.PathLike[str], decision: Decision, paired: PairedScores) -> None:
    from pathlib import Path

    from .report import html

    Path(path).write_text(html.report(decision, paired), encoding="utf-8")


def _line(decision: Decision) -> str:
    from .report import tables

    row = tables.total_row(decision)
    return f"{decision.verdict.value:12} {row.delta} {row.unit} {row.interval} on {row.n} samples"


def _reason(decision: Decision) -> str:
    from .report.content import headline
    from .report.recommendations import remedies

    return " ".join([f"INCONCLUSIVE: {headline(decision)}", *remedies(decision)[:1]])


def _message(decision: Decision, paired: PairedScores) -> str:
    from .report.content import headline
    from .report.terminal import as_text, decision_view

    # pytest's summary shows the first line only.
    first = f"{decision.verdict.value}: {headline(decision)}"
    return f"{first}\n{as_text(decision_view(decision, paired), width=96).rstrip()}"
