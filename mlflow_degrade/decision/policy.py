"""The gate policy: what must be shown before a model may pass, as strict, validated data."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from ..core.cache import digest_json
from ..core.errors import PolicyError, PromptMismatchError
from ..core.prompting import Prompting
from ..core.question_names import task_of
from ..core.yaml_files import read_yaml
from ..samples.gold import with_gold
from ..samples.pairing import ALLOWABLE, PairedScores, pair
from ..samples.planned_order import PlannedOrder
from ..samples.table import SampleScores
from ..stats._combination_rules import DEFAULT_RULE, RULE_NAMES, rule_named, rule_names

Rule = Literal["no_degradation", "non_inferiority"]
Tier = Literal["gating", "advisory"]

#: Names of the built-in aggregation rules.
AGGREGATIONS = RULE_NAMES


def _usable_rule(name: str) -> str:
    known = rule_names()
    if name not in known:
        raise ValueError(f"no aggregation rule has this name; known are {', '.join(known)}")
    rule_named(name)  # one of another package is loaded before any work
    return name


Aggregation = Annotated[
    str,
    AfterValidator(_usable_rule),
    WithJsonSchema({"type": "string", "enum": list(AGGREGATIONS)}),
]


class JudgePolicy(BaseModel):
    """Whose scores are corrected by what people said of some samples.

    Attributes
    ----------
    metric : str
        The metric with the judge's scores. It is the one that is compared.
    gold : str
        The metric with people's scores of a random part of the samples, on both sides.
    trust : float
        How much weight the judge has, between 0 (none) and 1. It must be chosen before the labels
        are seen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    gold: str
    trust: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _two_metrics(self) -> JudgePolicy:
        if self.metric == self.gold:
            raise ValueError(f"metric and gold are both {self.gold!r}: a judge corrects no judge")
        return self


#: Ways to stop early that have a word of their own.
EARLY_STOPS: dict[str, dict[str, str]] = {
    "population": {},
    "suite": {"claim": "suite"},
    "informed": {"claim": "suite", "order": "informed"},
}


class SequentialPolicy(BaseModel):
    """How a decision may stop before the last sample.

    Attributes
    ----------
    claim : {"population", "suite"}
        What is claimed: ``population`` means questions like these, as every other decision does;
        ``suite`` only what the whole suite would have shown, which takes fewer samples and lets the
        order be informed.
    order : {"uniform", "informed"}
        ``informed`` asks what the baseline was least sure of first, weighed so that the estimate
        stays unbiased; it needs the baseline's log-likelihoods.
    seed : int
        Of the order. Another seed is another order: choose it once.
    flip_rate : float
        Planned share of answers that change, e.g. a noise floor; a wrong one costs samples, not
        validity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: Literal["population", "suite"] = "population"
    order: Literal["uniform", "informed"] = "uniform"
    seed: int = 1234
    flip_rate: float = Field(default=0.05, gt=0, le=1)

    @model_validator(mode="after")
    def _random_sample(self) -> SequentialPolicy:
        if self.order == "informed" and self.claim == "population":
            raise ValueError(
                "order 'informed' draws doubtful samples more often, which is no random sample of "
                "a population: take claim 'suite', or order 'uniform'"
            )
        return self


_COMPARISON = re.compile(r"(>=|<=|≥|≤|>|<|=)?\s*(\S+?)\s*([x×%]?)")


def _number(value: Any, *, least: bool, what: str) -> Any:
    """A limit written as a number or as a comparison in the direction that it has anyway."""
    if not isinstance(value, str):
        return value
    found = _COMPARISON.fullmatch(value.strip())
    try:
        number = float(found[2]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not math.isfinite(number):
        raise ValueError(f"give a number, or a comparison such as '{'>=' if least else '<='} 0.5'")
    sign = found[1]
    if sign and sign not in ((">=", "≥") if least else ("<=", "≤")):
        right = ">=" if least else "<="
        raise ValueError(
            f"{what} and has to be at {'least' if least else 'most'} the goal: write "
            f"'{right} {found[2]}', or the number alone"
        )
    return number / 100 if found[3] == "%" else number


def _speedup(value: Any) -> Any:
    return _number(value, least=True, what="a speed-up is baseline's time / candidate's")


def _ratio(value: Any) -> Any:
    return _number(value, least=False, what="this is candidate / baseline, less is better,")


def _score(value: Any) -> Any:
    return _number(value, least=True, what="a floor is the candidate's own score")


def _share(value: Any) -> Any:
    return _number(value, least=False, what="this is the largest drop")


_Goal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Speedup = Annotated[_Goal, BeforeValidator(_speedup)]
CostRatio = Annotated[_Goal, BeforeValidator(_ratio)]
Floor = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_score)]


class CostPolicy(BaseModel):
    """What a candidate has to cost, measured in rounds that run both models.

    Attributes
    ----------
    decode_speedup : float, optional
        Least speed-up of generating tokens, the baseline's time divided by the candidate's:
        ``1.3`` or ``">= 1.3"``.
    prefill_speedup : float, optional
        The same of reading prompts.
    encode_speedup : float, optional
        The same of reading texts, for encoders and classifiers.
    size_ratio : float, optional
        Largest size of the model's files, the candidate's divided by the baseline's: ``0.5`` or
        ``"<= .5"``.
    memory_ratio : float, optional
        The same of the memory that the model and its longest case take; on a GPU of its memory.
    energy_ratio : float, optional
        The same of the energy of a round, where a counter can be read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    decode_speedup: Speedup | None = None
    prefill_speedup: Speedup | None = None
    encode_speedup: Speedup | None = None
    size_ratio: CostRatio | None = None
    memory_ratio: CostRatio | None = None
    energy_ratio: CostRatio | None = None

    @model_validator(mode="after")
    def _some_goal(self) -> CostPolicy:
        if not self.goals:
            raise ValueError(f"cost names no goal; known are {', '.join(CostPolicy.model_fields)}")
        return self

    @model_serializer(mode="plain")
    def goals_as_numbers(self) -> dict[str, float]:
        """The goals that are set."""
        return self.goals

    @property
    def goals(self) -> dict[str, float]:
        """The goals that are set."""
        found = {name: getattr(self, name) for name in CostPolicy.model_fields}
        return {name: goal for name, goal in found.items() if goal is not None}


