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


def split_reference(reference: str) -> tuple[str, str | None]:
    """Run id and artifact path of ``runs:/…``."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise TrackingError(f"{reference!r} names no run: write runs:/<run id>.")
    return match["run"], match["path"]


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
