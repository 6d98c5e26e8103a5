"""The measurement that a gate decides goals of cost on: from a file, or from MLflow."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.remote_files import is_remote, local_copy
from ..decision.cost_evidence import CostEvidence
from ..samples.pairing import PairedScores
from ..tracking.artifact_access import read_json
from ..tracking.bench import BENCHMARK, MEASURED_TAG
from .evidence import COST, EVIDENCE

_RUN = "runs:/"
_PLACES = (f"{EVIDENCE}/{COST}", BENCHMARK)


def read_cost(reference: str, paired: PairedScores) -> CostEvidence:
    """The rounds of these two models in a file that bench wrote, or in a run that measured them.

    Raises
    ------
    InputError
        There is no measurement there, or none of these two models.
    """
    if is_remote(reference):
        with local_copy(reference) as copied:
            found = list(_in_file(copied))
    else:
        in_run = reference.startswith(_RUN)
        found = list(_in_run(reference) if in_run else _in_file(Path(reference)))
    fitting = [each for each in found if _fits(each, paired)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(
            f"{reference} measures {len(found)} candidates, and nothing in the scores tells which "
            "of them is meant: measure the two models alone."
        )
    if not found:
        raise InputError(
            f"{reference} measures one model only: goals of cost need both, in one measurement. "
            "Run mlflow-degrade bench BASELINE CANDIDATE --json bench.json."
        )
    raise InputError(
        f"{reference} measures other models than those that were evaluated ("
        f"{paired.baseline.model_digest} and {paired.candidate.model_digest}): measure these two."
    )


def find_cost(paired: PairedScores, experiments: Collection[str]) -> CostEvidence | None:
    """The newest measurement of both models in one run of these experiments, or None."""
    from .retry_ledger import search_runs

    digests = paired.baseline.model_digest, paired.candidate.model_digest
    if None in digests:
        return None
    both = " and ".join(f"tags.`{MEASURED_TAG}` LIKE '%{digest}%'" for digest in digests)
    for run in search_runs(both, experiments=experiments):
        for each in _of_run(run):
            if _fits(each, paired):
                return each
    return None


def cost_beside(evaluation: Any, paired: PairedScores) -> CostEvidence | None:
    """What the recipe run measured that an evaluation is part of, if it was these two models."""
    # One look where there is a recipe, none where there is not: no goal asks for it.
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    parent = evaluation.data.tags.get("mlflow.parentRunId")
    if parent is None or None in (paired.baseline.model_digest, paired.candidate.model_digest):
        return None
    try:
        run = MlflowClient().get_run(parent)
    except MlflowException:
        return None
    if MEASURED_TAG not in run.data.tags:
        return None
    return next((each for each in _of_run(run) if _fits(each, paired)), None)


def _fits(cost: CostEvidence, paired: PairedScores) -> bool:
    sides = (
        (cost.baseline_digest, paired.baseline.model_digest),
        (cost.candidate_digest, paired.candidate.model_digest),
    )
    return all(None in side or side[0] == side[1] for side in sides)


def _in_file(path: Path) -> Iterable[CostEvidence]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cost {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"cost {path} is no JSON: {error}.") from error
    return _parse(content, str(path))


def _in_run(reference: str) -> Iterable[CostEvidence]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        run = MlflowClient().get_run(reference.removeprefix(_RUN).strip("/"))
    except MlflowException as error:
        raise InputError(f"cost {reference} cannot be read: {error}") from error
    found = list(_of_run(run))
    if not found:
        raise InputError(
            f"{reference} holds no measurement: it is made by mlflow-degrade bench --log, and by "
            "the recipe that quantizes."
        )
    return found


def logged_cost(run_id: str) -> CostEvidence | None:
    """The rounds that a run's decision was made with, if there were any."""
    from mlflow import MlflowClient

    return next(iter(_of_run(MlflowClient().get_run(run_id))), None)


def _of_run(run: Any) -> Iterable[CostEvidence]:
    from ..core.errors import DegradeError

    for place in _PLACES:
        try:
            content = read_json(run.info.artifact_uri, place)
        except DegradeError:
            continue
        yield from _parse(content, f"{place} of run {run.info.run_id}")


def _parse(content: Any, source: str) -> list[CostEvidence]:
    if isinstance(content, Mapping) and "size_bytes" in content:
        return [CostEvidence.from_json(json.dumps(content), source)]
    if not isinstance(content, Mapping) or not isinstance(content.get("evidence"), list):
        raise InputError(
            f"{source} is no measurement of two models: give what mlflow-degrade bench --json "
            "wrote."
        )
    return [CostEvidence.from_json(json.dumps(each), source) for each in content["evidence"]]