class TaskPolicy(BaseModel):
    """What a policy says about one task, or about a pattern of task names such as ``mmlu_*``.

    Attributes
    ----------
    tier : {"gating", "advisory"}
        Advisory tasks are tested and shown but do not enter the aggregated test.
    metric : str, optional
        Which metric counts for this task.
    filter : str, optional
        Which answer filter counts for this task.
    margin_pp : float, optional
        A margin of the task's own, in percentage points: on top of the aggregated decision this
        task alone must meet the rule with it.
    margin : float, optional
        The same in the metric's own unit, for scores that are not proportions.
    min_samples : int, optional
        Fewer paired samples of this task make the verdict INCONCLUSIVE.
    judge : JudgePolicy, optional
        The judge of this task, see the policy's own key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tier: Tier = "gating"
    metric: str | None = None
    filter: str | None = None
    margin_pp: float | None = Field(default=None, gt=0, lt=100)
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_samples: int | None = Field(default=None, ge=1)
    judge: JudgePolicy | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without keys that came later and are off: the digest of an older policy stays."""
        values: dict[str, Any] = dump(self)
        if self.judge is None:
            values.pop("judge", None)
        return values

    @property
    def has_margin(self) -> bool:
        """Whether the task must meet the rule by itself."""
        return self.margin_pp is not None or self.margin is not None


