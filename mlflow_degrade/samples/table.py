"""The per-sample table: one scored answer per row, with its Parquet schema.

Every reader produces it, every decision starts from it. Parquet is the source of truth; scores
that could not be computed are null, which is not 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..core.errors import EmptySamplesError, SampleSchemaError, UnknownNameError
from .origin import Origin
from .row_index import RowIndex, table_digest
from .schema import FEATURE_PREFIX, conform, refuse_useless_scores, with_text_hashes

SCHEMA_VERSION = "1"

_METADATA_KEY = b"mlflow_degrade"

# What `SampleScores.digest` covers: the keys and the scores, not the texts people read.
DIGESTED = (
    "task", "filter", "doc_id", "repeat", "metric", "doc_hash", "prompt_hash", "target_hash",
    "higher_is_better", "cluster", "score",
)  # fmt: skip
_DIGEST_ORDER = DIGESTED[:5]
LABELS = ("task", "filter", "metric")


class SampleScores:
    """Per-sample scores of one model, as an Arrow table with a fixed schema.

    One row per sample × metric × filter × repeat. Build it with `from_pandas`, `from_records` or
    `from_table`, which check the content; read and write it as Parquet.

    Parameters
    ----------
    table : pyarrow.Table
        A table that already has the schema; use the constructors above for anything else.

    Attributes
    ----------
    table : pyarrow.Table
        Columns ``task, doc_id, doc_hash, prompt_hash, target_hash, metric, filter, repeat, score,
        higher_is_better, cluster, prompt, target, response`` and any number of ``feature.*``
        columns (float64 or string). Where they are known, ``trace`` and, in nats,
        ``gold_loglikelihood`` and ``gold_margin`` (float64) and ``loglikelihoods`` (of every choice
        in order, list of float64).

    Examples
    --------
    >>> import pandas as pd
    >>> scores = SampleScores.from_pandas(
    ...     pd.DataFrame({"task": "qa", "doc_id": ["1", "2"], "metric": "acc", "score": [1, 0]}),
    ...     model="fp32",
    ... )
    >>> scores.tasks, scores.metrics("qa"), len(scores)
    (('qa',), ('acc',), 2)
    """

    streamed = False  # Whether the rows stay in their files, see `streaming`.

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    # -- construction ---------------------------------------------------------------------

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        *,
        model: str | None = None,
        model_digest: str | None = None,
        task_versions: Mapping[str, str] | None = None,
        origin: Origin | None = None,
        answer_digests: Mapping[str, str] | None = None,
        prompting: Mapping[str, Any] | None = None,
    ) -> SampleScores:
        """Check a table, fill what may be absent and fix its types.

        Parameters
        ----------
        table : pyarrow.Table
            At least ``task, doc_id, metric, score``.
        model, model_digest : str, optional
            Name and content digest of the model that was scored.
        task_versions : mapping of str to str, optional
            Version of each task's definition.
        origin : mlflow_degrade.samples.origin.Origin, optional
            Where the scores were computed.
        answer_digests : mapping of str to str, optional
            Digest of all that was answered to a task, where a log has more than `response` shows,
            such as log-likelihoods. Tells two models with the same scores apart.
        prompting : mapping, optional
            How the model was asked: `mlflow_degrade.core.prompting.Prompting.facts`.

        Raises
        ------
        SampleSchemaError
            A required column is missing, a type cannot be converted, or a key column has nulls.
        NonFiniteScoreError
            A score is NaN or infinite. Unscored samples are null.
        EmptySamplesError
            There are no rows, or no row has a score.

        Notes
        -----
        Without ``doc_hash`` a document is taken to be what its task and ``doc_id`` say it is.
        Prompts and targets without a hash get the SHA-256 of their text, which is lm-eval's rule.
        """
        result = conformed(
            table,
            model=model,
            model_digest=model_digest,
            task_versions=task_versions,
            origin=origin,
            answer_digests=answer_digests,
            prompting=prompting,
        )
        refuse_useless_scores(result)
        return cls(result)

    @classmethod
    def from_pandas(cls, frame: pd.DataFrame, **metadata: Any) -> SampleScores:
        """Build from a data frame; NaN in ``score`` is refused, ``None``/``pd.NA`` is unscored.

        Parameters are those of `from_table`. A float column cannot tell "unscored" from "NaN",
        so a missing score must be an object or nullable dtype.
        """
        from_pandas = not _has_plain_nan(frame)
        arrays = {}
        for name in frame.columns:
            nan_is_null = name != "score" or from_pandas
            try:
                arrays[str(name)] = pa.array(frame[name], from_pandas=nan_is_null)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                # Mixed types, e.g. ids that are sometimes numbers: keys are compared as text.
                arrays[str(name)] = pa.array(
                    [None if _is_missing(v) else str(v) for v in frame[name]], type=pa.string()
                )
        return cls.from_table(pa.table(arrays), **metadata)

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], **metadata: Any) -> SampleScores:
        """Build from dictionaries, one per row. Parameters are those of `from_table`."""
        rows = list(records)
        if not rows:
            raise EmptySamplesError("there are no sample records: nothing was scored.")
        names = dict.fromkeys(name for row in rows for name in row)
        try:
            table = pa.table({name: [row.get(name) for row in rows] for name in names})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SampleSchemaError(
                f"the records do not form a table: {error}. Each column needs one type."
            ) from error
        return cls.from_table(table, **metadata)

    @classmethod
    def concat(cls, parts: Sequence[SampleScores]) -> SampleScores:
        """Stack tables of one model; names and digests must agree.

        Raises
        ------
        SampleSchemaError
            The parts come from different models or processors, or from different versions of a
            task.
        """
        if not parts:
            raise EmptySamplesError("no sample tables to put together.")
        digests = {part.model_digest for part in parts}
        if len(digests) > 1:
            raise SampleSchemaError(
                f"sample tables of different models cannot be stacked: {sorted(map(str, digests))}."
            )
        origins = {part.origin for part in parts}
        if len(origins) > 1:
            named = sorted("unknown" if o is None else str(o.processor) for o in origins)
            raise SampleSchemaError(
                f"sample tables from different processors cannot be stacked: {named}. Evaluate all "
                "tasks on one."
            )
        versions: dict[str, str] = {}
        for part in parts:
            for task, version in part.task_versions.items():
                if versions.setdefault(task, version) != version:
                    raise SampleSchemaError(
                        f"task {task!r} was scored in versions {versions[task]!r} and {version!r}: "
                        "these are two tests; keep one."
                    )
        try:
            table = pa.concat_tables([part.table for part in parts], promote_options="default")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SampleSchemaError(f"the sample tables do not fit: {error}") from error
        first = parts[0]
        if any(part.prompting != first.prompting for part in parts):
            raise SampleSchemaError("sample tables that were asked in two ways cannot be stacked.")
        answers = {task: known for part in parts for task, known in part.answer_digests.items()}
        return cls.from_table(
            table,
            model=first.model,
            model_digest=first.model_digest,
            task_versions=versions,
            origin=first.origin,
            answer_digests=answers,
            prompting=first.prompting,
        )

    # -- Parquet --------------------------------------------------------------------------

    def write_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as zstd-compressed Parquet, atomically; returns the path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            pq.write_table(self.table, scratch, compression="zstd")
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
        return target

    @classmethod
    def read_parquet(cls, path: str | os.PathLike[str]) -> SampleScores:
        """Read a table written by `write_parquet`.

        Raises
        ------
        SampleSchemaError
            The file is not Parquet, not a sample table, or of a newer schema.
        """
        try:
            # Without partitioning, a folder named like "model=x" adds no column.
            table = pq.read_table(path, partitioning=None)
        except (pa.ArrowInvalid, OSError) as error:
            raise SampleSchemaError(f"{path} is not a readable Parquet file: {error}") from error
        return cls.from_table(table, **facts_of_file(table.schema, path))

    # -- reading --------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"SampleScores({len(self)} rows, tasks={list(self.tasks)}, model={self.model!r})"

    @property
    def model(self) -> str | None:
        """Name of the scored model."""
        return _metadata(self.table.schema).get("model")

    @property
    def model_digest(self) -> str | None:
        """Content digest of the scored model."""
        value = _metadata(self.table.schema).get("model_digest")
        return None if value is None else str(value)

    @property
    def task_versions(self) -> dict[str, str]:
        """Version of each task's definition, where the harness states one."""
        return dict(_metadata(self.table.schema).get("task_versions") or {})

    @property
    def origin(self) -> Origin | None:
        """Where the scores were computed, if that is known."""
        return Origin.of(_metadata(self.table.schema).get("origin"), "the table")

    @property
    def answer_digests(self) -> dict[str, str]:
        """Digest of all that was answered to each task, where the log has more than it shows."""
        return dict(_metadata(self.table.schema).get("answer_digests") or {})

    @property
    def prompting(self) -> dict[str, Any] | None:
        """How the model was asked, if that is known."""
        return _metadata(self.table.schema).get("prompting")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, sorted."""
        return tuple(sorted(pc.unique(self.table["task"]).to_pylist()))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the feature columns, without their prefix."""
        names = self.table.column_names
        return tuple(n.removeprefix(FEATURE_PREFIX) for n in names if n.startswith(FEATURE_PREFIX))

    def metrics(self, task: str) -> tuple[str, ...]:
        """Names of the metrics recorded for `task`, sorted."""
        rows = self.table.filter(pc.equal(self.table["task"], task))
        return tuple(sorted(pc.unique(rows["metric"]).to_pylist()))

    def metrics_of_tasks(self) -> dict[str, set[str]]:
        """Names of the metrics of each task."""
        found: dict[str, set[str]] = {}
        for row in self.table.group_by(["task", "metric"]).aggregate([]).to_pylist():
            found.setdefault(row["task"], set()).add(row["metric"])
        return found

    def select(
        self, tasks: Iterable[str] | None = None, metrics: Iterable[str] | None = None
    ) -> SampleScores:
        """Rows of some tasks and metrics (all where not given).

        Raises
        ------
        UnknownNameError
            No row has the task or metric.
        """
        table = self.table
        for name, wanted in (("task", tasks), ("metric", metrics)):
            if wanted is None:
                continue
            present, names = set(pc.unique(table[name]).to_pylist()), list(wanted)
            for unknown in (n for n in names if n not in present):
                raise UnknownNameError(name, unknown, present)
            table = table.filter(pc.is_in(table[name], value_set=pa.array(names, pa.string())))
        return SampleScores(table)

    def with_model(self, name: str) -> SampleScores:
        """The same scores under another model name."""
        return self._stating(model=name)

    def with_digest(self, digest: str) -> SampleScores:
        """The same scores, said to be of a model with this content."""
        return self._stating(model_digest=digest)

    def with_origin(self, origin: Origin) -> SampleScores:
        """The same scores, said to be from somewhere."""
        return self._stating(origin=origin.model_dump(mode="json"))

    def _stating(self, **facts: Any) -> SampleScores:
        encoded = _encoded({**_metadata(self.table.schema), **facts})
        return SampleScores(self.table.replace_schema_metadata(encoded))

    def to_pandas(self) -> pd.DataFrame:
        """The table as a data frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def rows(self, positions: npt.NDArray[np.int64]) -> pa.Table:
        """Some rows of the table, by their positions."""
        return self.table.take(pa.array(positions))

    def means(self) -> dict[tuple[str, str, str], float]:
        """Mean score of the scored rows per (task, metric, filter)."""
        grouped = self.table.group_by(["task", "metric", "filter"]).aggregate([("score", "mean")])
        rows = grouped.to_pylist()
        keyed = {(r["task"], r["metric"], r["filter"]): float(r["score_mean"]) for r in rows}
        return dict(sorted(keyed.items()))

    def digest(self) -> str:
        """SHA-256 of the keys and scores, independent of row order and of the answers.

        Binds a decision to the numbers it was made from: any changed, added or removed score
        changes it, a reordered file does not.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        # The table never changes, and a gate asks for its digest several times.
        return table_digest(self.row_index, {"model_digest": self.model_digest})

    @cached_property
    def row_index(self) -> RowIndex:
        """Order and keys of the rows, which pairing and digest share; not meant for users."""
        return RowIndex(self.table.select(list(DIGESTED)), _DIGEST_ORDER, LABELS)


