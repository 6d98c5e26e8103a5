"""The columns of a sample table: their types, their defaults, and what is refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import EmptySamplesError, NonFiniteScoreError, SampleSchemaError

# What the name of a metric says about the direction of its scores, for all readers.

# Normalized: lower case, words joined by underscores.
_LOWER_IS_BETTER = frozenset(
    (
        "perplexity", "word_perplexity", "byte_perplexity", "token_perplexity", "ppl",
        "bits_per_byte", "bits_per_char", "bits_per_character", "bpb", "bpc",
        "loss", "eval_loss", "test_loss", "log_loss", "logloss", "nll", "nll_loss",
        "negative_log_likelihood", "cross_entropy", "cross_entropy_loss",
        "brier", "brier_score", "ece", "expected_calibration_error",
        "error_rate", "wer", "word_error_rate", "cer", "character_error_rate", "mer", "ter",
        "edit_distance", "levenshtein", "levenshtein_distance",
        "mse", "rmse", "mae", "mean_squared_error", "root_mean_squared_error",
        "mean_absolute_error", "absolute_error", "squared_error",
        "bias", "hallucination", "toxicity", "toxicity_v1_score", "latency",
    )
)  # fmt: skip
_HIGHER_IS_BETTER = frozenset(
    ("neg_loss", "neg_log_loss", "neg_mean_squared_error", "neg_mean_absolute_error")
)
_LIKE_A_LOSS = re.compile(
    r"(?:^|_)(?:\w*loss|\w*perplexity|ppl|nll|bp[bc]|[wcmt]er|errors?|err|r?mse|mae|mape|ece"
    r"|brier|\w*distance|\w*divergence|kl|\w*entropy|regret|penalty|latency|cost|toxicity"
    r"|hallucinations?|wrong|incorrect|fail(?:s|ed|ures?)?|violations?|unsafe|harm\w*|miss(?:es|ed)?"
    r"|surprisal|refusals?|refused|durations?|seconds|time|timeouts?)(?:_|$)|bits_per_"
)


def is_metric(name: str) -> bool:
    """Whether a name is that of a metric whose direction is known."""
    # How long an answer took is told beside scores of any kind.
    return _normal(name) in (_LOWER_IS_BETTER | _HIGHER_IS_BETTER) - {"latency"}


def higher_is_better(metric: str) -> bool | None:
    """Direction of a metric by its name; None where it looks like a loss that is not known."""
    name = _normal(metric)
    if name in _LOWER_IS_BETTER:
        return False
    if name in _HIGHER_IS_BETTER:
        return True
    return None if _LIKE_A_LOSS.search(name) else True


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


FEATURE_PREFIX = "feature."
#: Where to look at how an answer came about, if that is known: an address, or a trace's id.
TRACE = "trace"
#: Of a sample whose answers are given, in nats: log-likelihood of the right one, how far it is
#: above the best wrong one, and all of them in the order of the choices. Null where not known.
GOLD_LOGLIKELIHOOD = "gold_loglikelihood"
GOLD_MARGIN = "gold_margin"
LOGLIKELIHOODS = "loglikelihoods"

_FIELDS: tuple[pa.Field, ...] = (
    pa.field("task", pa.string(), nullable=False),
    pa.field("doc_id", pa.string(), nullable=False),
    pa.field("doc_hash", pa.string(), nullable=False),
    pa.field("prompt_hash", pa.string()),
    pa.field("target_hash", pa.string()),
    pa.field("metric", pa.string(), nullable=False),
    pa.field("filter", pa.string(), nullable=False),
    pa.field("repeat", pa.int32(), nullable=False),
    pa.field("score", pa.float64()),
    pa.field("higher_is_better", pa.bool_(), nullable=False),
    pa.field("cluster", pa.string()),
    pa.field("prompt", pa.string()),
    pa.field("target", pa.string()),
    pa.field("response", pa.string()),
)
# There only where something is known.
_OPTIONAL: tuple[pa.Field, ...] = (
    pa.field(TRACE, pa.string()),
    pa.field(GOLD_LOGLIKELIHOOD, pa.float64()),
    pa.field(GOLD_MARGIN, pa.float64()),
    pa.field(LOGLIKELIHOODS, pa.list_(pa.float64())),
)
_DEFAULTS: Mapping[str, Any] = {"filter": "none", "repeat": 0}
_REQUIRED = ("task", "doc_id", "metric", "score")


def fields_named(names: Iterable[str]) -> list[pa.Field]:
    """Some of the fields that every sample table has."""
    return [next(field for field in _FIELDS if field.name == name) for name in names]


def conform(table: pa.Table) -> tuple[list[pa.Field], list[pa.ChunkedArray]]:
    """Fields and columns of the schema from a table that has at least the required ones."""
    repeated = {n for n in table.column_names if table.column_names.count(n) > 1}
    if repeated:
        raise SampleSchemaError(
            f"columns {sorted(repeated)} occur more than once in {table.column_names}: "
            "rename or drop the surplus ones."
        )
    missing = [name for name in _REQUIRED if name not in table.column_names]
    if missing:
        raise SampleSchemaError(
            f"columns {missing} are missing; there are {table.column_names}. A sample table "
            f"needs {list(_REQUIRED)}; map other names with the reader's options."
        )
    if table.num_rows == 0:
        raise EmptySamplesError("the sample table has no rows: nothing was scored.")
    fields, columns = list(_FIELDS), _columns(table)
    for name in table.column_names:
        if name.startswith(FEATURE_PREFIX):
            columns.append(_feature(table, name))
            fields.append(pa.field(name, columns[-1].type))
    for field in _OPTIONAL:
        if field.name in table.column_names:
            fields.append(field)
            columns.append(_convert(table[field.name], field))
    return fields, columns


def _columns(table: pa.Table) -> list[pa.ChunkedArray]:
    """The schema's columns: converted where present, else filled with their default."""
    absent: dict[pa.DataType, pa.ChunkedArray] = {}
    columns: dict[str, pa.ChunkedArray] = {}
    for field in _FIELDS:
        if field.name in table.column_names:
            given = table[field.name]
            if field.name == "higher_is_better" and given.null_count:
                given = _known_directions(given, columns["metric"])
            columns[field.name] = _convert(given, field)
        elif field.name == "higher_is_better":
            columns[field.name] = _directions(columns["metric"])
        elif field.name == "doc_hash":
            columns["doc_hash"] = derived_hash(columns["task"], columns["doc_id"])
        elif field.name in _DEFAULTS:
            value = pa.scalar(_DEFAULTS[field.name], field.type)
            columns[field.name] = pa.chunked_array([pa.repeat(value, table.num_rows)])
        else:
            # One array of nulls serves all text columns that are absent.
            if field.type not in absent:
                nulls = pa.nulls(table.num_rows, field.type)
                absent[field.type] = pa.chunked_array([nulls])
            columns[field.name] = absent[field.type]
    return list(columns.values())