class GatePolicy(Prompting):
    """When a candidate passes, and how both models must have been asked, if that is given.

    Attributes
    ----------
    rule : {"no_degradation", "non_inferiority"}
        ``no_degradation``: FAIL when the aggregated one-sided test finds the candidate worse; PASS
        when it does not and the data could have shown a drop of the margin, or rule it out; else
        INCONCLUSIVE. ``non_inferiority``: PASS only when a drop as large as the margin is rejected,
        for all gating tasks together and for each that is established as worse (with ``min_p`` and
        ``max_drop`` for every one).
    alpha : float
        One-sided significance level: the chance to refuse a candidate that is not worse or, under
        ``non_inferiority``, to accept one that is worse by the margin.
    margin_pp : float
        The largest drop that would be accepted, in percentage points.
    margin : float, optional
        The same in the metric's own unit, e.g. nats; needed where scores are not proportions, and
        then in place of `margin_pp`.
    power : float
        Probability with which a drop of the margin must be detectable.
    aggregation : str
        How the gating tasks become one decision.
    metric : str, optional
        Metric of all tasks; by default the most usual one that a task has, see
        `mlflow_degrade.pair`.
    filter : str, optional
        Answer filter of all tasks, e.g. ``strict-match``; by default as for the metric.
    tasks : mapping from task name or pattern to TaskPolicy
        Overrides; an exact name wins over patterns, patterns are tried in order. A file of
        questions may be named as ``mine.csv`` or by its task, ``mine``.
    min_samples : int
        Fewer paired samples in all gating tasks make the verdict INCONCLUSIVE.
    on_underpowered : {"inconclusive", "warn"}
        Under ``no_degradation``, what to do when the data could not have shown a drop of the
        margin: no PASS, or a PASS with a warning among its reasons.
    implausible_gain_pp : float, optional
        A gain larger than this is INCONCLUSIVE: look for a leak or a wrong baseline first.
    portable : bool
        Whether a PASS must hold on other processors: without it being shown that the candidate's
        numbers do not depend on where it runs, the verdict is INCONCLUSIVE.
    confidence : float, optional
        Confidence level of the intervals shown; by default 1 − 2·alpha, so that they agree with the
        one-sided tests. The verdict does not depend on it.
    allow : tuple of str
        Refusals of the pairing to switch off, see `mlflow_degrade.pair`.
    evidence_experiments : tuple of str
        MLflow experiments whose evaluations a gate may use; by default those of the gate's own
        experiment. A gate file's list comes before this one.
    judge : JudgePolicy, optional
        A model that scores answers, and what people said of a random part of them: in every task
        with the judge's metric the change is corrected, and a PASS needs that a drop of the margin
        is ruled out.
    sequential : SequentialPolicy, optional
        Ask the candidate one sample after the other in a planned order, and stop as soon as a drop
        of the margin is ruled out or the candidate is worse; PASS then needs under both rules that
        the drop is ruled out. In a word: ``population`` or ``true``, ``suite`` for a claim about
        this very suite, ``informed`` for that with the doubtful samples first.
    cost : CostPolicy, optional
        What the candidate has to cost beside the baseline; every goal has to be shown for a PASS.
    floors : mapping from task name or pattern to float
        Least score of the candidate itself, to be shown for a PASS; matched as under `tasks`.
    relative_drop : float, optional
        The largest drop as a share of the baseline's score: for a PASS it has to be ruled out
        beside the margin.

    Examples
    --------
    >>> policy = GatePolicy.from_mapping({"margin_pp": 1, "tasks": {"gsm8k": {"tier": "advisory"}}})
    >>> policy.margin_pp, policy.task("gsm8k").tier, policy.task("arc_easy").tier
    (1.0, 'advisory', 'gating')
    >>> GatePolicy.from_mapping({"margn_pp": 1})
    Traceback (most recent call last):
    ...
    mlflow_degrade.core.errors.PolicyError: policy: unknown key 'margn_pp', did you mean ...
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = "no_degradation"
    alpha: float = Field(default=0.05, gt=0, le=0.5)
    margin_pp: float = Field(default=2.0, gt=0, lt=100)
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    power: float = Field(default=0.8, gt=0, lt=1)
    aggregation: Aggregation = DEFAULT_RULE
    metric: str | None = None
    filter: str | None = None
    tasks: dict[str, TaskPolicy] = Field(default_factory=dict)
    min_samples: int = Field(default=1, ge=1)
    on_underpowered: Literal["inconclusive", "warn"] = "inconclusive"
    implausible_gain_pp: float | None = Field(default=None, gt=0, le=100)
    portable: bool = False
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    allow: tuple[str, ...] = ()
    evidence_experiments: tuple[str, ...] = ()
    judge: JudgePolicy | None = None
    sequential: SequentialPolicy | None = None
    cost: CostPolicy | None = None
    floors: dict[str, Floor] = Field(default_factory=dict)
    relative_drop: Annotated[float, Field(gt=0, lt=1), BeforeValidator(_share)] | None = None

    @field_validator("sequential", mode="before")
    @classmethod
    def _in_a_word(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else None
        if isinstance(value, str):
            if value not in EARLY_STOPS:
                raise ValueError(f"known are {', '.join(EARLY_STOPS)}, true and false")
            return EARLY_STOPS[value]
        return value

    @model_validator(mode="after")
    def _tests_that_may_stop(self) -> GatePolicy:
        if self.sequential is None:
            return self
        if self.judge is not None or any(task.judge is not None for task in self.tasks.values()):
            raise ValueError("sequential and judge: labels of some samples need a fixed number")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"sequential: aggregation {self.aggregation!r} is of another package and has no "
                f"form that may stop; known are {', '.join(AGGREGATIONS)}"
            )
        return self

    @model_validator(mode="after")
    def _requirements_of_scores(self) -> GatePolicy:
        given = [
            n for n, on in (("floors", self.floors), ("relative_drop", self.relative_drop)) if on
        ]
        judged = self.judge is not None or any(t.judge is not None for t in self.tasks.values())
        for name in given:
            if self.sequential is not None:
                raise ValueError(
                    f"sequential and {name}: a score is bounded by a fixed number of samples; take "
                    "one of the two"
                )
            if judged:
                raise ValueError(
                    f"judge and {name}: labels correct changes, not scores; take one of the two"
                )
        return self

    @field_validator("allow")
    @classmethod
    def _known_allowances(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(names) - set(ALLOWABLE))
        if unknown:
            raise ValueError(f"{unknown} cannot be allowed; known are {list(ALLOWABLE)}")
        return tuple(sorted(set(names)))

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without keys that came later and are off: the digest of an older policy stays."""
        values: dict[str, Any] = dump(self)
        later = {
            "portable": self.portable or None,
            "judge": self.judge,
            "sequential": self.sequential,
            "cost": self.cost,
            "floors": self.floors or None,
            "relative_drop": self.relative_drop,
            **dict.fromkeys(Prompting.model_fields),
        }
        later |= self.stated()
        return {name: value for name, value in values.items() if later.get(name, 0) is not None}

    @property
    def shown_confidence(self) -> float:
        """Confidence level of the intervals: as given, else 1 − 2·alpha, at least one half."""
        if self.confidence is not None:
            return self.confidence
        return max(round(1 - 2 * self.alpha, 12), 0.5)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "policy") -> GatePolicy:
        """Validate a mapping; errors name `source`, the key, the value and the limit.

        Raises
        ------
        PolicyError
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise PolicyError("\n".join(explain(error, source, cls, TaskPolicy))) from error

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> GatePolicy:
        """Read a policy file.

        Raises
        ------
        PolicyError
            The file cannot be read, is not YAML, gives a key twice, or violates the schema.
        """
        values = read_yaml(path, f"policy file {path}", PolicyError)
        if values is None:
            values = {}
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise PolicyError(f"policy file {path} holds a {kind}; a mapping of keys is needed.")
        return cls.from_mapping(values, str(path))

    def task(self, name: str) -> TaskPolicy:
        """What holds for one task: its own entry, else the first matching pattern, else default."""
        override = self._override(name)
        return override.model_copy(
            update={
                "metric": override.metric or self.metric,
                "filter": override.filter or self.filter,
            }
        )

    def _override(self, name: str) -> TaskPolicy:
        # A file of questions may be named as it is where tasks are asked.
        tasks = {task_of(key): entry for key, entry in self.tasks.items()}
        override = tasks.get(name)
        if override is None:
            matches = (p for pattern, p in tasks.items() if fnmatchcase(name, pattern))
            override = next(matches, TaskPolicy())
        return override

    def floors_of(self, tasks: Collection[str]) -> dict[str, float]:
        """The floor of each task that has one, given the names of the evaluated tasks.

        Raises
        ------
        PolicyError
            A name that is no pattern was not evaluated, or a pattern fits no task.
        """
        floors = {task_of(key): floor for key, floor in self.floors.items()}
        for key in floors:
            known = key in tasks or any(fnmatchcase(name, key) for name in tasks)
            if not known:
                raise PolicyError(
                    f"floors.{key} = {floors[key]:g}: no such task was evaluated; evaluated: "
                    f"{sorted(tasks)}. Evaluate it, or take the floor out."
                )
        found = {}
        for name in tasks:
            floor = floors.get(name)
            if floor is None:
                matches = (its for pattern, its in floors.items() if fnmatchcase(name, pattern))
                floor = next(matches, None)
            if floor is not None:
                found[name] = floor
        return found

    def margin_of(self, task: str | None = None, *, proportion: bool = True) -> float | None:
        """The margin that holds for a task, or for all of them, in the unit of the scores.

        Parameters
        ----------
        task : str, optional
        proportion : bool
            Whether the scores are proportions, so that percentage points apply.

        Returns
        -------
        float or None
            None where scores are no proportions and no margin in their unit is given.
        """
        for level in (self,) if task is None else (self.task(task), self):
            if level.margin is not None:
                return level.margin
            if proportion and level.margin_pp is not None:
                return level.margin_pp / 100
        return None

    def choices(self, column: Literal["metric", "filter"], tasks: Iterable[str]) -> dict[str, str]:
        """Metric or filter per task, for `mlflow_degrade.pair`; unset ones are left out."""
        found = {name: getattr(self.task(name), column) for name in tasks}
        return {name: value for name, value in found.items() if value is not None}

    def judges(self, metrics: Mapping[str, Collection[str]]) -> dict[str, JudgePolicy]:
        """The judge of each task that has one, given the metrics that the tasks have.

        Raises
        ------
        PolicyError
            No task has the judge's metric, or a task names another one as well.
        """
        found = {}
        for name, known in metrics.items():
            own = self._override(name).judge
            judge = own or (self.judge if self.judge and self.judge.metric in known else None)
            if judge is None:
                continue
            metric = self.task(name).metric
            if metric not in (None, judge.metric):
                raise PolicyError(
                    f"{name}: metric is {metric!r} and judge.metric {judge.metric!r}; the judge's "
                    "is the one that is compared, so leave metric out."
                )
            found[name] = judge
        if self.judge is not None and self.judge not in found.values():
            named = sorted({metric for known in metrics.values() for metric in known})
            raise PolicyError(
                f"judge.metric = {self.judge.metric!r}: no task has it on both sides; there are "
                f"{named}."
            )
        return found

    def pair(
        self,
        baseline: SampleScores,
        candidate: SampleScores,
        *,
        allow: Collection[str] | None = None,
    ) -> PairedScores:
        """Pair two models' samples with this policy's metrics and filters.

        Parameters
        ----------
        baseline, candidate : SampleScores
        allow : collection of str, optional
            Refusals to switch off; those of the policy by default.

        Notes
        -----
        Errors are those of `mlflow_degrade.pair`; models that were not asked as the policy says are
        refused in the same way.
        """
        common = sorted(set(baseline.tasks) & set(candidate.tasks))
        judges = {}
        if self.judge is not None or any(entry.judge for entry in self.tasks.values()):
            if baseline.streamed or candidate.streamed:
                raise PolicyError(
                    "a judge that people's labels correct needs all samples in memory, and these "
                    "stay in their files: compare with --no-stream, or take 'judge' out."
                )
            sides = baseline.metrics_of_tasks(), candidate.metrics_of_tasks()
            judges = self.judges({name: sides[0][name] & sides[1][name] for name in common})
        judged = {name: judge.metric for name, judge in judges.items()}
        allowed = self.allow if allow is None else allow
        paired = pair(
            baseline,
            candidate,
            metric=self.choices("metric", common) | judged,
            filter=self.choices("filter", common),
            allow=allowed,
            part=self.sequential is not None,
        )
        for side, scores in (("baseline", baseline), ("candidate", candidate)):
            if wrong := self.contradictions(scores.prompting):
                raise PromptMismatchError(
                    f"the {side} was not asked as the policy says: {'; '.join(wrong)}. Evaluate "
                    "both again as the policy says, or change it."
                )
        if self.sequential is not None:
            return replace(paired, order=self.order_of(baseline))
        return with_gold(paired, {n: j.gold for n, j in judges.items()}) if judges else paired

    def order_of(self, baseline: SampleScores) -> PlannedOrder:
        """The order in which a candidate is asked the baseline's samples.

        Parameters
        ----------
        baseline : SampleScores
        """
        asked = self.sequential or SequentialPolicy()
        return PlannedOrder.of(baseline, asked.seed, informed=asked.order == "informed")

    def digest(self) -> str:
        """SHA-256 of the policy's canonical JSON."""
        return digest_json(self.model_dump(mode="json"))


def explain(error: ValidationError, source: str, *levels: type[BaseModel]) -> Iterable[str]:
    """One line per mistake in a strict configuration: key, value, limit, nearest known key.

    Parameters
    ----------
    error : pydantic.ValidationError
    source : str
        Name of the file or argument.
    *levels : type of BaseModel
        The configuration's class, and that of the entries nested in it, if any.
    """
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        name = ".".join(path)
        if item["type"] == "extra_forbidden":
            level = levels[-1 if len(path) > 2 else 0]
            nested: dict[str, type[BaseModel]] = {
                "judge": JudgePolicy, "sequential": SequentialPolicy, "cost": CostPolicy
            }  # fmt: skip
            known = nested.get(path[-2] if len(path) > 1 else "", level).model_fields
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.4)
            guess = f"did you mean {near[0]!r}?" if near else f"known: {list(known)}."
            yield f"{source}: unknown key {name!r}, {guess}"
        else:
            message = item["msg"].removeprefix("Value error, ")
            where = f"{source}: {name} = {item['input']!r}" if name else source
            yield f"{where}: {message}."
