"""Join the samples of a baseline and a candidate, or refuse with the reason.

A paired test is only as good as its pairs: the same document, under the same prompt, scored with
the same metric. Everything that would break this is an error of its own, which names the first
offending samples and the option that allows it where allowing makes sense.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ..core import numbers
from ..core.display import card
from ..core.errors import EmptySamplesError, UnknownNameError
from ..stats._exchangeable_units import link
from .matching import (
    Alignment,
    Facts,
    Match,
    Side,
    Some,
    TaskRows,
    align,
    match,
    refuse_duplicates,
    refuse_unpaired,
)
from .row_index import count_repeated
from .schema import FEATURE_PREFIX, TRACE
from .table import SampleScores

if TYPE_CHECKING:
    from .gold import Gold
    from .planned_order import PlannedOrder
import re
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from ..core.errors import (
    MetricMismatchError,
    PromptMismatchError,
    SameModelError,
    TaskVersionError,
    UnpairedSamplesError,
)
from ..core.prompting import differences
from .matching import SIDE_NAMES

if TYPE_CHECKING:
    pass


# Whether two sample tables may be compared at all: the refusals behind `pair`.

# Where a task has several metrics and the policy names none: the headline metric of the harness,
# the plain one before the normalized one. The choice is recorded with the result.
METRIC_PREFERENCE = (
    "exact_match", "acc", "pass@1", "acc_norm", "f1", "prompt_level_strict_acc", "word_perplexity",
    "ndcg_at_10", "order_agreement",
)  # fmt: skip
FILTER_PREFERENCE = ("none", "strict-match")

# Values of these can lie between 0 and 1 without being a share of anything.
NOT_PROPORTIONS = re.compile(r"perplexity|ppl|bits_per_byte|likelihood|logprob|nll|loss|entropy")


_TURNS, _TEMPLATE = "fewshot_as_multiturn", "chat_template_sha"
_USUAL_CHANGES = "Few-shot examples, template or chat template changed"

# Of different answers: less than this two good models may have in common.
_TELLING_CHARACTERS = 1000


def refuse_same_model(a: SampleScores, b: SampleScores, allowed: tuple[str, ...]) -> None:
    """Refuse two tables of one model, known by its content digest."""
    same = a.model_digest is not None and a.model_digest == b.model_digest
    if same and "same-model" not in allowed:
        raise SameModelError(
            f"baseline and candidate are the same model ({a.model_digest}): a model is never worse "
            "than itself. Check the two references; allow 'same-model' to measure a rerun's noise."
        )


def refuse_other_prompting(a: SampleScores, b: SampleScores, allowed: tuple[str, ...]) -> list[str]:
    """Refuse models that were asked in different ways, by the names of the options."""
    # One message or turns: that shows in the prompts, and only where there are examples.
    differ = {k: v for k, v in differences(a.prompting, b.prompting).items() if k != _TURNS}
    if not differ:
        return []
    shown = {_TEMPLATE: "apply_chat_template (SHA-256 of the template)"}
    text = "; ".join(
        f"{shown.get(name, name)}: {left or None!r} and {right or None!r}"
        for name, (left, right) in differ.items()
    )
    if "prompts" not in allowed:
        raise PromptMismatchError(
            f"baseline and candidate were asked in different ways ({text}). Evaluate both alike, "
            "or allow 'prompts' if that is what is compared."
        )
    return [f"asked in different ways ({text})"]


def refuse_same_answers(
    tasks: Sequence[PairedTask],
    baseline: SampleScores,
    candidate: SampleScores,
    allowed: tuple[str, ...],
    same_texts: Callable[[PairedTask], bool | None] | None = None,
) -> tuple[list[str], str]:
    """Refuse one log on both sides, known by all its scores and answers."""
    # Two models may have the same scores on a few samples, or give the same few answers to all of
    # them; they hardly ever write the same texts or have the same log-likelihoods.
    digests = baseline.model_digest, candidate.model_digest
    if "same-model" in allowed or (None not in digests and digests[0] != digests[1]):
        return [], ""
    alike = [t for t in tasks if not t.difference.any() and t.unscored[:2] == (0, 0)]
    look = same_texts or (lambda task: _same_texts(task, baseline, candidate))
    found = {}
    for task in alike:
        known = [side.answer_digests.get(task.name) for side in (baseline, candidate)]
        found[task.name] = look(task) if None in known else known[0] == known[1]
    same = [name for name, equal in found.items() if equal]
    if len(alike) < len(tasks) or False in found.values():
        return [f"{name}: all scores and answers are the same on both sides" for name in same], ""
    n = sum(task.n for task in tasks)
    if same:
        raise SameModelError(
            f"all {n} scores and answers are the same on both sides ({', '.join(same)}): this is "
            "one log, or one model, compared with itself. Check the two references; allow "
            "'same-model' if that is meant."
        )
    return [], (
        f"all {n} scores are the same on both sides, and nothing in the logs (different answers, "
        "log-likelihoods or model digests) shows that these are two models: log the answers, or "
        "allow 'same-model'"
    )


def _same_texts(task: PairedTask, baseline: SampleScores, candidate: SampleScores) -> bool | None:
    """Whether both sides gave the same answers; None where these are too few to tell."""
    sides = ((baseline, task.baseline_row), (candidate, task.candidate_row))
    left, right = (side.table["response"].take(pa.array(rows)) for side, rows in sides)
    if left.null_count == task.n or right.null_count == task.n:
        return None
    if not left.equals(right):
        return False
    distinct = pc.unique(left.drop_null())
    written = pc.sum(pc.utf8_length(distinct)).as_py() or 0
    return same_answers(True, len(distinct), written, task.n)


def same_answers(equal: bool, distinct: int, written: int, n: int) -> bool | None:
    """Whether answers that are all equal, or not, tell that they are of one model."""
    if not equal:
        return False
    # Labels repeat themselves, and a few words may be the only right answer.
    return True if 2 * distinct > n and written >= _TELLING_CHARACTERS else None


def common_tasks(
    baseline: SampleScores, candidate: SampleScores, allowed: tuple[str, ...], *, part: bool
) -> tuple[list[str], list[str]]:
    """Names of the tasks to pair, sorted, and notes on what differs."""
    notes = []
    left, right = set(baseline.tasks), set(candidate.tasks)
    if left != right and not (part and right < left):
        text = f"baseline only: {sorted(left - right)}; candidate only: {sorted(right - left)}"
        if "unpaired" not in allowed or not left & right:
            raise UnpairedSamplesError(
                f"the tasks differ ({text}). Evaluate both models on the same tasks"
                + ("." if not left & right else ", or allow 'unpaired' to compare the common ones.")
            )
        notes.append(f"tasks on one side only are left out ({text})")
    common = sorted(left & right)
    va, vb = baseline.task_versions, candidate.task_versions
    differ = {t: (va[t], vb[t]) for t in common if t in va and t in vb and va[t] != vb[t]}
    if differ:
        if "task-versions" not in allowed:
            raise TaskVersionError(
                f"task versions differ (baseline, candidate): {differ}. A new version is another "
                "test; evaluate again, or allow 'task-versions'."
            )
        notes.append(f"task versions differ: {differ}")
    return common, notes


def processor_notes(baseline: SampleScores, candidate: SampleScores) -> list[str]:
    """What to know where two models were computed on processors of two kinds."""
    left, right = baseline.origin, candidate.origin
    if left is None or right is None or left.processor.same_kind(right.processor):
        return []
    if baseline.model_digest is not None and baseline.model_digest == candidate.model_digest:
        return []  # of one model the processors are what is compared
    return [
        f"the baseline was computed on {left.processor}, the candidate elsewhere "
        f"({'; '.join(left.processor.differences(right.processor))}): part of a difference may be "
        "the processors'; evaluate both on one to tell"
    ]


def choose(
    column: str,
    task: str,
    present: Sequence[set[str]],
    wanted: str | Mapping[str, str] | None,
    preference: tuple[str, ...],
) -> str:
    """The metric or filter to pair, of those that each side has."""
    common = present[0] & present[1]
    name = wanted.get(task) if isinstance(wanted, Mapping) else wanted
    if name is not None and name not in common:
        raise MetricMismatchError(
            f"task {task!r} has no {column} {name!r} on both sides; baseline has "
            f"{sorted(present[0])}, candidate {sorted(present[1])}."
        )
    if name is None:
        if not common:
            raise MetricMismatchError(
                f"task {task!r} has no {column} in common: baseline has {sorted(present[0])}, "
                f"candidate {sorted(present[1])}. Score both models with the same {column}."
            )
        name = next((p for p in preference if p in common), min(common))
    return name


def _chosen(
    column: str,
    pair: TaskRows,
    wanted: str | Mapping[str, str] | None,
    preference: tuple[str, ...],
) -> tuple[str, TaskRows]:
    """The metric or filter to pair, and the rows that have it."""
    labels = [side.labels(column, own) for side, own in zip(pair.sides, pair.rows, strict=True)]
    present = [
        {names[code] for code in np.flatnonzero(np.bincount(codes))} for names, codes in labels
    ]
    name = choose(column, pair.task, present, wanted, preference)
    left, right = (
        own if len(here) == 1 else own[codes == names.index(name)]
        for (names, codes), own, here in zip(labels, pair.rows, present, strict=True)
    )
    return name, replace(pair, rows=(left, right))


def direction(task: str, metric: str, found: Sequence[list[bool]]) -> bool:
    """Whether higher is better, which both sides must agree on."""
    if found[0] != found[1] or len(found[0]) != 1:
        raise MetricMismatchError(
            f"task {task!r}, metric {metric!r}: higher_is_better is {found[0]} for the "
            f"{SIDE_NAMES[0]} and {found[1]} for the {SIDE_NAMES[1]}; it must be one value on both."
        )
    return bool(found[0][0])


#: Columns in which partners must agree, and what is in them.
_SAME = (("prompt_hash", "prompts"), ("target_hash", "targets"))


def find_differing(pair: TaskRows, same: tuple[str, ...]) -> dict[str, Some]:
    """Pairs whose prompts or targets differ; what is not recorded does not count."""
    found = {}
    for column, _ in _SAME:
        left, right = (side.table[column] for side in pair.sides)
        if column in same or left.null_count == len(left) or right.null_count == len(right):
            continue
        differs = pc.fill_null(pc.not_equal(*pair.columns(column)), False)
        count = pc.sum(differs).as_py() or 0
        if count:
            found[column] = pair.some(0, np.flatnonzero(differs.to_numpy()), count)
    return found


def refuse_pairs(
    task: str,
    facts: Facts,
    allowed: tuple[str, ...],
    sides: tuple[SampleScores, SampleScores],
    *,
    part: bool,
) -> list[str]:
    """Refuse a task by what its pairing found, or note what was allowed."""
    notes = refuse_duplicates(task, facts, allowed)
    notes += refuse_unpaired(task, facts, allowed, part=part)
    for column, allowance in _SAME:
        found = facts.differing.get(column, Some())
        if found.count and allowance not in allowed:
            turns = differences(*(side.prompting for side in sides)).get(_TURNS)
            why = f"{_TURNS} is {turns[0]} and {turns[1]}" if turns else _USUAL_CHANGES
            raise PromptMismatchError(
                f"task {task!r}: {found.count} of {facts.pairs} samples have different {allowance} "
                f"on the two sides, first doc_ids: {list(found.ids)}. {why}; evaluate both models "
                f"alike, or allow '{allowance}'."
            )
        if found.count:
            notes.append(f"{found.count} samples have different {allowance}")
    return [f"{task}: {note}" for note in notes]


# From pairs of rows to the items of a task: repeats averaged, dependent items marked.


@dataclass(frozen=True)
class Averaged:
    """Scores per item: means over its runs, and where its first run is."""

    baseline: FloatArray
    candidate: FloatArray
    first: IntArray
    repeats: int
    run_variance: float


def average(baseline: FloatArray, candidate: FloatArray, item: IntArray | None) -> Averaged:
    """Mean per item, items in order of their first run."""
    if item is None or np.unique(item).size == item.size:
        return Averaged(baseline, candidate, np.arange(baseline.size), 1, float("nan"))
    code, labels = pd.factorize(item)
    count = np.bincount(code)
    first = np.full(len(labels), item.size, dtype=np.int64)
    np.minimum.at(first, code, np.arange(item.size))
    mean_baseline, s2_baseline = _group_moments(baseline, code, count)
    mean_candidate, s2_candidate = _group_moments(candidate, code, count)
    between = s2_baseline + s2_candidate
    known = between[np.isfinite(between)]
    variance = float(known.mean()) if known.size else float("nan")
    return Averaged(mean_baseline, mean_candidate, first, int(count.max()), variance)


def join_clusters(labels: pa.ChunkedArray, document: IntArray | None) -> IntArray | None:
    """Codes of the clusters, in which copies of one document stand together; None without any."""
    if labels.null_count == len(labels):
        return document
    codes: IntArray = pd.factorize(labels.to_pandas())[0].astype(np.int64)
    lonely = np.flatnonzero(codes < 0)
    codes[lonely] = codes.max(initial=-1) + 1 + np.arange(lonely.size)
    return codes if document is None else link(codes, document)[codes]


def _group_moments(
    values: FloatArray, group: IntArray, count: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Mean and unbiased variance per group; the variance of a single run is NaN."""
    mean = np.bincount(group, values) / count
    squares = np.bincount(group, (values - mean[group]) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return mean, np.where(count > 1, squares / (count - 1), np.nan)


FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: What `pair` refuses by default and can be told to allow.
ALLOWABLE = ("duplicates", "prompts", "same-model", "targets", "task-versions", "unpaired")


@dataclass(frozen=True)
class PairedTask:
    """The paired samples of one task.

    Attributes
    ----------
    name, metric, filter : str
        What was scored, and how.
    higher_is_better : bool
        Direction of the scores; `difference` is oriented already.
    baseline, candidate : ndarray of float64, shape (n,)
        Score of each item, averaged over its repeats.
    difference : ndarray of float64, shape (n,)
        Candidate − baseline, oriented so that positive is better.
    cluster : ndarray of int64, shape (n,), or None
        Codes of the clusters the items belong to; copies of one document are in one cluster.
    document : ndarray of int64, shape (n,), or None
        Codes of the documents, where one occurs more than once.
    repeats : int
        Largest number of scored runs per item.
    run_variance : float
        Mean over items of s²(candidate) + s²(baseline) between repeats; NaN without repeats.
    unscored : tuple of int
        Items left out because they have no score: (baseline only, candidate only, both).
    duplicates : int
        Surplus samples that share their document with another one.
    baseline_row, candidate_row : ndarray of int64, shape (n,)
        Row of each item's first repeat in the two tables, to look up prompts and answers.
    """

    name: str
    metric: str
    filter: str
    higher_is_better: bool
    baseline: FloatArray
    candidate: FloatArray
    difference: FloatArray
    cluster: IntArray | None
    document: IntArray | None
    repeats: int
    run_variance: float
    unscored: tuple[int, int, int]
    duplicates: int
    baseline_row: IntArray
    candidate_row: IntArray

    @property
    def n(self) -> int:
        """Number of paired items."""
        return int(self.difference.size)

    def worst(self, limit: int) -> IntArray:
        """Positions of the items that lost most, the first of the baseline's first among equals."""
        return np.argsort(self.difference, kind="stable")[:limit]

    @cached_property
    def binary(self) -> bool:
        """Whether every item is a single right-or-wrong outcome, independent of the others."""
        return self.repeats == 1 and self.cluster is None and self.right_or_wrong

    @cached_property
    def right_or_wrong(self) -> bool:
        """Whether every score is 0 or 1."""
        return all(bool(np.isin(s, (0.0, 1.0)).all()) for s in (self.baseline, self.candidate))

    @cached_property
    def proportion(self) -> bool:
        """Whether the scores are shares, so that percentage points mean something."""
        if NOT_PROPORTIONS.search(self.metric.lower()):
            return False
        return all(s.min() >= 0 and s.max() <= 1 for s in (self.baseline, self.candidate))

    @cached_property
    def regressions(self) -> int:
        """b: items on which the candidate is worse."""
        return int(np.count_nonzero(self.difference < 0))

    @cached_property
    def improvements(self) -> int:
        """c: items on which the candidate is better."""
        return int(np.count_nonzero(self.difference > 0))


@dataclass(frozen=True, repr=False)
class PairedScores:
    """Paired samples of all tasks; made by `pair`.

    Attributes
    ----------
    tasks : tuple of PairedTask
        Sorted by name.
    baseline, candidate : SampleScores
        The tables the pairs were made from.
    allowed : tuple of str
        Refusals that were switched off.
    notes : tuple of str
        What a reader of the result has to know about the pairing.
    doubt : str
        Why nothing shows that two models were compared, which forbids a PASS; empty else.
    gold : mapping
        Task to what people said of its samples, where a policy corrects a judge.
    order : PlannedOrder or None
        The order in which the baseline's samples were planned to be asked, where a policy may stop
        before the last of them; the tasks then hold those that count.
    """

    tasks: tuple[PairedTask, ...]
    baseline: SampleScores
    candidate: SampleScores
    allowed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    doubt: str = ""
    gold: Mapping[str, Gold] = field(default_factory=dict)
    order: PlannedOrder | None = None

    def __repr__(self) -> str:
        names = ", ".join(task.name for task in self.tasks[:3])
        more = f" and {len(self.tasks) - 3} more" if len(self.tasks) > 3 else ""
        return f"PairedScores({numbers.count(self.n)} pairs of {names}{more})"

    def _repr_html_(self) -> str:
        sides = [scores.model or side for side, scores in
                 (("candidate", self.candidate), ("baseline", self.baseline))]  # fmt: skip
        rows = [
            (t.name, t.metric, numbers.count(t.n), f"{t.regressions} / {t.improvements}",
             numbers.score(float(t.baseline.mean()), proportion=t.proportion),
             numbers.score(float(t.candidate.mean()), proportion=t.proportion),
             "/".join(map(str, t.unscored)))
            for t in self.tasks
        ]  # fmt: skip
        return card(
            f"{numbers.count(self.n)} pairs: {sides[0]} against {sides[1]}",
            sentences=filter(None, [*self.notes, self.doubt]),
            columns=("", "metric", "pairs", "worse / better", "baseline", "candidate", "unscored"),
            rows=rows,
            note="Nothing is decided yet. Unscored: baseline only / candidate only / both.",
        )

    @property
    def n(self) -> int:
        """Number of paired items in all tasks."""
        return sum(task.n for task in self.tasks)

    def shared_documents(self, tasks: Sequence[PairedTask] | None = None) -> list[IntArray] | None:
        """Which items of different tasks are the same document.

        Parameters
        ----------
        tasks : sequence of PairedTask, optional
            All by default.

        Returns
        -------
        list of ndarray of int64, or None
            Per task a code per item, equal where the document hash is; None where no document
            occurs twice, which is found out without looking at the texts.
        """
        chosen = self.tasks if tasks is None else tasks
        column, index = self.baseline.table["doc_hash"], self.baseline.row_index
        # Distinct keys prove distinct texts; equal ones leave it to the texts.
        if index.documents_differ:
            return None
        rows = np.concatenate([task.baseline_row for task in chosen])
        if not count_repeated(index.document_keys[rows]):
            return None
        texts = column.take(pa.array(rows)).combine_chunks().dictionary_encode()
        codes = texts.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return np.split(codes, np.cumsum([task.n for task in chosen])[:-1])

    @cached_property
    def _answers(self) -> tuple[pa.ChunkedArray | None, pa.ChunkedArray | None]:
        left, right = self.baseline.table, self.candidate.table
        return bare_answers(left["response"]), bare_answers(right["response"])

    def changed_answers(self, task: PairedTask) -> tuple[int, int | None] | None:
        """Items of a task that were answered differently, and those of them wrong before and after.

        None where not all answers of both sides are known; the second number is None where scores
        are not right or wrong.
        """
        before, after = self._answers
        if before is None or after is None:
            return None
        sides = before.take(pa.array(task.baseline_row)), after.take(pa.array(task.candidate_row))
        # Where answers are known for some items only, that may depend on their being right.
        if sides[0].null_count or sides[1].null_count:
            return None
        changed: npt.NDArray[np.bool_] = pc.not_equal(*sides).to_numpy()
        if not task.right_or_wrong:
            return int(changed.sum()), None
        wrong = (task.baseline == 0.0) & (task.candidate == 0.0)
        return int(changed.sum()), int((changed & wrong).sum())

    def items(self, task: str, where: npt.NDArray[Any] | None = None) -> pd.DataFrame:
        """Items of one task with prompts, targets, both answers and features.

        Parameters
        ----------
        task : str
        where : ndarray, optional
            Boolean mask or indices of the items wanted (all by default).

        Returns
        -------
        DataFrame
            Columns ``task, doc_id, doc_hash, baseline, candidate, difference, prompt, target,
            baseline_response, candidate_response`` and the features without their prefix; of traces
            also ``baseline_trace, candidate_trace``, where to look at them.
        """
        chosen = next((t for t in self.tasks if t.name == task), None)
        if chosen is None:
            raise UnknownNameError("task", task, [t.name for t in self.tasks])
        index = np.arange(chosen.n) if where is None else np.arange(chosen.n)[where]
        left = self.baseline.rows(chosen.baseline_row[index])
        right = self.candidate.rows(chosen.candidate_row[index])
        columns: dict[str, Any] = {
            "task": [task] * len(index),
            "doc_id": left["doc_id"].to_pylist(),
            "doc_hash": left["doc_hash"].to_pylist(),
            "baseline": chosen.baseline[index].astype(np.float64),
            "candidate": chosen.candidate[index].astype(np.float64),
            "difference": chosen.difference[index].astype(np.float64),
            "prompt": left["prompt"].to_pylist(),
            "target": left["target"].to_pylist(),
            "baseline_response": left["response"].to_pylist(),
            "candidate_response": right["response"].to_pylist(),
        }
        for side, rows in (("baseline", left), ("candidate", right)):
            if TRACE in rows.column_names:
                columns[f"{side}_{TRACE}"] = rows[TRACE].to_pylist()
        for name in self.baseline.features:
            columns[name] = left[FEATURE_PREFIX + name].to_pylist()
        return pd.DataFrame(columns)

    def up_to(self, units: int) -> PairedScores:
        """The pairs within the first units of the planned order; all where there is none.

        Parameters
        ----------
        units : int
        """
        if self.order is None:
            return self
        places = self.order.places(self.baseline)
        parts = [(task, places[task.baseline_row] < units) for task in self.tasks]
        tasks = [task if keep.all() else _part(task, keep) for task, keep in parts if keep.any()]
        return replace(self, tasks=tuple(tasks))

    def flips(self, limit: int | None = None) -> pd.DataFrame:
        """Items that changed, regressions first and the largest change first.

        Parameters
        ----------
        limit : int, optional
            Keep at most so many, spread evenly over the tasks.
        """
        changed = {task.name: np.flatnonzero(task.difference) for task in self.tasks}
        flipped = sum(1 for rows in changed.values() if rows.size)
        share = None if limit is None else -(-limit // max(1, flipped))
        parts = []
        for task in self.tasks:
            rows = changed[task.name]
            order = rows[np.argsort(task.difference[rows], kind="stable")][:share]
            if order.size:
                parts.append(self.items(task.name, order))
        if not parts:
            return pd.DataFrame(columns=["task", "doc_id", "baseline", "candidate", "difference"])
        frame = pd.concat(parts, ignore_index=True)
        return frame.sort_values("difference", kind="stable", ignore_index=True)[:limit]


def bare_answers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Answers without the blanks around them; None where nothing was logged."""
    if column.null_count == len(column):
        return None
    # Offsets of 64 bits, because taking rows puts chunks together.
    return pc.utf8_trim_whitespace(column.cast(pa.large_string()))


def _part(task: PairedTask, keep: npt.NDArray[np.bool_]) -> PairedTask:
    """Some items of a task."""
    names = ("baseline", "candidate", "difference", "baseline_row", "candidate_row")
    chosen: dict[str, Any] = {name: getattr(task, name)[keep] for name in names}
    for name in ("cluster", "document"):
        codes = getattr(task, name)
        if codes is not None:
            chosen[name] = np.unique(codes[keep], return_inverse=True)[1].astype(np.int64)
    return replace(task, **chosen)


def pair(
    baseline: SampleScores,
    candidate: SampleScores,
    *,
    metric: str | Mapping[str, str] | None = None,
    filter: str | Mapping[str, str] | None = None,
    allow: Collection[str] = (),
    part: bool = False,
) -> PairedScores:
    """Pair two models' samples by (task, document, metric, filter, repeat).

    Parameters
    ----------
    baseline, candidate : SampleScores
        Tables of the two models.
    metric, filter : str or mapping from task to str, optional
        Which metric and which answer filter to pair. By default the task's only one, else the
        first present of ``exact_match, acc, pass@1, acc_norm, f1, prompt_level_strict_acc,
        word_perplexity`` (filters: ``none, strict-match``), else the first by name.
    allow : collection of str
        Refusals to switch off, from `ALLOWABLE`: ``unpaired`` keeps the common samples,
        ``duplicates`` matches samples with the same key in order of appearance, ``prompts``,
        ``targets`` and ``task-versions`` accept that these differ, ``same-model`` is for reruns
        and for logs with the same scores and answers.
    part : bool
        Whether the candidate may have been asked a part of the baseline's samples only.

    Returns
    -------
    PairedScores
        The common tasks with their paired items, and notes on what differed.

    Raises
    ------
    SameModelError, TaskVersionError, UnpairedSamplesError, DuplicateSampleError
        With both names, versions, or the first offending samples.
    MetricMismatchError, PromptMismatchError, EmptySamplesError
        Each with the first offending samples.

    Notes
    -----
    Where several samples share a document (some benchmarks repeat themselves), ``doc_id`` breaks
    the tie, the surplus is counted in `PairedTask.duplicates`, and the copies are one cluster,
    because a question that is asked three times is one observation. Repeated runs are averaged per
    item, because runs of one item are not independent samples.

    Examples
    --------
    >>> import pandas as pd
    >>> def scores(values, model):
    ...     columns = {"task": "qa", "doc_id": range(3), "metric": "acc", "score": values}
    ...     return SampleScores.from_pandas(pd.DataFrame(columns), model=model)
    >>> paired = pair(scores([1, 1, 0], "fp32"), scores([1, 0, 0], "int8"))
    >>> paired.tasks[0].regressions, paired.tasks[0].improvements, paired.n
    (1, 0, 3)
    """
    allowed = tuple(sorted(set(allow)))
    for name in allowed:
        if name not in ALLOWABLE:
            raise UnknownNameError("allowance", name, ALLOWABLE)
    refuse_same_model(baseline, candidate, allowed)
    names, notes = common_tasks(baseline, candidate, allowed, part=part)
    notes += processor_notes(baseline, candidate)
    notes += refuse_other_prompting(baseline, candidate, allowed)
    for wanted in (metric, filter):
        for name in wanted if isinstance(wanted, Mapping) else ():
            if name not in names:
                raise UnknownNameError("task", name, names)
    if baseline.streamed or candidate.streamed:
        from .streaming import pair_streams

        return pair_streams(baseline, candidate, names, notes, allowed, metric, filter, part=part)
    alignment = align(baseline, candidate)
    left, right = Side(baseline), Side(candidate)
    tasks = []
    for name in names:
        rows = TaskRows(name, (left, right), (left.rows(name), right.rows(name)), allowed, part)
        task, task_notes = _pair_task(rows, alignment, metric, filter)
        tasks.append(task)
        notes += task_notes
    same, doubt = refuse_same_answers(tasks, baseline, candidate, allowed)
    return PairedScores(tuple(tasks), baseline, candidate, allowed, tuple(notes + same), doubt)


def _pair_task(
    pair: TaskRows,
    alignment: Alignment | None,
    metric: str | Mapping[str, str] | None,
    filter: str | Mapping[str, str] | None,
) -> tuple[PairedTask, list[str]]:
    task = pair.task
    metric_name, pair = _chosen("metric", pair, metric, METRIC_PREFERENCE)
    filter_name, pair = _chosen("filter", pair, filter, FILTER_PREFERENCE)
    given = [pc.unique(side).sort().to_pylist() for side in pair.columns("higher_is_better")]
    higher = direction(task, metric_name, given)
    found = match(pair, alignment)
    pair = replace(pair, rows=(found.baseline, found.candidate))
    facts = replace(found.facts, differing=find_differing(pair, found.same))
    left, right = pair.sides
    both = SampleScores(left.table), SampleScores(right.table)
    notes = refuse_pairs(task, facts, pair.allowed, both, part=pair.part)
    scores = [side.astype(np.float64) for side in pair.numbers("score")]
    paired = items_of_task(
        (task, metric_name, filter_name),
        replace(found, facts=facts),
        (scores[0], scores[1]),
        lambda first: left.column("cluster", found.baseline[first]),
        higher=higher,
    )
    return paired, notes


def unscored_pairs(scores: tuple[FloatArray, FloatArray]) -> tuple[int, int, int]:
    """How many pairs lack a score: on the baseline's side only, the candidate's only, on both."""
    left, right = np.isnan(scores[0]), np.isnan(scores[1])
    both = int(np.count_nonzero(left & right))
    return int(np.count_nonzero(left)) - both, int(np.count_nonzero(right)) - both, both


def refuse_unscored(task: str, pairs: int, missing: tuple[int, int, int]) -> None:
    """Refuse a task of which no pair has both scores."""
    if pairs == sum(missing):
        raise EmptySamplesError(
            f"task {task!r}: none of the {pairs} pairs is scored on both sides "
            f"(baseline only {missing[1]}, candidate only {missing[0]}, neither {missing[2]})."
        )


def items_of_task(
    names: tuple[str, str, str],
    found: Match,
    scores: tuple[FloatArray, FloatArray],
    clusters: Callable[[IntArray], pa.ChunkedArray],
    *,
    higher: bool,
) -> PairedTask:
    """From the pairs of a task, with their scores, to its items."""
    missing = unscored_pairs(scores)
    refuse_unscored(names[0], scores[0].size, missing)
    scored = np.flatnonzero(~(np.isnan(scores[0]) | np.isnan(scores[1])))
    item = None if found.item is None else found.item[scored]
    averaged = average(scores[0][scored], scores[1][scored], item)
    first = scored[averaged.first]
    document = found.documents_of(first)
    return PairedTask(
        *names,
        higher_is_better=higher,
        baseline=averaged.baseline,
        candidate=averaged.candidate,
        difference=(1.0 if higher else -1.0) * (averaged.candidate - averaged.baseline),
        cluster=join_clusters(clusters(first), document),
        document=document,
        repeats=averaged.repeats,
        run_variance=averaged.run_variance,
        unscored=missing,
        duplicates=max(found.facts.surplus),
        baseline_row=found.baseline[first],
        candidate_row=found.candidate[first],
    )
