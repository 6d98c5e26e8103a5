"""The records of a decision: frozen, complete, and JSON without loss.

Scores and differences are in the metric's own unit, which for accuracies is a proportion in
[0, 1]; only what is printed for people is in percentage points. p-values are not rounded, and
come with their logarithm because some of them underflow.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from ..core import numbers
from ..core.cache import digest_json
from ..core.display import card
from ..core.errors import PluginError, SampleSchemaError
from ..samples.origin import Processor
from ..stats._combination_rules import RULE_PLUGINS
from .policy import GatePolicy

if TYPE_CHECKING:
    import pandas as pd

    from ..samples.pairing import PairedScores

SideName = Literal["baseline", "candidate"]
#: Version of the records below and of the rules that fill them. Raise it when either changes:
#: decisions of an earlier version are then judged again instead of being compared number by number.
SCHEMA_VERSION = 2


class Verdict(StrEnum):
    """PASS, FAIL or INCONCLUSIVE; invalid input is an error, not a verdict."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0, 1 or 2."""
        return {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}[self.value]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IntervalRecord(_Record):
    """A confidence interval: ``low``, ``high``, ``confidence`` and the ``method`` it came from.

    Ends are None where nothing bounds the change: fewer than 15 changes of unbounded scores.
    """

    low: float | None
    high: float | None
    confidence: float
    method: str


class AnswerChanges(_Record):
    """How often the answer itself changed, right or wrong; shown, not decided on."""

    n: int  # Items compared; of repeated runs the first.
    changed: int  # Items with another answer, blanks around it aside.
    # Those of them that are wrong on both sides, which the accuracies do not show; None for graded
    # scores.
    between_wrong: int | None
    rate: float  # Share of items that changed.
    low: float
    high: float
    confidence: float  # Clopper–Pearson interval for `rate`.


class JudgeResult(_Record):
    """What a judge said, and how people's labels of some samples corrected it.

    Attributes
    ----------
    metric, gold : str
        The metrics with the judge's and with people's scores.
    n, n_judged : int
        Samples that people labelled on both sides, and samples of the judge alone that were used.
    trust : float
        Weight that the judge had in the test; 0 where it had too few samples of its own.
    best_trust : float
        The weight that would have given the smallest variance, by the labels: for the next policy.
    labels_needed : int
        About so many labels would rule out the margin if there were no change.
    delta : float
        Mean change by the judge alone, over all samples.
    interval : IntervalRecord
        For `delta`, as if the judge could be believed.
    p_worse : float
        The same for "the candidate is worse".
    gold_delta : float
        Mean change by the labels alone.
    bias : float
        Mean of judge − people over the labelled samples.
    p_random : float
        p-value of "the labelled samples are like the others", by the judge's scores.
    """

    metric: str
    gold: str
    n: int
    n_judged: int
    trust: float
    best_trust: float
    labels_needed: int
    delta: float
    interval: IntervalRecord
    p_worse: float
    gold_delta: float
    bias: float
    p_random: float


