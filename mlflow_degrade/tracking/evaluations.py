"""Evaluation runs in MLflow: per-sample scores as Parquet, found again by their key."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.cache import digest_json
from ..core.errors import InputError, RegistryError, TrackingError
from ..samples.origin import Agreement, Origin
from ..samples.readers.mlflow_runs import AGREEMENTS, downloaded, with_agreements
from ..samples.readers.mlflow_traces import READER as TRACES
from ..samples.table import SampleScores
from .artifact_access import fetch, read_json, upload

if TYPE_CHECKING:
    from ..decision.noise import NoiseRecord

# The questions of an evaluation as a dataset of MLflow's, which its pages show and filter by.

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


KIND_TAG = "degrade.kind"
KEY_TAG = "degrade.evaluation_key"
MODEL_DIGEST_TAG = "degrade.model_digest"
SAMPLES_DIGEST_TAG = "degrade.samples_digest"
ASKED_TAG = "degrade.asked"
"""What was asked and how, and where it was computed, as digests: equal where runs can be paired."""
FILES_TAG = "degrade.files"
"""What there is below ``samples``, where nothing lies beside it; else a reader has to list."""
REUSED_TAG = "degrade.reused_from"
MODEL_URI_TAG = "degrade.model_uri"
NOISE_TAG = "degrade.noise"
"""How much reruns of an evaluation changed; the run then holds what was found."""

# MLflow refuses metric names with other characters.
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
_SAMPLES = "samples"
_FACTS = "evaluation.json"
_NOISE = "noise.json"
_FLIPPED = "flipped"
_THREADS = 2
# Beyond it MLflow would cut the tag.
_FILES_LENGTH = 6_000


def log_evaluation(
    samples: SampleScores,
    key: Mapping[str, Any],
    *,
    metrics: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
    reused_from: Any = None,
) -> None:
    """Log one model's evaluation to the active run."""
    import mlflow

    active: Any = mlflow.active_run() or mlflow.start_run()
    parts = {_file_name(task): part for task, part in _by_task(samples)}
    with (
        tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        (Path(scratch) / _SAMPLES).mkdir()
        # Parquet is encoded and hashed outside of Python's lock.
        digest = pool.submit(samples.digest)
        written = [
            pool.submit(_write, part, Path(scratch) / _SAMPLES / name)
            for name, part in parts.items()
        ]
        means = samples.means()
        for file in written:
            file.result()
        about = {"key": dict(key), **(facts or {})}
        (Path(scratch) / _FACTS).write_text(json.dumps(about, indent=2, default=str), "utf-8")
        upload(Path(scratch), active.info.artifact_uri)
    named = {
        # Most tasks have one answer filter, and then its name says nothing.
        f"{task}/{metric}" if flt == "none" else f"{task}/{metric}.{flt}": value
        for (task, metric, flt), value in means.items()
    }
    tags = {
        KIND_TAG: "evaluation",
        KEY_TAG: digest_json(dict(key)),
        ASKED_TAG: json.dumps(asked_digests(key)),
        SAMPLES_DIGEST_TAG: digest.result(),
    }
    if len(files := json.dumps(sorted(parts))) <= _FILES_LENGTH:
        tags[FILES_TAG] = files
    if samples.model_digest is not None:
        tags[MODEL_DIGEST_TAG] = samples.model_digest
    if reused_from is not None:
        tags[REUSED_TAG] = str(reused_from.info.run_id)
    # The key comes last: a run that carries it has all its artifacts.
    log_together(
        active.info.run_id,
        metrics={**named, **(metrics or {})},
        params={} if samples.origin is None else _processor_params(samples.origin),
        tags=tags,
        datasets=[evaluation_dataset(samples, f"{active.info.artifact_uri}/{_SAMPLES}")],
    )


def asked_digests(key: Mapping[str, Any]) -> dict[str, str | None]:
    """Digests of an evaluation key's parts: the questions, and the processor where it is known."""
    # Rows that say more of an answer are of the same questions.
    left_out = ("model", "processor", "columns")
    asked = {name: value for name, value in key.items() if name not in left_out}
    place = key.get("processor")
    return {
        "questions": digest_json(asked), "processor": None if place is None else digest_json(place)
    }  # fmt: skip


def _processor_params(origin: Origin) -> dict[str, str]:
    """Where it was computed, as params, so that runs can be told apart and grouped by them."""
    stated = origin.processor.model_dump(mode="json", exclude_none=True)
    params = {
        f"processor.{name}": " ".join(value) if isinstance(value, list) else str(value)
        for name, value in stated.items()
    }
    if origin.dependent_operations is not None:
        params["processor.dependent_operations"] = ", ".join(origin.dependent_operations) or "none"
    return params


def _file_name(task: str) -> str:
    return quote(task, safe=" -_.,=+") + ".parquet"


def _write(samples: SampleScores, path: Path) -> None:
    plain = {"doc_id", "doc_hash", "prompt_hash", "target_hash", "prompt", "score"}
    # Dictionaries and bounds of what is different in every row cost time and save nothing.
    repeated = [name for name in samples.table.column_names if name not in plain]
    pq.write_table(
        samples.table,
        path,
        compression="zstd",
        use_dictionary=repeated,
        write_statistics=repeated,
    )


def _by_task(samples: SampleScores) -> Iterator[tuple[str, SampleScores]]:
    """The rows of each task; not copied where they lie together, as they usually do."""
    table = samples.table
    encoded = table["task"].combine_chunks().dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    if len(starts) > len(names):
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(names)))
    else:
        order = None
    for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
        if order is None:
            yield names[codes[start]], SampleScores(table.slice(start, end - start))
        else:
            rows = order[start:end]
            yield names[codes[rows[0]]], SampleScores(table.take(pa.array(rows)))