def conformed(
    table: pa.Table,
    *,
    model: str | None = None,
    model_digest: str | None = None,
    task_versions: Mapping[str, str] | None = None,
    origin: Origin | None = None,
    answer_digests: Mapping[str, str] | None = None,
    prompting: Mapping[str, Any] | None = None,
) -> pa.Table:
    """A table, or a part of one, in the schema; its scores are not checked yet."""
    fields, columns = conform(table)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "model_digest": model_digest,
        "task_versions": dict(task_versions or {}),
        **({} if origin is None else {"origin": origin.model_dump(mode="json")}),
    }
    stated = {"answer_digests": answer_digests, "prompting": prompting}
    metadata |= {name: dict(value) for name, value in stated.items() if value}
    schema = pa.schema(fields, metadata=_encoded(metadata))
    result = pa.Table.from_arrays(columns, schema=schema)
    if not _metadata(table.schema):
        # A table that was a sample table before keeps its digest.
        result = with_text_hashes(result)
    return result


def facts_of_file(schema: pa.Schema, path: object) -> dict[str, Any]:
    """What a file of samples says about all of them, as `SampleScores.from_table` takes it."""
    metadata = _metadata(schema)
    version = metadata.get("schema_version")
    if version is not None and int(version) > int(SCHEMA_VERSION):
        raise SampleSchemaError(
            f"{path} has sample schema {version}; this version reads up to {SCHEMA_VERSION}: "
            "upgrade mlflow-degrade."
        )
    named = ("model", "model_digest", "task_versions", "answer_digests", "prompting")
    return {
        "origin": Origin.of(metadata.get("origin"), path),
        **{name: metadata.get(name) for name in named},
    }


def _metadata(schema: pa.Schema) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(_METADATA_KEY)
    return {} if raw is None else dict(json.loads(raw))


def _encoded(metadata: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()}


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _has_plain_nan(frame: pd.DataFrame) -> bool:
    """Whether the score column is a plain float column with NaN, so that NaN must be refused."""
    if "score" not in frame.columns:
        return False
    column = frame["score"]
    return column.dtype.kind == "f" and isinstance(column.dtype, np.dtype) and column.hasnans
