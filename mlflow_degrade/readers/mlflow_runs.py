"""Samples logged to an MLflow run: ``runs:/<run id>`` and ``runs:/<run id>/<artifact path>``."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TrackingError

_SAMPLES = "samples"
_REFERENCE = re.compile(r"runs:/+(?P<run>[^/]+)(?:/(?P<path>.+?))?/*")


def is_run_reference(reference: str) -> bool:
    """Whether a reference names an MLflow run."""
    return reference.startswith("runs:/")


@contextmanager
def downloaded(reference: str) -> Iterator[Path]:
    """Artifacts of a run, in a directory that lives as long as the context.

    Without an artifact path these are the run's ``samples``.

    Raises
    ------
    TrackingError
        The run or the artifact does not exist, or the run is a parent whose children have the
        samples.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise TrackingError(f"{reference!r} names no run: write runs:/<run id>.")
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        try:
            run = client.get_run(match["run"])
            path = match["path"] or _SAMPLES
            if not match["path"] and not client.list_artifacts(match["run"], _SAMPLES):
                raise TrackingError(_explain(client, run))
            where = mlflow.artifacts.download_artifacts(
                run_id=match["run"], artifact_path=path, dst_path=scratch
            )
        except MlflowException as error:
            raise TrackingError(
                f"{reference} cannot be read from {mlflow.get_tracking_uri()}: {error}. Check the "
                "run id and MLFLOW_TRACKING_URI."
            ) from error
        yield Path(where)


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
        f"run {run_id} has no {_SAMPLES}/<task>.parquet, only {present}. Name the artifact "
        f"(runs:/{run_id}/<path>) if the samples are in one of these."
    )