def find_evaluation(
    key: Mapping[str, Any],
    *,
    samples_digest: str | None = None,
    experiments: Collection[str] | None = None,
) -> Any | None:
    """Newest finished run with this evaluation key, or None."""
    import mlflow

    wanted = f"tags.`{KEY_TAG}` = '{digest_json(dict(key))}' and status = 'FINISHED'"
    if samples_digest is not None:
        wanted += f" and tags.`{SAMPLES_DIGEST_TAG}` = '{samples_digest}'"
    runs = mlflow.search_runs(
        None if experiments is None else list(experiments),
        filter_string=wanted,
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    return runs[0] if runs else None


def is_genai(run: Any) -> bool:
    """Whether a run is one of ``mlflow.genai.evaluate``, whose samples are traces."""
    return run.data.tags.get("mlflow.runType") == "genai_evaluate" and KEY_TAG not in run.data.tags


def load_samples(run: Any, scorers: str | Iterable[str] | None = None) -> SampleScores:
    """Per-sample scores of an evaluation run, with what was logged of agreements elsewhere."""
    names = [] if isinstance(run, str) else _stated_files(run)
    if names and scorers is not None:
        raise InputError(
            f"scorers = {scorers!r}: runs:/{run.info.run_id} holds samples of tasks; scorers are "
            "those of mlflow.genai.evaluate."
        )
    if not names:
        run_id = run if isinstance(run, str) else run.info.run_id
        with downloaded(f"runs:/{run_id}") as folder:
            if folder.is_file():
                return TRACES.read(folder, scorers=scorers)
            samples = _read(sorted(folder.glob("*.parquet")))
        return with_agreements(samples, run_id)
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        try:
            location = run.info.artifact_uri
            found = fetch(location, _SAMPLES, Path(scratch), names=names) or Path(scratch)
            return _read([found / name for name in names])
        except (RegistryError, OSError) as error:
            raise TrackingError(f"runs:/{run.info.run_id} cannot be read: {error}") from error


def _stated_files(run: Any) -> list[str]:
    """The files of a run's samples as its tag names them; empty where they have to be listed."""
    # A name that leads elsewhere is none: whoever may set tags must not choose other samples.
    try:
        names = json.loads(run.data.tags.get(FILES_TAG, "[]"))
        plain = all(name.endswith(".parquet") and not set(name) & set("/\\") for name in names)
    except (ValueError, TypeError, AttributeError):
        return []
    return sorted(names) if plain else []


def _read(files: list[Path]) -> SampleScores:
    return SampleScores.concat([SampleScores.read_parquet(file) for file in files])


def log_agreement(run_id: str, agreement: Agreement) -> None:
    """Put beside an evaluation how it agrees with one of the same model elsewhere."""
    from mlflow import MlflowClient

    name, client = agreement.samples_digest.removeprefix("sha256:")[:24], MlflowClient()
    if FILES_TAG in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, FILES_TAG)  # from now on there is something beside the samples
    client.log_dict(run_id, agreement.model_dump(mode="json"), f"{AGREEMENTS}/{name}.json")


