"""The retry ledger in MLflow: how often one set of samples has been asked for a verdict.

Every decision on the same samples is another chance to pass by luck, which the non-inferiority
rule pays for (see `mlflow_degrade.stats.attempt_alpha`). The ledger is the runs themselves: each
carries a sketch of its samples' documents and the digest of what was decided.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..core.cache import digest_json
from ..decision.cost_evidence import CostEvidence
from ..decision.policy import GatePolicy
from ..samples.pairing import PairedScores
from ..samples.planned_order import PlannedOrder
from ..samples.row_index import text_keys
from ..samples.schema import derived_hash
from ..samples.table import SampleScores
from .evidence import EVIDENCE_TAG

# Which documents an evaluation asked, in a tag: enough to tell how many two of them share.

_KNOWN_BY = ["task", "doc_id", "doc_hash", "prompt_hash", "prompt"]
# Eight bytes each in base64: 3,200 characters of the 8,000 that MLflow keeps of a tag.
_KEPT = 300


@dataclass(frozen=True)
class DocumentSketch:
    """The smallest hashes of a set of documents (bottom-k sketch, Cohen & Kaplan 2007)."""

    # Below the smaller of two sketches' largest hash both know every document they have, and
    # hashes are as good as random: the share they have in common there estimates the share in
    # common.

    hashes: npt.NDArray[np.uint64]  # Sorted. All of them where there are fewer than 300 documents.

    @classmethod
    def of(cls, paired: PairedScores) -> DocumentSketch:
        """Of all paired documents, whatever their tasks are called."""
        rows = pa.array(np.concatenate([task.baseline_row for task in paired.tasks]))
        return cls.of_table(paired.baseline.table.select(_KNOWN_BY).take(rows))

    @classmethod
    def of_table(cls, table: pa.Table) -> DocumentSketch:
        """Of all documents in rows of a sample table."""
        # A document is known by its hash, else by its prompt, else by its id.
        unknown = pc.equal(table["doc_hash"], derived_hash(table["task"], table["doc_id"]))
        other = pc.coalesce(table["prompt_hash"], table["prompt"], table["doc_id"])
        names = pc.if_else(unknown, other, table["doc_hash"])
        return cls(np.unique(text_keys(names))[:_KEPT])

    @classmethod
    def from_text(cls, text: str) -> DocumentSketch | None:
        """Read back what `text` gave; None for anything else."""
        try:
            hashes = np.frombuffer(base64.b64decode(text, validate=True), "<u8")
        except ValueError:
            return None
        return cls(hashes) if hashes.size else None

    def text(self) -> str:
        """For a tag."""
        return base64.b64encode(self.hashes.astype("<u8").tobytes()).decode()

    def share(self, other: DocumentSketch) -> float:
        """Documents in common, as a share of the smaller set; an estimate above 300 documents."""
        end = min(self._end, other._end)
        mine, theirs = (s.hashes[s.hashes <= end] for s in (self, other))
        smaller = min(mine.size, theirs.size)
        return np.intersect1d(mine, theirs).size / smaller if smaller else 0.0

    @property
    def _end(self) -> np.uint64:
        """Up to here every document of the set is in the sketch."""
        whole = self.hashes.size < _KEPT
        return np.uint64(np.iinfo(np.uint64).max) if whole else self.hashes[-1]


DOCUMENTS_TAG = "degrade.documents"
DECISION_KEY_TAG = "degrade.decision_key"
ATTEMPT_TAG = "degrade.attempt"
BEGUN_TAG = "degrade.begun"
"""What a decision that may stop early was begun as, before its samples were known."""
ORDER_TAG = "degrade.order"

SAME_SET = 0.5
"""Two evaluations that share more than this part of the smaller one's documents are attempts on the
same set: leaving out, adding or renaming some makes no new one."""

_PAGE = 1_000


def decision_key(paired: PairedScores, policy: GatePolicy, cost: CostEvidence | None = None) -> str:
    """What a decision is a function of: both sides' scores, the policy, the cost it asks for."""
    # Measured again it is another attempt: else one could measure until the goals are met.
    sides = [paired.baseline.digest(), paired.candidate.digest()]
    measured = [cost.digest()] if cost is not None and policy.cost is not None else []
    return digest_json([*sides, policy.digest(), *measured])


