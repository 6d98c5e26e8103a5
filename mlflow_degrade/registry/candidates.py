"""Decisions that are logged, gathered by the baseline they share: which candidate to take?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import DegradeError, TrackingError, UnknownNameError
from ..decision.results import Decision
from ..report.candidates import Candidate
from ..samples.readers.mlflow_runs import whole_run_id
from .evidence import VERDICT_TAG
from .retry_ledger import search_runs

#: Metrics with the candidate's cost divided by the baseline's begin like this.
RELATIVE = "relative/"

_DECISION = "evidence/decision.json"


def find_candidates(
    runs: Sequence[str] = (), *, experiments: Sequence[str] = ()
) -> tuple[list[list[Candidate]], list[str]]:
    """Decisions in MLflow, in groups that share the baseline's scores.

    Parameters
    ----------
    runs : sequence of str
        Run ids, also as ``runs:/<id>``; by default every run with a decision.
    experiments : sequence of str
        Names of experiments to search; all by default.

    Returns
    -------
    list of list of Candidate, list of str
        Groups, the one with the newest decision first, each newest first; and notes on runs that
        could not be read. Of several decisions on the same scores under the same policy the newest
        is kept. A decision without measured cost takes that of another one on the same two models.

    Raises
    ------
    TrackingError
        A named run does not exist or holds no decision, or none is found.
    UnknownNameError
        No such experiment.
    """
    found, notes = [], []
    for run in _runs(runs, experiments):
        try:
            found.append(_candidate(run))
        except DegradeError as error:
            if runs:
                raise
            notes.append(str(error))
    if not found:
        where = f"experiments {', '.join(experiments)}" if experiments else "any experiment"
        raise TrackingError(
            f"no decision is logged in {where}: recipes, gates and the evaluator log one each."
            + "".join(f"\n{note}" for note in notes)
        )
    found.sort(key=lambda candidate: -candidate.started)
    groups: dict[str, dict[tuple[str | None, str], Candidate]] = {}
    for candidate in _with_costs(found):
        group = groups.setdefault(candidate.baseline_samples, {})
        decision = candidate.decision
        key = decision.candidate.get("samples_digest"), decision.policy.digest()
        group.setdefault(key, candidate)
    return [list(group.values()) for group in groups.values()], notes


def _runs(named: Sequence[str], experiments: Sequence[str]) -> list[Any]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    if named:
        given = (name.removeprefix("runs:/").strip("/") for name in named)
        ids = dict.fromkeys(map(whole_run_id, given))
        try:
            return [client.get_run(run_id) for run_id in ids]
        except MlflowException as error:
            raise TrackingError(f"a run cannot be read: {error}") from error
    condition = f"tags.`{VERDICT_TAG}` LIKE '%'"
    if not experiments:
        return search_runs(condition)
    known = {e.name: e.experiment_id for e in client.search_experiments()}
    for name in experiments:
        if name not in known:
            raise UnknownNameError("experiment", name, known)
    wanted = {known[name] for name in experiments}
    return [run for run in search_runs(condition) if run.info.experiment_id in wanted]


def _candidate(run: Any) -> Candidate:
    import mlflow
    from mlflow.exceptions import MlflowException

    run_id = str(run.info.run_id)
    if VERDICT_TAG not in run.data.tags:
        raise TrackingError(
            f"run {run_id} ({run.info.run_name}) holds no decision: name runs of a recipe, a gate "
            "or the evaluator, not evaluations."
        )
    try:
        decision = Decision.from_json(mlflow.artifacts.load_text(f"runs:/{run_id}/{_DECISION}"))
    except (MlflowException, OSError) as error:
        raise TrackingError(f"run {run_id}: {_DECISION} cannot be read: {error}") from error
    return Candidate(
        run_id=run_id,
        run_name=str(run.info.run_name),
        experiment_id=str(run.info.experiment_id),
        started=int(run.info.start_time),
        decision=decision,
        relative={
            name.removeprefix(RELATIVE): value
            for name, value in sorted(run.data.metrics.items())
            if name.startswith(RELATIVE)
        },
    )


def _with_costs(found: Sequence[Candidate]) -> list[Candidate]:
    """A gate measures nothing; the recipe that made its candidate did, against the same model."""
    measured = {_models(c): c.relative for c in reversed(found) if c.relative}
    return [
        candidate
        if candidate.relative or None in _models(candidate)
        else replace(candidate, relative=measured.get(_models(candidate), {}))
        for candidate in found
    ]


def _models(candidate: Candidate) -> tuple[str | None, str | None]:
    decision = candidate.decision
    return decision.baseline.get("model_digest"), decision.candidate.get("model_digest")
