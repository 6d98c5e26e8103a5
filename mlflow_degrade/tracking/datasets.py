"""The questions of an evaluation as a dataset of MLflow's, which its pages show and filter by."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..samples.table import SampleScores

_TASKS_LISTED = 2
_CONTEXT = "mlflow.data.context"


def dataset_of(samples: SampleScores, artifact_uri: str) -> Any:
    """Name, digest and source of the questions; the same for every model that was asked them."""
    from mlflow.entities import Dataset

    documents = np.unique(samples.row_index.document_keys)
    state = hashlib.sha256("\n".join(samples.tasks).encode())
    state.update(documents.astype("<i8").tobytes())
    profile = {"documents": len(documents), "tasks": len(samples.tasks), "rows": len(samples)}
    return Dataset(
        name=dataset_name(samples.tasks),
        digest=state.hexdigest()[:16],
        source_type="local" if "://" not in artifact_uri else artifact_uri.split("://")[0],
        source=json.dumps({"uri": artifact_uri}),
        profile=json.dumps(profile),
    )


def evaluation_dataset(samples: SampleScores, artifact_uri: str) -> Any:
    """The same as an input of a run."""
    from mlflow.entities import DatasetInput, InputTag

    return DatasetInput(dataset_of(samples, artifact_uri), [InputTag(_CONTEXT, "evaluation")])


def dataset_name(tasks: Collection[str]) -> str:
    """Tasks in a few words: their names, or what all of them begin with.

    Examples
    --------
    >>> dataset_name(["gsm8k"]), dataset_name(["mmlu_law", "mmlu_virology", "mmlu_world"])
    ('gsm8k', 'mmlu (3 tasks)')
    >>> dataset_name(["gsm8k", "arc"]), dataset_name(["arc", "boolq", "gsm8k"])
    ('arc, gsm8k', 'arc and 2 more tasks')
    """
    names = sorted(tasks)
    if len(names) <= _TASKS_LISTED:
        return ", ".join(names)
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common, cut, _ = "".join(letters[0] for letters in shared).rpartition("_")
    if cut:
        return f"{common} ({len(names)} tasks)"
    return f"{names[0]} and {len(names) - 1} more tasks"


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