def ledger_tags(
    paired: PairedScores, policy: GatePolicy, cost: CostEvidence | None = None
) -> dict[str, str]:
    """What enters a run into the ledger of its evaluation set."""
    sketch = DocumentSketch.of(paired)
    tags = {DOCUMENTS_TAG: sketch.text(), DECISION_KEY_TAG: decision_key(paired, policy, cost)}
    if paired.order is not None:
        model = paired.candidate.model_digest or paired.candidate.digest()
        tags[BEGUN_TAG] = _begun_key(paired.baseline, model, policy, paired.order)
    return tags


def begun_tags(
    baseline: SampleScores, model: str, policy: GatePolicy, order: PlannedOrder
) -> dict[str, str]:
    """What enters an evaluation that may stop early, before its first sample."""
    # Whoever gives an order up and takes another one has tried; whoever goes on has not.
    begun = _begun_key(baseline, model, policy, order)
    sketch = DocumentSketch.of_table(baseline.table.select(_KNOWN_BY))
    tags = {DOCUMENTS_TAG: sketch.text(), DECISION_KEY_TAG: begun, BEGUN_TAG: begun}
    return {**tags, ORDER_TAG: order.digest}


def chosen_on_tags(baseline: SampleScores, model: str) -> dict[str, str]:
    """What enters a run into the ledger that looked at a candidate in order to choose."""
    # No verdict comes of it; a later one on the same samples pays for the look.
    sketch = DocumentSketch.of_table(baseline.table.select(_KNOWN_BY))
    key = digest_json(["chosen on", baseline.digest(), model])
    return {DOCUMENTS_TAG: sketch.text(), DECISION_KEY_TAG: key}


def next_attempt(documents: Collection[str]) -> int:
    """Number that a further attempt on some documents, given by their hashes, would get."""
    names = pa.chunked_array([sorted(documents)], pa.string())
    sketch = DocumentSketch(np.unique(text_keys(names))[:_KEPT])
    return count_attempt({DOCUMENTS_TAG: sketch.text(), DECISION_KEY_TAG: ""})


def _begun_key(baseline: SampleScores, model: str, policy: GatePolicy, order: PlannedOrder) -> str:
    return digest_json([baseline.digest(), model, policy.digest(), order.digest])


def count_attempt(entry: Mapping[str, str]) -> int:
    """Number of the attempt of a run that was entered into the ledger, from its `ledger_tags`."""
    # A run is entered before the others are counted. Of attempts made at the same moment each sees
    # at least those entered before it, so that no number is given out too low; two of them may
    # both get the higher one.
    sketch, key = DocumentSketch.from_text(entry[DOCUMENTS_TAG]), entry[DECISION_KEY_TAG]
    others, begun, done = set[str](), set[str](), {entry.get(BEGUN_TAG)}
    for run in search_runs(f"tags.`{DOCUMENTS_TAG}` != ''", deleted=True):
        tags = run.data.tags
        documents = DocumentSketch.from_text(tags[DOCUMENTS_TAG])
        if sketch is None or documents is None or sketch.share(documents) <= SAME_SET:
            continue
        other = tags.get(DECISION_KEY_TAG, "")
        if other == tags.get(BEGUN_TAG):
            begun.add(other)  # what was begun counts where no decision came of it
            continue
        done.add(tags.get(BEGUN_TAG))
        # The same again, or the beginning of what was decided already.
        if key not in (other, tags.get(BEGUN_TAG)):
            others.add(other)
        elif ATTEMPT_TAG in tags:
            return int(tags[ATTEMPT_TAG])
    return len(others) + len(begun - done) + 1


def find_decision(key: str, experiments: Collection[str]) -> Any | None:
    """Newest finished run of some experiments that holds the decision with this key, or None."""
    runs = search_runs(
        f"tags.`{DECISION_KEY_TAG}` = '{key}' and attributes.status = 'FINISHED'",
        experiments=experiments,
    )
    return next((run for run in runs if EVIDENCE_TAG in run.data.tags), None)


def search_runs(
    condition: str, *, experiments: Collection[str] | None = None, deleted: bool = False
) -> list[Any]:
    """Runs that fit, newest first."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    client = MlflowClient()
    if experiments is None:
        found = _all(client.search_experiments, view_type=view)
        experiments = [experiment.experiment_id for experiment in found]
    if not experiments:
        return []  # MLflow takes no ids for an error
    order = ["attributes.start_time DESC"]
    return list(
        _all(client.search_runs, list(experiments), condition, run_view_type=view, order_by=order)
    )


def _all(search: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
    """All pages of one of the client's searches."""
    token = None
    while True:
        page = search(*arguments, **options, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
