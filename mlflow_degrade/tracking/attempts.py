"""The retry ledger in MLflow: how often one set of samples has been asked for a verdict.

Every decision on the same samples is another chance to pass by luck, which the non-inferiority
rule pays for (see `mlflow_degrade.stats.attempt_alpha`). The ledger is the runs themselves: each
carries a sketch of its samples' documents and the digest of what was decided.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..cache import digest_json
from ..pairing import PairedScores
from ..policy import GatePolicy
from .document_sketch import DocumentSketch
from .evidence import EVIDENCE_TAG

DOCUMENTS_TAG = "degrade.documents"
DECISION_KEY_TAG = "degrade.decision_key"
ATTEMPT_TAG = "degrade.attempt"

SAME_SET = 0.5
"""Two evaluations that share more than this part of the smaller one's documents are attempts on the
same set: leaving out, adding or renaming some makes no new one."""

_PAGE = 1_000


def decision_key(paired: PairedScores, policy: GatePolicy) -> str:
    """What a decision is a function of: both sides' scores and the policy."""
    sides = [paired.baseline.digest(), paired.candidate.digest()]
    return digest_json([*sides, policy.digest()])


def ledger_tags(paired: PairedScores, policy: GatePolicy) -> dict[str, str]:
    """What enters a run into the ledger of its evaluation set."""
    sketch = DocumentSketch.of(paired)
    return {DOCUMENTS_TAG: sketch.text(), DECISION_KEY_TAG: decision_key(paired, policy)}


def count_attempt(entry: Mapping[str, str]) -> int:
    """Number of the attempt of a run that was entered into the ledger, from its `ledger_tags`.

    Returns
    -------
    int
        Number of this attempt: one more than there are other decisions on these samples or most of
        them, in all experiments, those of deleted and unfinished runs included. The same scores
        under the same policy are the same attempt, as nothing new can come of them.

    Notes
    -----
    A run is entered before the others are counted. Of attempts made at the same moment each sees
    at least those entered before it, so that no number is given out too low; two of them may both
    get the higher one.
    """
    sketch, key = DocumentSketch.from_text(entry[DOCUMENTS_TAG]), entry[DECISION_KEY_TAG]
    others: set[str] = set()
    for run in search_runs(f"tags.`{DOCUMENTS_TAG}` != ''", deleted=True):
        tags = run.data.tags
        documents = DocumentSketch.from_text(tags[DOCUMENTS_TAG])
        if sketch is None or documents is None or sketch.share(documents) <= SAME_SET:
            continue
        if tags.get(DECISION_KEY_TAG) != key:
            others.add(tags.get(DECISION_KEY_TAG, ""))
        elif ATTEMPT_TAG in tags:
            return int(tags[ATTEMPT_TAG])
    return len(others) + 1


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
    """Runs that fit, newest first.

    Parameters
    ----------
    condition : str
        MLflow's filter.
    experiments : collection of str, optional
        Ids of experiments; all of them by default.
    deleted : bool
        Whether deleted runs, and those of deleted experiments, are searched as well.
    """
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