class TaskResult(_Record):
    """One task's paired test.

    Attributes
    ----------
    task, metric, filter, tier : str
        What was tested, and whether it decides (``gating``) or is only shown (``advisory``).
    n : int
        Paired items; repeats are averaged, so they do not add to it.
    regressions, improvements : int
        b and c: items on which the candidate is worse, and better.
    baseline, candidate : float
        Mean scores.
    delta : float
        Mean of candidate − baseline, oriented so that positive is better.
    interval : IntervalRecord
        For `delta`.
    flip_rate : float
        Share of items that changed.
    p_worse, log10_p_worse : float
        One-sided p-value of "the candidate is worse", and its logarithm.
    p_adjusted : float or None
        Step-down min-p adjusted over the gating tasks; None for advisory tasks.
    p_named : float or None
        The same by closed testing under the aggregate, so never below the aggregate's p-value.
    guilty : bool
        Whether `p_named` is at or below alpha, which it never is beside an aggregate that does not
        reject; for a task with a margin of its own, which decides by itself, `p_adjusted`.
    mde : float or None
        Smallest drop of this task alone that would have been found (see `PowerResult`), at the
        level that is left to one of the gating tasks after adjusting for all of them.
    noninferiority_p : float or None
        p-value of "the drop is at least the margin"; small is good.
    margin : float or None
        The margin it refers to; None for an advisory task whose scores are no proportions and
        for which the policy gives no margin in their unit.
    test : str
        Name of the test.
    binary : bool
        Whether every item is a single right-or-wrong outcome.
    proportion : bool
        Whether the scores are shares, so that percentage points mean something.
    unscored : tuple of int
        Items left out for lack of a score: (baseline only, candidate only, both).
    skewness : float
        Of the differences, where it makes a test doubtful that assumes symmetry; 0 else.
    notes : tuple of str
    answers : AnswerChanges or None
        None where not every item has an answer on both sides.
    judge : JudgeResult or None
        Where a judge was corrected: `delta`, `interval`, `p_worse` and `noninferiority_p` are
        corrected, the other numbers are of the judge's scores.
    """

    task: str
    metric: str
    filter: str
    tier: str
    n: int
    regressions: int
    improvements: int
    baseline: float
    candidate: float
    delta: float
    interval: IntervalRecord
    flip_rate: float
    p_worse: float
    log10_p_worse: float
    p_adjusted: float | None
    p_named: float | None = None
    guilty: bool
    mde: float | None
    noninferiority_p: float | None
    margin: float | None
    test: str
    binary: bool
    proportion: bool
    unscored: tuple[int, int, int]
    skewness: float = 0.0
    notes: tuple[str, ...] = ()
    answers: AnswerChanges | None = None
    judge: JudgeResult | None = None

    @model_serializer(mode="wrap")
    def _without_judge(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the key where there is none: the bytes of such decisions stay."""
        values: dict[str, Any] = dump(self)
        if self.judge is None:
            values.pop("judge", None)
        return values


class AggregateResult(_Record):
    """All gating tasks together.

    Attributes
    ----------
    aggregation : str
        The rule, see `mlflow_degrade.GatePolicy`.
    proportion : bool
        Whether the scores are shares, so that percentage points mean something.
    method : str
        How its null distribution was computed.
    shared_items : int
        Documents that occur in several tasks; their differences were flipped together.
    n, regressions, improvements : int
        Sums over the gating tasks.
    delta : float
        Mean difference over all items (``macro``: mean over the tasks), positive is better.
    interval : IntervalRecord
    p_worse, log10_p_worse : float
        One-sided p-value of "the candidate is worse".
    resamples : int
        Joint flips that were drawn; 0 where the null law was computed.
    standard_error : float
        Monte-Carlo standard error of `p_worse`; 0 where there is none.
    components : dict
        p-values the rule is made of, e.g. ``pooled`` and ``min_p`` for ``combined``.
    noninferiority_p : float
        p-value of "the drop is at least the margin"; small is good.
    reliable : bool
        Whether a degradation may be concluded from `p_worse`: not where differences are skewed by
        rare large gains and no limit of the change that is free of symmetry excludes 0.
    notes : tuple of str
        What the interval and the non-inferiority rest on, where that is an assumption.
    answers : AnswerChanges or None
        None where a gating task has none.
    """

    aggregation: str
    proportion: bool
    method: str
    shared_items: int
    n: int
    regressions: int
    improvements: int
    delta: float
    interval: IntervalRecord
    p_worse: float
    log10_p_worse: float
    resamples: int = 0
    standard_error: float = 0.0
    components: dict[str, float] = {}
    noninferiority_p: float
    reliable: bool = True
    notes: tuple[str, ...] = ()
    answers: AnswerChanges | None = None


class PowerResult(_Record):
    """What the data could have shown.

    Attributes
    ----------
    flip_rate, flip_rate_upper : float
        Share of items that changed, and its one-sided 95% Clopper–Pearson upper bound, for which
        m copies of a document are one trial (Kish's effective sample size).
    mde : float or None
        Minimum detectable effect: the smallest drop that these samples reveal with probability
        `power`, computed from an upper 95% bound of the regressions (of the mean square of the
        losses for graded scores); None where no drop is revealed that often.
    alpha, power, margin : float
        What it refers to. `alpha` is the level the pooled test gets within the aggregation.
    samples_needed : int or None
        Samples of different documents at which the MDE would be about the margin, or, where nothing
        changed, a drop of the margin would be ruled out; None when the MDE already is, or when
        nothing tells.
    sufficient : bool
        Whether the MDE is at most the margin.
    """

    flip_rate: float
    flip_rate_upper: float
    mde: float | None
    alpha: float
    power: float
    margin: float
    samples_needed: int | None
    sufficient: bool


class EvidencePoint(_Record):
    """The evidence after some samples: the change with limits that hold at all times, and ln E."""

    samples: int  # Gating samples so far.
    delta: float
    low: float
    high: float
    log_e_noninferior: float  # Against "the drop is at least the margin".
    log_e_degraded: float  # Against "the candidate is not worse".
    log_e_beyond: float  # Against "the drop is at most the margin".


class EarlyStop(_Record):
    """How a decision that may stop early went along its order.

    Attributes
    ----------
    claim, order, seed : str, str, int
        As in the policy.
    order_digest : str
        SHA-256 of the order, which the baseline's samples and the seed decide.
    units : int
        What is asked together counts once: so many were used, from the first of the order on.
    samples, total : int
        Gating samples that were used, and those of the whole suite.
    complete : bool
        Whether all of the suite was asked.
    stopped : str
        What was established there; empty where nothing was.
    path : tuple of EvidencePoint
    """

    claim: str
    order: str
    seed: int
    order_digest: str
    units: int
    samples: int
    total: int
    complete: bool
    stopped: str
    path: tuple[EvidencePoint, ...] = ()


class RequirementResult(_Record):
    """One part of what a policy asks for beside the comparison of scores.

    Attributes
    ----------
    kind : {"cost", "floor", "relative_drop"}
        The policy's key.
    name : str
        Which of its goals: a cost, or a task; empty for all gating tasks together.
    where : str
        The shape that a speed was measured on; empty else.
    goal : float
    at_least : bool
        Whether the goal is a least value; else a largest one.
    estimate : float or None
        Median of the ratios of the rounds, mean score, or relative drop; None if not measured.
    interval : IntervalRecord or None
        One end decides that the goal is met, at the attempt's alpha; the other that it is missed,
        at alpha divided by the number of requirements. Both ends of a size are what was counted.
    status : {"met", "missed", "undecided"}
    n : int
        Rounds, processes or samples.
    needed : int or None
        About so many would decide, if they were like these; None where nothing tells.
    needed_seconds : float or None
        How long that many rounds would take, by these.
    note : str
        Why it is not measured or not decided, where that needs a word.
    """

    kind: Literal["cost", "floor", "relative_drop"]
    name: str
    where: str = ""
    goal: float
    at_least: bool
    estimate: float | None = None
    interval: IntervalRecord | None = None
    status: Literal["met", "missed", "undecided"]
    n: int = 0
    needed: int | None = None
    needed_seconds: float | None = None
    note: str = ""


class PluginUse(_Record):
    """Something of another package that a decision rests on."""

    # `Decision.versions` has its version.

    kind: str  # What it is, ``aggregation rule``.
    name: str
    distribution: str  # Its name, and that of the package.


class Decision(_Record):
    """The verdict with every number behind it; made by `mlflow_degrade.decide`.

    Attributes
    ----------
    verdict : Verdict
        PASS, FAIL or INCONCLUSIVE.
    reasons : tuple of str
        Plain sentences, the decisive one first.
    policy : GatePolicy
        The policy that was applied.
    attempt : int or None
        Number of this attempt on one evaluation set, where a ledger counts them.
    alpha_attempt : float
        Level left for the non-inferiority claim at this attempt.
    tasks : tuple of TaskResult
        Sorted by name.
    aggregate : AggregateResult
        All gating tasks together.
    power : PowerResult
        What the data could have shown.
    baseline, candidate : dict
        Name, model digest and samples digest of either side.
    versions : dict
        Versions of the libraries that computed the numbers, packages of `plugins` among them.
    notes : tuple of str
        What the pairing had to report.
    processors : dict
        Side to the processor its scores were computed on, where the evaluation says so.
    schema_version : int
        Of the rules behind the numbers: 1 for decisions made before it was recorded.
    plugins : tuple of PluginUse
        What the decision takes from other packages: an aggregation rule that is not built in.
    sequential : EarlyStop or None
        Where the policy may stop early: the p-values are then valid at any time, and the interval
        is the confidence sequence's.
    requirements : tuple of RequirementResult
        What the policy asks for on top: costs, floors, a largest relative drop.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    policy: GatePolicy
    attempt: int | None
    alpha_attempt: float
    tasks: tuple[TaskResult, ...]
    aggregate: AggregateResult
    power: PowerResult
    baseline: dict[str, str | None]
    candidate: dict[str, str | None]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    processors: dict[SideName, Processor] = {}
    schema_version: int = 1
    plugins: tuple[PluginUse, ...] = ()
    sequential: EarlyStop | None = None
    requirements: tuple[RequirementResult, ...] = ()

    @model_serializer(mode="wrap")
    def _without_what_is_not(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys of what is not there: the bytes of such decisions stay."""
        values: dict[str, Any] = dump(self)
        for name in ("plugins", "sequential", "requirements"):
            if not getattr(self, name):
                values.pop(name, None)
        return values

    def __repr__(self) -> str:
        total = self.aggregate
        change = numbers.change(total.delta, proportion=total.proportion)
        return (
            f"Decision({self.verdict.value}, change {change} on {numbers.count(total.n)} samples "
            f"of {len(self.tasks)} {'task' if len(self.tasks) == 1 else 'tasks'})"
        )

    __str__ = __repr__

    def _repr_html_(self) -> str:
        mood = {Verdict.PASS: "good", Verdict.FAIL: "bad"}.get(self.verdict, "unsure")
        names = [self.candidate.get("model"), self.baseline.get("model")]
        said = ["{} against {}".format(*names)] if all(names) else []
        judged = any(task.judge is not None for task in self.tasks)
        level = numbers.level(self.policy.shown_confidence)
        results: list[TaskResult | AggregateResult] = [*self.tasks, self.aggregate]
        return card(
            self.verdict.value,
            mood=mood,
            sentences=[*said, *self.reasons],
            columns=("", "samples", "worse / better", "change", f"{level} interval", "p", "",
                     *(["judge alone", "labels alone"] if judged else [])),
            rows=[_shown_row(each, self.policy.alpha, judged) for each in results],
            total=True,
            note="Change is candidate − baseline, positive is better; p is one-sided for “the "
            "candidate is worse”. Guilty: worse even after allowing for the number of tasks.",
        )  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """The tasks as a table, all gating tasks together in its last row.

        Returns
        -------
        DataFrame
            Indexed by the task's name, ``(together)`` for the last row, with the columns ``metric,
            tier, n, regressions, improvements, baseline, candidate, delta, low, high, p_worse,
            p_adjusted, guilty, noninferiority_p, margin, mde``, and where a judge was corrected
            ``judge_delta, gold_delta, labels``. Scores and changes are in the metric's own unit.
        """
        import pandas as pd

        own = ("metric", "tier", "n", "regressions", "improvements", "baseline", "candidate",
               "delta")  # fmt: skip
        tests = ("p_worse", "p_adjusted", "guilty", "noninferiority_p", "margin", "mde")
        rows = [
            {
                "task": task.task,
                **{name: getattr(task, name) for name in own},
                "low": task.interval.low,
                "high": task.interval.high,
                **{name: getattr(task, name) for name in tests},
                **({} if task.judge is None else {
                    "judge_delta": task.judge.delta, "gold_delta": task.judge.gold_delta,
                    "labels": task.judge.n,
                }),
            }
            for task in self.tasks
        ]  # fmt: skip
        total = self.aggregate
        rows.append(
            {
                "task": "(together)",
                "metric": total.aggregation,
                "tier": "gating",
                "n": total.n,
                "regressions": total.regressions,
                "improvements": total.improvements,
                "delta": total.delta,
                "low": total.interval.low,
                "high": total.interval.high,
                "p_worse": total.p_worse,
                "guilty": total.reliable and total.p_worse <= self.policy.alpha,
                "noninferiority_p": total.noninferiority_p,
                "margin": self.power.margin,
                "mde": self.power.mde,
            }
        )
        return pd.DataFrame(rows).set_index("task")

    def used(self, paired: PairedScores) -> PairedScores:
        """The pairs that the decision rests on: those up to where it stopped.

        Parameters
        ----------
        paired : PairedScores
            What it was made from.
        """
        return paired if self.sequential is None else paired.up_to(self.sequential.units)

    @property
    def exit_code(self) -> int:
        """0 PASS, 1 FAIL, 2 INCONCLUSIVE."""
        return self.verdict.exit_code

    @property
    def guilty(self) -> tuple[str, ...]:
        """Names of the gating tasks that are worse, with family-wise error control."""
        return tuple(task.task for task in self.tasks if task.guilty)

    def to_json(self) -> str:
        """The decision as indented JSON; the same decision gives the same bytes."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Decision:
        """Read back what `to_json` wrote.

        Raises
        ------
        SampleSchemaError
            The text is not a decision.
        PluginError
            It was made by a rule of a package that is not installed here.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            if missing := _missing_plugins(text):
                raise PluginError(missing) from error
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the text"
            more = f" and {error.error_count() - 1} more" if error.error_count() > 1 else ""
            raise SampleSchemaError(
                f"not a decision of this version of mlflow-degrade: {where}: {first['msg']}{more}. "
                "Decide again on the samples it was made from."
            ) from error

    def digest(self) -> str:
        """SHA-256 of the decision's canonical JSON."""
        dumped: dict[str, Any] = self.model_dump(mode="json")
        return digest_json(dumped)


def _shown_row(one: TaskResult | AggregateResult, alpha: float, judged: bool) -> tuple[str, ...]:
    """One line of the table in a notebook."""
    share = one.proportion
    name, standing, raw = "together", "", ("", "")
    if isinstance(one, TaskResult):
        name = one.task
        standing = "guilty" if one.guilty else "advisory" if one.tier == "advisory" else ""
        if one.judge is not None:
            raw = (
                numbers.change(one.judge.delta, proportion=share),
                f"{numbers.change(one.judge.gold_delta, proportion=share)} of {one.judge.n}",
            )
    return (
        name,
        numbers.count(one.n),
        f"{numbers.count(one.regressions)} / {numbers.count(one.improvements)}",
        numbers.change(one.delta, proportion=share),
        numbers.interval(one.interval.low, one.interval.high, proportion=share),
        numbers.p_value(one.p_worse, one.log10_p_worse, threshold=alpha),
        standing,
        *(raw if judged else ()),
    )


def _missing_plugins(text: str) -> str:
    """What a recorded decision takes from packages that are not here; empty for nothing."""
    try:
        record = json.loads(text)
        uses = [PluginUse.model_validate(use) for use in record.get("plugins", ())]
        missing = [use for use in uses if use.name not in RULE_PLUGINS.names]
        return " ".join(
            f"The decision rests on {use.kind} {use.name!r} of package {use.distribution!r} "
            f"{record['versions'].get(use.distribution, 'of unknown version')}, which is not "
            "installed here: install it where you trust it, and try again."
            for use in missing
        )
    except (ValueError, AttributeError, KeyError, TypeError):
        return ""  # not even a record; the caller says what is wrong with it
