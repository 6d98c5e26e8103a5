"""Samples logged to an MLflow run: ``runs:/<run id>`` and ``runs:/<run id>/<artifact path>``."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import TrackingError
from ..origin import Origin
from ..table import SampleScores
from .mlflow_traces import save_traces

AGREEMENTS = "agreements"
"""Folder beside a run's samples, with what ``mlflow-degrade noise --log`` found of them."""

_SAMPLES = "samples"
# Ids of MLflow have 32 digits; fewer than four of them are no id that somebody copied.
_BEGINNING = re.compile(r"[0-9a-f]{4,31}")
_SHOWN = 5
_REFERENCE = re.compile(r"runs:/+(?P<run>[^/]+)(?:/(?P<path>.+?))?/*")


def is_run_reference(reference: str) -> bool:
    """Whether a reference names an MLflow run."""
    return reference.startswith("runs:/")


@contextmanager
def downloaded(reference: str) -> Iterator[Path]:
    """Artifacts of a run, in a directory that lives as long as the context."""
    # Without an artifact path these are the run's ``samples``, or a file with the traces that
    # ``mlflow.genai.evaluate`` scored in it.
    import mlflow
    from mlflow.exceptions import MlflowException

    (run_id, path), client = split_reference(reference), mlflow.MlflowClient()
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        try:
            run = client.get_run(run_id)
            where: str | Path | None
            if path is None and not client.list_artifacts(run_id, _SAMPLES):
                where = save_traces(run_id, run.info.experiment_id, Path(scratch))
                if where is None:
                    raise TrackingError(_explain(client, run))
            else:
                where = mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=path or _SAMPLES, dst_path=scratch
                )
        except MlflowException as error:
            raise TrackingError(
                f"{reference} cannot be read from {mlflow.get_tracking_uri()}: {error}. Check the "
                "run id and MLFLOW_TRACKING_URI."
            ) from error
        yield Path(where)


def whole_run_id(text: str) -> str:
    """The run whose id begins so, where one is meant: ids are often printed short."""
    if _BEGINNING.fullmatch(text) is None:
        return text
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow.search_runs(
            search_all_experiments=True,
            filter_string=f"attributes.run_id LIKE '{text}%'",
            max_results=_SHOWN,
            output_format="list",
        )
    except MlflowException as error:
        raise TrackingError(
            f"runs cannot be looked up at {mlflow.get_tracking_uri()}: {error}"
        ) from error
    if len(found) > 1:
        named = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in found)
        raise TrackingError(
            f"{text!r} begins the ids of {'several' if len(found) == _SHOWN else len(found)} runs: "
            f"{named}. Give more of the id."
        )
    # An id that nobody has is left to MLflow, whose message says so.
    return str(found[0].info.run_id) if found else text


def whole_reference(reference: str) -> str:
    """A reference whose run id, if it has one, is given whole."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return reference
    run_id = whole_run_id(match["run"])
    return reference if run_id == match["run"] else reference.replace(match["run"], run_id, 1)


def split_reference(reference: str) -> tuple[str, str | None]:
    """Run id and artifact path of ``runs:/…``."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise TrackingError(f"{reference!r} names no run: write runs:/<run id>.")
    return whole_run_id(match["run"]), match["path"]


def with_agreements(samples: SampleScores, run_id: str) -> SampleScores:
    """Scores of a run with what was logged beside them of the same model elsewhere."""
    import mlflow

    if samples.origin is None:
        return samples
    listed = mlflow.MlflowClient().list_artifacts(run_id, AGREEMENTS)
    logged = [
        mlflow.artifacts.load_dict(f"runs:/{run_id}/{item.path}")
        for item in sorted(listed, key=lambda item: str(item.path))
    ]
    if not logged:
        return samples
    stated = samples.origin.model_dump(mode="json")
    known = stated["agreements"]
    stated["agreements"] = [*known, *(found for found in logged if found not in known)]
    origin = Origin.of(stated, f"runs:/{run_id}/{AGREEMENTS}")
    return samples if origin is None else samples.with_origin(origin)


def _explain(client: Any, run: Any) -> str:
    run_id = run.info.run_id
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=50
    )
    if children:
        named = ", ".join(f"{c.info.run_name} runs:/{c.info.run_id}" for c in children)
        return (
            f"run {run_id} is the parent of {len(children)} runs and has no samples of its own: "
            f"name one of them ({named})."
        )
    present = sorted(item.path for item in client.list_artifacts(run_id))
    return (
        f"run {run_id} has no {_SAMPLES}/<task>.parquet and no traces with feedback, only "
        f"{present}. Name the artifact (runs:/{run_id}/<path>) if the samples are in one of these."
    )
