"""From a table with somebody else's column names to `SampleScores`."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from .._sample_schema import FEATURE_PREFIX
from ..errors import InputError, SampleSchemaError
from ..scores import SampleScores
from ._reader import note
from ._unscored import MARKS, is_set

#: Columns of a sample table that a column of another name can be mapped to.
FIELDS = (
    "task", "doc_id", "score", "metric", "filter", "repeat", "cluster", "doc_hash", "prompt_hash",
    "target_hash", "higher_is_better", "prompt", "target", "response",
)  # fmt: skip

# "id_column" reads better than "doc_id_column".
_OPTION = {f"{'id' if name == 'doc_id' else name}_column": name for name in FIELDS}
COLUMN_OPTIONS = {
    **{option: f"Name of the column with the {name}." for option, name in _OPTION.items()},
    "id_column": "Name of the column that identifies the sample.",
    "task": "Name of the task, where there is no such column.",
    "metric": "Name of the metric, where there is no such column.",
    "higher_is_better": "Direction of the scores, where there is no such column.",
    "features": "Columns to keep as features, separated by commas.",
    "model": "Name of the model.",
}

_ID_NAMES = ("prompt_id", "doc_id", "id")
# What pandas calls an index that was written along by accident.
_INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__")


def source_columns(options: dict[str, object]) -> dict[str, str]:
    """The mapping from our columns to theirs that the options state."""
    return {_OPTION[key]: str(name) for key, name in options.items() if key in _OPTION}


def to_samples(
    table: pa.Table,
    source: str,
    *,
    columns: dict[str, str],
    task: str | None = None,
    metric: str | None = None,
    higher_is_better: bool | str | None = None,
    features: str | Iterable[str] | None = None,
    model: str | None = None,
) -> SampleScores:
    """Rename, fill and check a table.

    Parameters
    ----------
    table : pyarrow.Table
    source : str
        Where it came from, for messages.
    columns : dict
        From our names to theirs; those not stated are looked for under our names, the id also as
        ``prompt_id`` and ``id``.
    task, metric : str, optional
        Value where there is no such column; a metric is called like the column with the scores.
    higher_is_better : bool, optional
        Direction where there is no such column.
    features : names, optional
        Columns kept as features, separated by commas in a text; all others by default.
    model : str, optional
        Name of the model.
    """
    names = table.column_names
    for ours, theirs in columns.items():
        if theirs not in names:
            raise SampleSchemaError(f"{source} has no column {theirs!r} ({ours}); it has {names}.")
    chosen = {ours: ours for ours in FIELDS if ours in names}
    id_name = next((name for name in _ID_NAMES if name in names), None)
    if id_name is not None:
        chosen["doc_id"] = id_name
    chosen.update(columns)
    for ours, option in (("doc_id", "id_column"), ("score", "score_column")):
        if ours not in chosen:
            wanted = " or ".join(_ID_NAMES[:2]) if ours == "doc_id" else "score"
            raise SampleSchemaError(
                f"{source} has no column {wanted}; it has {names}. Name it with {option}=…"
            )
    arrays = {ours: table[theirs] for ours, theirs in chosen.items()}
    arrays["score"] = _without_unscored(table, arrays["score"], source)
    named = metric or chosen["score"].rpartition(".")[2]
    direction = direction_option(higher_is_better)
    for ours, value in (("task", task), ("metric", named), ("higher_is_better", direction)):
        if ours not in arrays and value is not None:
            arrays[ours] = pa.chunked_array([pa.repeat(value, table.num_rows)])
    for name in _feature_names(features, names, set(chosen.values()), source):
        arrays[FEATURE_PREFIX + name.removeprefix(FEATURE_PREFIX)] = table[name]
    return SampleScores.from_table(pa.table(arrays), model=model)


def _without_unscored(table: pa.Table, scores: pa.ChunkedArray, source: str) -> pa.ChunkedArray:
    """The scores, empty where another column says that judge or harness gave none."""
    marks = [name for name in MARKS if name in table.column_names]
    rows = zip(*(table[name].to_pylist() for name in marks), strict=True)
    failed = pa.array([any(map(is_set, row)) for row in rows], pa.bool_())
    count = sum(failed.to_pylist())
    if not count:
        return scores
    note(f"{source}: {count} samples were never scored, as {' or '.join(marks)} says.")
    return pc.if_else(failed, pa.scalar(None, scores.type), scores)


def direction_option(given: bool | str | None) -> bool | None:
    """The option ``higher_is_better``; None leaves it to the metric's name."""
    return None if given is None else truth("higher_is_better", given)


def truth(name: str, value: bool | str) -> bool:
    """A yes-or-no option, which on the command line is a text.

    Raises
    ------
    InputError
    """
    text = str(value).lower()
    if text in ("true", "yes", "1"):
        return True
    if text in ("false", "no", "0"):
        return False
    raise InputError(f"option {name} is {value!r}; it is true or false.")


def split_names(value: str | Iterable[str]) -> list[str]:
    """Names from a comma-separated text or from a sequence."""
    parts = value.split(",") if isinstance(value, str) else list(value)
    return [part.strip() for part in parts if part.strip()]


def _feature_names(
    wanted: str | Iterable[str] | None, names: list[str], used: set[str], source: str
) -> list[str]:
    if wanted is None:
        others = {*used, *_INDEX_NAMES, *FIELDS, *MARKS}
        return [name for name in names if name not in others]
    features = split_names(wanted)
    missing = [name for name in features if name not in names]
    if missing:
        raise SampleSchemaError(f"{source} has no columns {missing}; it has {names}.")
    return features
