"""The questions of an evaluation as a dataset of MLflow's, which its pages show and filter by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..samples.table import SampleScores

_NAME_LENGTH = 60
_CONTEXT = "mlflow.data.context"


def dataset_of(samples: SampleScores, artifact_uri: str) -> Any:
    """Name, digest and source of the questions; the same for every model that was asked them."""
    from mlflow.entities import Dataset

    documents = np.unique(samples.row_index.document_keys)
    state = hashlib.sha256("\n".join(samples.tasks).encode())
    state.update(documents.astype("<i8").tobytes())
    profile = {"documents": len(documents), "tasks": len(samples.tasks), "rows": len(samples)}
    return Dataset(
        name=_name(samples.tasks),
        digest=state.hexdigest()[:16],
        source_type="local" if "://" not in artifact_uri else artifact_uri.split("://")[0],
        source=json.dumps({"uri": artifact_uri}),
        profile=json.dumps(profile),
    )


def _name(tasks: tuple[str, ...]) -> str:
    """The tasks, as many as fit."""
    shown = ", ".join(tasks)
    if len(shown) <= _NAME_LENGTH:
        return shown
    first = tasks[0] if len(tasks[0]) <= _NAME_LENGTH else f"{tasks[0][: _NAME_LENGTH - 1]}…"
    return f"{first} and {len(tasks) - 1} more" if len(tasks) > 1 else first


def log_dataset(run_id: str, samples: SampleScores, artifact_uri: str) -> None:
    """Say on a run's page what was asked."""
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, InputTag

    given = DatasetInput(dataset_of(samples, artifact_uri), [InputTag(_CONTEXT, "evaluation")])
    MlflowClient().log_inputs(run_id, datasets=[given])


def log_model_metrics(
    run_id: str, model_id: str, samples: SampleScores, metrics: Mapping[str, float | None]
) -> None:
    """Put metrics on a logged model's page, with the dataset they are of."""
    import time

    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    dataset = dataset_of(samples, str(client.get_run(run_id).info.artifact_uri))
    now = int(time.time() * 1_000)
    client.log_batch(
        run_id,
        [
            Metric(
                name, value, now, 0, model_id=model_id, dataset_name=dataset.name,
                dataset_digest=dataset.digest, run_id=run_id,
            )
            for name, value in metrics.items()
            if value is not None
        ],
    )  # fmt: skip