def log_noise(run_id: str, noise: NoiseRecord) -> None:
    """Put beside an evaluation what its reruns change; the newest is what counts."""
    from mlflow import MlflowClient

    client = MlflowClient()
    client.log_dict(run_id, noise.model_dump(mode="json"), _NOISE)
    # The tag comes last: a run that carries it has the file.
    client.set_tag(run_id, NOISE_TAG, f"{noise.floor()} {_FLIPPED}")


def logged_noise(run: Any) -> NoiseRecord | None:
    """What the reruns of an evaluation changed, where that was logged beside it."""
    if NOISE_TAG not in run.data.tags:
        return None
    from ..decision.noise import NoiseRecord

    found = read_json(run.info.artifact_uri, _NOISE)
    return NoiseRecord.read(json.dumps(found), f"runs:/{run.info.run_id}/{_NOISE}")


def find_noise(model_digest: str) -> NoiseRecord | None:
    """What was logged last of a model's reruns, beside any of its evaluations."""
    import mlflow

    runs = mlflow.search_runs(
        filter_string=f"tags.`{MODEL_DIGEST_TAG}` = '{model_digest}' "
        f"and tags.`{NOISE_TAG}` LIKE '%{_FLIPPED}' and status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    return logged_noise(runs[0]) if runs else None


def logged_noise_of(run_id: str) -> NoiseRecord:
    """The same of a run by its id, which has to have it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"runs:/{run_id} cannot be read: {error}. Check the run id.") from error
    found = logged_noise(run)
    if found is None:
        raise InputError(
            f"no noise run is logged beside runs:/{run_id}: log one with mlflow-degrade noise "
            "--model MODEL --log, which says where it is."
        )
    return found


def load_facts(run: Any) -> dict[str, Any]:
    """What `log_evaluation` wrote besides the samples: key, probes, timing."""
    from mlflow import MlflowClient

    found = MlflowClient().get_run(run) if isinstance(run, str) else run
    return dict(read_json(found.info.artifact_uri, _FACTS))


def log_finite_metrics(metrics: Mapping[str, float | None]) -> None:
    """Log the metrics that are finite numbers; MLflow cannot hold the others."""
    import mlflow

    if finite := _finite(metrics):
        mlflow.log_metrics(finite)


def log_together(
    run_id: str,
    *,
    metrics: Mapping[str, float | None] | None = None,
    steps: Sequence[tuple[str, int, float]] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    datasets: Sequence[Any] = (),
) -> None:
    """Log what a run has to say at once, its tags last, which is the order of the stores."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    kinds: tuple[Any, Any, Any] = (Metric, Param, RunTag)
    metric, param, tag = kinds
    now = int(time.time() * 1_000)
    if datasets:
        MlflowClient().log_inputs(run_id, list(datasets))
    MlflowClient().log_batch(
        run_id,
        [
            *(metric(name, value, now, 0) for name, value in _finite(metrics or {}).items()),
            *(metric(_NOT_IN_NAMES.sub("_", name), value, now, at) for name, at, value in steps),
        ],
        [param(name, value) for name, value in (params or {}).items()],
        [tag(name, value) for name, value in (tags or {}).items()],
    )


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {
        _NOT_IN_NAMES.sub("_", name): float(value)
        for name, value in metrics.items()
        if value is not None and math.isfinite(value)
    }
