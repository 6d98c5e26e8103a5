"""The retry ledger in MLflow: how often one set of samples has been asked for a verdict.

Every decision on the same samples is another chance to pass by luck, which the non-inferiority
rule pays for (see `mlflow_degrade.stats.attempt_alpha`). The ledger is the runs themselves: each
carries the digest of its samples' documents and of what was decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from .._row_index import RowIndex
from .._table_digest import table_digest
from ..cache import digest_json
from ..pairing import PairedScores
from ..policy import GatePolicy
from .evidence import EVIDENCE_TAG

SET_TAG = "degrade.evaluation_set"
DECISION_KEY_TAG = "degrade.decision_key"
ATTEMPT_TAG = "degrade.attempt"

_PAGE = 1_000


def evaluation_set(paired: PairedScores) -> str:
    """Digest of the paired documents, whoever answered them and whatever they scored."""
    rows = np.concatenate([task.baseline_row for task in paired.tasks])
    documents = paired.baseline.table.select(["task", "doc_hash"]).take(pa.array(rows))
    distinct = documents.group_by(["task", "doc_hash"]).aggregate([])
    index = RowIndex(distinct, ["task", "doc_hash"], ["task"])
    return table_digest(index, {"what": "evaluation set"})


def decision_key(paired: PairedScores, policy: GatePolicy) -> str:
    """What a decision is a function of: both sides' scores and the policy."""
    sides = [paired.baseline.digest(), paired.candidate.digest()]
    return digest_json([*sides, policy.digest()])


def count_attempt(paired: PairedScores, policy: GatePolicy) -> int:
    """Enter the active run into the ledger of its evaluation set.

    Returns
    -------
    int
        Number of this attempt: one more than there are other decisions on these samples, those of
        deleted and unfinished runs included. The same scores under the same policy are the same
        attempt, as nothing new can come of them.

    Notes
    -----
    The run is entered before the others are counted. Of attempts made at the same moment each sees
    at least those entered before it, so that no number is given out too low; two of them may both
    get the higher one.
    """
    import mlflow

    documents, key = evaluation_set(paired), decision_key(paired, policy)
    mlflow.set_tags({SET_TAG: documents, DECISION_KEY_TAG: key})
    others: set[str] = set()
    for run in search_runs(f"tags.`{SET_TAG}` = '{documents}'", deleted=True):
        tags = run.data.tags
        if tags[DECISION_KEY_TAG] != key:
            others.add(tags[DECISION_KEY_TAG])
        elif ATTEMPT_TAG in tags:
            attempt = int(tags[ATTEMPT_TAG])
            break
    else:
        attempt = len(others) + 1
    mlflow.set_tag(ATTEMPT_TAG, str(attempt))
    return attempt


def find_decision(key: str) -> Any | None:
    """Newest finished run that holds the decision with this key, or None."""
    runs = search_runs(f"tags.`{DECISION_KEY_TAG}` = '{key}' and attributes.status = 'FINISHED'")
    return next((run for run in runs if EVIDENCE_TAG in run.data.tags), None)


def search_runs(condition: str, *, deleted: bool = False) -> list[Any]:
    """Runs of all experiments, newest first: a new experiment is no new set of samples.

    Parameters
    ----------
    condition : str
        MLflow's filter.
    deleted : bool
        Whether deleted runs, and those of deleted experiments, are searched as well.
    """
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    client = MlflowClient()
    ids = [e.experiment_id for e in _all(client.search_experiments, view_type=view)]
    order = ["attributes.start_time DESC"]
    return list(_all(client.search_runs, ids, condition, run_view_type=view, order_by=order))


def _all(search: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
    """All pages of one of the client's searches."""
    token = None
    while True:
        page = search(*arguments, **options, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