def derived_hash(task: pa.ChunkedArray, doc_id: pa.ChunkedArray) -> pa.ChunkedArray:
    """What stands for the hash of documents whose content is not known."""
    return pc.binary_join_element_wise(task, doc_id, "/")


def _directions(metrics: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether higher is better, by the names of the metrics."""
    encoded = metrics.combine_chunks().dictionary_encode()
    known = {name: higher_is_better(name) for name in encoded.dictionary.to_pylist()}
    unclear = [name for name, higher in known.items() if higher is None]
    if unclear:
        raise SampleSchemaError(
            f"the names of the metrics {unclear} sound like losses, and nothing says whether "
            "higher is better. Say so with higher_is_better=true or higher_is_better=false (-o on "
            "the command line), or in a column higher_is_better."
        )
    values = pa.array(list(known.values()), pa.bool_())
    return pa.chunked_array([pc.take(values, encoded.indices)])


def _known_directions(given: pa.ChunkedArray, metrics: pa.ChunkedArray) -> pa.ChunkedArray:
    """Directions that are given, and for rows without one that of the metric's name."""
    given = given.cast(pa.bool_())
    empty = given.is_null()
    rows = np.flatnonzero(empty.to_numpy())
    values = given.to_numpy(zero_copy_only=False).copy()
    values[rows] = _directions(metrics.take(pa.array(rows))).to_numpy(zero_copy_only=False)
    return pa.chunked_array([pa.array(values.astype(bool))])


def text_hash(text: str) -> str:
    """SHA-256 of a text, as lm-eval writes it."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def with_text_hashes(table: pa.Table) -> pa.Table:
    """The table with hashes of its prompts and targets where it has the texts alone."""
    # What is compared are the hashes, so a text without one would be ignored.
    for text, name in (("prompt", "prompt_hash"), ("target", "target_hash")):
        texts, hashes = table[text], table[name]
        if texts.null_count == len(texts) or not hashes.null_count:
            continue
        # Prompts that share their text, as targets often do, are hashed once.
        encoded = texts.combine_chunks().dictionary_encode()
        hashed = pa.array([text_hash(t) for t in encoded.dictionary.to_pylist()], pa.string())
        own = pc.take(hashed, encoded.indices)
        place = table.schema.get_field_index(name)
        filled = pc.coalesce(hashes, pa.chunked_array([own]))
        table = table.set_column(place, table.schema.field(name), filled)
    return table


def _convert(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    name, given = field.name, column.type
    if name == "score" and pa.types.is_boolean(given):
        column = column.cast(pa.int8())
    column = _cast(column, field.type, f"column {name!r} has type {given}, {field.type} is needed")
    if not field.nullable and column.null_count:
        if name not in _DEFAULTS:
            where = np.flatnonzero(column.is_null().to_numpy())[:3].tolist()
            raise SampleSchemaError(
                f"column {name!r} is empty in {column.null_count} rows (first: {where}): "
                "every sample needs it."
            )
        column = column.fill_null(pa.scalar(_DEFAULTS[name], field.type))
    return column


def _feature(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    kind = pa.float64() if any(is_kind(column.type) for is_kind in kinds) else pa.string()
    wrong = f"feature {name!r} has type {column.type}; a feature is a number or a text"
    return _cast(column, kind, wrong)


def _cast(column: pa.ChunkedArray, kind: pa.DataType, wrong: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise SampleSchemaError(f"{wrong}: {error}") from error


def refuse_useless_scores(table: pa.Table) -> None:
    """Refuse scores that are not finite, and tables without any score."""
    scores = table["score"]
    bad = pc.fill_null(pc.invert(pc.is_finite(scores)), False)
    count = pc.sum(bad).as_py() or 0
    if count:
        first = table.filter(bad).slice(0, 3).select(["task", "doc_id", "metric", "score"])
        raise NonFiniteScoreError(
            f"{count} of {table.num_rows} scores are NaN or infinite, first: {first.to_pylist()}. "
            "A sample that could not be scored is null, not NaN; find out why the model or the "
            "metric produced it."
        )
    if scores.null_count == table.num_rows:
        raise EmptySamplesError(
            f"none of the {table.num_rows} samples has a score: check that answers were extracted."
        )
