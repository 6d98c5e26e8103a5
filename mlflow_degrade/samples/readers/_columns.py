"""From a table with somebody else's column names to `SampleScores`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import (
    DuplicateSampleError,
    MissingExtraError,
    SampleSchemaError,
    UnknownNameError,
)
from ..schema import FEATURE_PREFIX, is_metric, text_hash
from ..schema import higher_is_better as by_name
from ..table import SampleScores
from ._reader import as_text, direction_option, note, split_names
from ._score_values import SCORERS, score_values, scored

# Marks of answers that were never scored: their 0 says nothing about the model.

#: Fields that say, when they are set, that a judge or harness gave no score.
MARKS = (
    "unscored", "judge_error", "judge_parse_error", "judge_failed", "scoring_error", "scorer_error",
    "parse_error", "parsing_error", "parse_failed",
)  # fmt: skip
# What harnesses give as the reason of a failure that is not the model's.
_CATEGORIES = frozenset(
    (
        "infra_error", "system", "system_error", "judge_error", "judge_parse_error", "parse_error",
        "scoring_error", "solve_timeout", "unscored",
    )
)  # fmt: skip
_NO = frozenset(("", "0", "0.0", "false", "no", "none", "null", "nan"))


def is_set(value: Any) -> bool:
    """Whether a mark says yes; texts such as ``"false"`` do not."""
    return bool(value) and str(value).strip().lower() not in _NO


def was_not_scored(details: Mapping[str, Any]) -> bool:
    """Whether details of a scoring say that there was none."""
    marked = any(is_set(details.get(name)) for name in MARKS)
    return marked or details.get("error_category") in _CATEGORIES


# Battles of two models before a judge, as scores of one of them: won 1, tied ½, lost 0.

# Names of the two models, and of the verdicts: of chatbot arenas, and of MT-bench, which asks the
# judge twice, with the answers in either order.
_LAYOUTS = (
    (("model_a", "model_b"), ("winner",)),
    (("model_1", "model_2"), ("g1_winner", "g2_winner")),
    (("model_1", "model_2"), ("winner",)),
)
#: Columns of battles.
BATTLE_NAMES = frozenset(name for models, games in _LAYOUTS for name in (*models, *games))
_TIES = ("draw", "both", "neither")


def _layout(names: list[str]) -> tuple[tuple[str, str], tuple[str, ...]] | None:
    found = ((models, games) for models, games in _LAYOUTS if {*models, *games} <= set(names))
    return next(found, None)


def are_battles(names: list[str]) -> bool:
    """Whether columns are those of battles."""
    return _layout(names) is not None


def scores_of(table: pa.Table, model: str | None, source: str) -> pa.Table:
    """The battles of one model, with a score each: the mean of the games that were judged."""
    layout = _layout(table.column_names)
    if layout is None:
        raise SampleSchemaError(f"{source} holds no battles, it has {table.column_names}.")
    places, games = layout
    left, right = ([str(name) for name in table[place].to_pylist()] for place in places)
    models = sorted({*left, *right})
    if model is None:
        raise SampleSchemaError(
            f"{source} holds battles of {models}: say whose scores are meant with model=…, for "
            "the two sides with -b model=… and -c model=…."
        )
    if model not in models:
        raise UnknownNameError("model", model, models)
    winners = list(zip(*(table[game].to_pylist() for game in games), strict=True))
    rows = [i for i, pair in enumerate(zip(left, right, strict=True)) if model in pair]
    scores = []
    for i in rows:
        names = left[i], right[i]
        each = [_score(names.index(model), winner, places, names, source) for winner in winners[i]]
        scored = [score for score in each if score is not None]
        scores.append(sum(scored) / len(scored) if scored else None)
    dropped = {*places, *games, "score", "metric"} & set(table.column_names)
    kept = table.take(pa.array(rows, pa.int64())).drop_columns(sorted(dropped))
    return kept.append_column("score", pa.array(scores, pa.float64())).append_column(
        "metric", pa.array(["win"] * len(rows))
    )


def _score(
    place: int, winner: Any, places: tuple[str, str], names: tuple[str, str], source: str
) -> float | None:
    text = "" if winner is None else str(winner).strip()
    if text.lower() in ("", "error", "none"):
        return None
    if text.lower().startswith("tie") or text.lower() in _TIES:
        return 0.5
    for i, name in enumerate(names):
        if text.lower() in (places[i], places[i].rpartition("_")[2]) or text == name:
            return float(i == place)
    raise SampleSchemaError(
        f"{source}: the winner {text!r} is neither {places[0]}, {places[1]}, tie nor one of "
        f"{list(names)}."
    )


# Several raters of one sample, as one score a sample.

_KEY = ("task", "doc_id", "metric", "filter", "repeat", "doc_hash")


def _mean(ratings: pd.DataFrame) -> pd.Series:
    return ratings.groupby("sample")["score"].mean()


def _majority(ratings: pd.DataFrame) -> pd.Series:
    """The most frequent score; of equally frequent ones their mean, so that no side is favoured."""
    counts = ratings.groupby(["sample", "score"]).size().reset_index(name="votes")
    most = counts.groupby("sample")["votes"].transform("max")
    return counts[counts["votes"] == most].groupby("sample")["score"].mean()


def _dawid_skene(ratings: pd.DataFrame) -> pd.Series:
    """The expected score under Dawid & Skene's model of raters with confusion matrices (1979)."""
    try:
        model = import_module("crowdkit.aggregation").DawidSkene
    except ImportError as error:
        raise MissingExtraError("crowdkit", "raters") from error

    votes = ratings.rename(columns={"sample": "task", "rater": "worker", "score": "label"})
    with warnings.catch_warnings():
        # Of what its pandas calls will be one day, at each of the steps.
        warnings.simplefilter("ignore", DeprecationWarning)
        shares = model(n_iter=100).fit_predict_proba(votes)
    expected: pd.Series = (shares * shares.columns.to_numpy(float)).sum(axis=1)
    return expected


AGGREGATIONS: Mapping[str, Callable[[pd.DataFrame], pd.Series]] = {
    "mean": _mean,
    "majority": _majority,
    "dawid-skene": _dawid_skene,
}


def one_score_a_sample(
    arrays: dict[str, Any], raters: pa.ChunkedArray, how: str, source: str
) -> dict[str, Any]:
    """The columns with one row a sample; of texts the first is kept."""
    if how not in AGGREGATIONS:
        raise UnknownNameError("aggregation of raters", how, AGGREGATIONS)
    keys = pa.table({name: arrays[name] for name in _KEY if name in arrays}).to_pandas()
    sample = keys.groupby(list(keys.columns), sort=False, dropna=False).ngroup()
    ratings = pd.DataFrame(
        {
            "sample": sample,
            "rater": raters.to_pandas().astype(str),
            "score": arrays["score"].cast(pa.float64()).to_pandas(),
        }
    )
    again = ratings.duplicated(["sample", "rater"])
    if again.any():
        first = ratings[again].iloc[0]
        doc = keys["doc_id"][sample == first["sample"]].iloc[0]
        raise DuplicateSampleError(
            f"{source}: {first['rater']!r} scored the sample {doc!r} more than once, and "
            f"{int(again.sum())} such scores are there in all: number repeated runs in a column "
            "and name it with repeat_column=…"
        )
    combined = AGGREGATIONS[how](ratings.dropna(subset="score"))
    first_rows = ratings.drop_duplicates("sample")
    scores = combined.reindex(first_rows["sample"]).to_numpy(float)
    counts = ratings.groupby("sample").size()
    spread = str(counts.min()) if counts.min() == counts.max() else f"{counts.min()}–{counts.max()}"
    note(f"{source}: {len(counts)} samples with {spread} ratings each, combined by {how}.")
    rows = pa.array(first_rows.index.to_numpy())
    kept = {name: column.take(rows) for name, column in arrays.items() if name != "score"}
    return {**kept, "score": pa.chunked_array([pa.array(scores, from_pandas=True)])}


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
    "prediction_column": "Name of the column with answers to score against target_column.",
    "scorer": f"How they are scored: {', '.join(SCORERS)}; the first by default.",
    "model_column": "Name of the column that says whose row it is; model=… then picks one.",
    "average": "Name of the column with the rater or run; the scores of each sample are combined.",
    "raters": f"How they are combined: {', '.join(AGGREGATIONS)}; the first by default.",
    "task": "Name of the task, where there is no such column.",
    "metric": "Name of the metric, where there is no such column.",
    "higher_is_better": "Direction of the scores, where there is no such column.",
    "features": "Columns to keep as features, separated by commas.",
    "model": "Name of the model; of several in one table, the one to read.",
}

# Names under which others write what we need, tried in this order when ours is absent.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "doc_id": (
        "prompt_id", "doc_id", "id", "example_id", "question_id", "sample_id", "item_id",
        "instance_id", "problem_id", "problem_idx", "test_id", "qid", "uid", "idx", "task_id",
    ),
    "prompt": (
        "prompt", "question", "input", "inputs", "user_input", "query", "instruction",
        "full_prompt", "prompt_text", "user_prompt", "formatted_prompt", "rendered_prompt",
        "messages", "conversation", "conversations", "chat",
    ),
    "target": (
        "target", "label", "gold", "reference", "expected", "ground_truth", "expected_answer",
        "gold_label", "true_label", "y_true",
    ),
    "response": (
        "response", "output", "outputs", "completion", "prediction", "predicted", "pred",
        "predicted_label", "y_pred", "model_response", "model_output", "actual_output",
        "actualoutput", "generated_text",
    ),
}  # fmt: skip
#: Columns that are read as they are written, as 007 and 7 are two samples.
ID_NAMES = ("task", "metric", "filter", "cluster", *_ALIASES["doc_id"])
# One of these alone in a table is its score; right or wrong has many names and is one metric.
_RIGHT_OR_WRONG = ("score", "correct", "is_correct", "passed", "pass", "success")
_SCORES = (*_RIGHT_OR_WRONG, "acc", "accuracy", "exact_match", "em", "f1", "reward", "rating")
_PREDICTIONS = ("prediction", "predicted", "pred", "predicted_label", "y_pred")
_REPEATS = ("turn", "epoch", "trial", "attempt")
# What may be the judge's failure or the model's, which only whoever made the log knows.
_ERRORS = ("error", "errors", "error_message", "exception")
# Objects in which records keep their scores.
SCORE_GROUPS = ("score", "scores", "metric", "metrics", "result", "results")
_MODELS = ("model", "arm", "model_name", "model_id")
_ANSWERERS = ("assistant", "gpt", "model", "ai")
_TOTALS = ("total", "totals", "mean", "average", "avg", "overall", "sum", "summary")
# What pandas calls an index that was written along by accident.
_INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__")
_FLAT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null,
)  # fmt: skip


#: All names that mean something here, in lower case.
KNOWN = frozenset(
    (
        *FIELDS, *(alias for names in _ALIASES.values() for alias in names), *_SCORES, *_REPEATS,
        *_MODELS, *MARKS, *BATTLE_NAMES, *_ERRORS,
    )
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where a table came from, for messages: what its columns are called, and which it has."""

    name: str
    has: str
    word: str = "column"
    hint: str = ""

    def lacks(self, name: str, remedy: str) -> SampleSchemaError:
        """The error for a column that is not there."""
        text = f"{self.name} has no {self.word} {name}; {self.has}. {remedy}{self.hint}"
        return SampleSchemaError(text)


def to_samples(table: pa.Table, origin: Origin, **options: Any) -> SampleScores:
    """Rename, fill and check a table; the options are those of `to_columns`."""
    columns, model = to_columns(table, origin, **options)
    return SampleScores.from_table(columns, model=model)


def to_columns(
    table: pa.Table,
    origin: Origin,
    *,
    task: str,
    keep_others: bool = True,
    model: str | None = None,
    model_column: str | None = None,
    prediction_column: str | None = None,
    scorer: str | None = None,
    metric: str | None = None,
    higher_is_better: bool | str | None = None,
    features: str | Iterable[str] | None = None,
    average: str | None = None,
    raters: str = "mean",
    **columns: str,
) -> tuple[pa.Table, str | None]:
    """The columns of a sample table from one with other names, and the name of the model."""
    stated = source_columns(columns)
    if prediction_column is not None:
        stated["response"] = prediction_column
        scorer = scorer or "exact_match"
    table, name_of_model = _of_model(_flat(table), origin, model, model_column)
    names = table.column_names
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise SampleSchemaError(f"{origin.name} has several columns called {twice}: rename them.")
    for ours, theirs in stated.items():
        if theirs not in names:
            raise origin.lacks(f"{theirs!r} ({ours})", "Check its name.")
    chosen = {**{ours: ours for ours in FIELDS if ours in names}, **_usual(names), **stated}
    scores, label = _scores(table, chosen, origin, scorer)
    arrays: dict[str, Any] = {ours: table[theirs] for ours, theirs in chosen.items()}
    arrays["score"] = _without_unscored(table, scores, origin)
    if "doc_id" not in arrays:
        arrays["doc_id"] = _ids_of_prompts(arrays.get("prompt"), origin)
    _refuse_totals(arrays["doc_id"], origin)
    turns = next((name for name in _REPEATS if name in names), None)
    if "repeat" not in arrays and turns is not None and _repeated(arrays["doc_id"]):
        arrays["repeat"] = table[turns]
    direction = direction_option(higher_is_better)
    named = metric or label
    if direction is None and named == "score" != label:
        # Called "score" to be the same on both sides; the column still says which way it points.
        direction = by_name(label)
        named = label if direction is None else named
    for ours, value in (("task", task), ("metric", named), ("higher_is_better", direction)):
        if ours not in arrays and value is not None:
            arrays[ours] = pa.chunked_array([pa.repeat(value, table.num_rows)])
    wanted = () if features is None and not keep_others else features
    used = {*chosen.values(), *_MODELS, *((model_column,) if model_column else ())}
    for name in _feature_names(wanted, table, used, origin):
        arrays[FEATURE_PREFIX + name.removeprefix(FEATURE_PREFIX)] = table[name]
    if "prompt" in arrays:
        arrays["prompt"] = _questions(arrays["prompt"], answered="response" not in arrays)
    for ours in ("target", "response"):
        if ours in arrays:
            arrays[ours] = _texts(arrays[ours])
    if average is not None:
        if average not in names:
            raise origin.lacks(f"{average!r} (average)", "Check its name.")
        arrays.pop(f"{FEATURE_PREFIX}{average}", None)
        arrays = one_score_a_sample(arrays, table[average], raters, origin.name)
    return pa.table(arrays), name_of_model


def usual_form(name: str) -> str:
    """A name as the lists of usual names have it."""
    return re.sub(r"[\s-]+", "_", name.strip(" \t?!:").lower())


def is_score_name(name: str) -> bool:
    """Whether a column, or a key within an object, is a score by its name alone."""
    return usual_form(name.rpartition(".")[2]) in _SCORES


def source_columns(options: Mapping[str, Any]) -> dict[str, str]:
    """The mapping from our columns to theirs that the options state."""
    return {_OPTION[key]: str(name) for key, name in options.items() if key in _OPTION}


def of_files(
    where: Path,
    files: Sequence[Path],
    task: str | None,
    suffix: Callable[[Path], str | None],
    read: Callable[[Path, str], SampleScores],
) -> SampleScores:
    """Put the files of a directory together, where each names its task; one is of one task."""
    parts = []
    for file in files:
        stem = file.name[: -len(suffix(file) or "")]
        parts.append(read(file, task or (stem if where.is_dir() else "samples")))
    if len(parts) == 1:
        return parts[0]
    tasks = [name for part in parts for name in part.tasks]
    owner: dict[tuple[str, str, str, str, int], int] = {}
    for i, part in enumerate(parts if len(set(tasks)) < len(tasks) else ()):
        keys = (part.table[c].to_pylist() for c in ("task", "doc_id", "metric", "filter", "repeat"))
        for key in set(zip(*keys, strict=True)):
            other = owner.setdefault(key, i)
            if other != i:
                raise SampleSchemaError(
                    f"{where} holds several arms of one comparison: {files[other].name} and "
                    f"{files[i].name} both have samples of task {key[0]!r} with the same ids "
                    f"(e.g. {key[1]!r}). Name one of the files {[file.name for file in files]} on "
                    "each side."
                )
    return SampleScores.concat(parts)


def _flat(table: pa.Table) -> pa.Table:
    """Structs as columns with dotted names."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def _usual(names: list[str]) -> dict[str, str]:
    """Ours by theirs, for names that others use; ours win."""
    lower = {usual_form(name): name for name in reversed(names)}
    found = {}
    for ours, aliases in _ALIASES.items():
        if ours in names and ours != "doc_id":
            continue
        alias = next((alias for alias in aliases if alias in lower), None)
        if alias is not None:
            found[ours] = lower[alias]
    return found


def _of_model(
    table: pa.Table, origin: Origin, model: str | None, column: str | None
) -> tuple[pa.Table, str | None]:
    """The rows of one model, and its name."""
    names = table.column_names
    if column is None and are_battles(names):
        return scores_of(table, model, origin.name), model
    if column is not None and column not in names:
        raise origin.lacks(f"{column!r} (model)", "Check its name.")
    column = column or next((name for name in _MODELS if name in names), None)
    if column is None:
        return table, model
    values = _texts(table[column])
    present = sorted(value for value in pc.unique(values).to_pylist() if value is not None)
    if len(present) < 2 and (model is None or model not in present):
        return table, model or next(iter(present), None)
    if model is None:
        raise SampleSchemaError(
            f"{origin.name} holds rows of {len(present)} models in its {origin.word} {column!r}, "
            f"{present}: name one with model=…, for the two sides of one log with -b model=… and "
            "-c model=…."
        )
    if model not in present:
        raise UnknownNameError("model", model, present)
    return table.filter(pc.equal(values, model)), model


def _scores(
    table: pa.Table, chosen: dict[str, str], origin: Origin, scorer: str | None
) -> tuple[pa.ChunkedArray, str]:
    """The scores, and what their column calls them."""
    names = table.column_names
    if scorer is None and "score" not in chosen:
        found = [name for name in names if is_score_name(name)]
        answers = next((name for name in names if name.lower() in _PREDICTIONS), None)
        if not found and (answers is None or "target" not in chosen):
            # Beside a score, or answers that can be scored, a loss is one more fact of the row.
            found = [name for name in names if is_metric(name.rpartition(".")[2])]
        if len(found) == 1:
            chosen["score"] = found[0]
        elif found:
            raise origin.lacks("score", f"Choose one of {found} with score_column=…")
        elif answers is not None and "target" in chosen:
            chosen["response"], scorer = answers, "exact_match"
            note(
                f"{origin.name} has no scores: {answers!r} is compared with "
                f"{chosen['target']!r} (another rule with scorer=…)."
            )
        else:
            raise origin.lacks("score", "Name it with score_column=…")
    if scorer is not None:
        for ours, option in (("response", "prediction_column"), ("target", "target_column")):
            if ours not in chosen:
                raise origin.lacks(ours, f"Name it with {option}=…")
        given, wanted = (_texts(table[chosen[ours]]) for ours in ("response", "target"))
        return scored(given, wanted, scorer), scorer
    label = chosen["score"].rpartition(".")[2]
    values = score_values(table[chosen["score"]], chosen["score"], origin.name)
    return values, "score" if usual_form(label) in _RIGHT_OR_WRONG else label


def _ids_of_prompts(prompts: pa.ChunkedArray | None, origin: Origin) -> pa.ChunkedArray:
    """Where there are no ids, the question itself says which sample it is."""
    if prompts is not None:
        texts = _texts(prompts)
        if not texts.null_count and not _repeated(texts):
            note(f"{origin.name} has no ids: samples are known by the text of their prompts.")
            return pa.chunked_array([[text_hash(text)[:16] for text in texts.to_pylist()]])
    wanted = "prompt_id" if origin.word == "key" else "prompt_id or doc_id"
    raise origin.lacks(wanted, "Name it with id_column=…")


def _refuse_totals(ids: pa.ChunkedArray, origin: Origin) -> None:
    """The last row of a table may be no sample."""
    last = ids[-1].as_py() if len(ids) > 1 else ""
    if str(last).strip().lower() in _TOTALS and ids.to_pylist().count(last) == 1:
        raise SampleSchemaError(
            f"{origin.name} ends in a row called {last!r}, which is no sample: remove it."
        )


def _repeated(column: pa.ChunkedArray) -> bool:
    return bool(pc.count_distinct(column).as_py() < len(column))


def _without_unscored(table: pa.Table, scores: pa.ChunkedArray, origin: Origin) -> pa.ChunkedArray:
    """The scores, empty where another column says that judge or harness gave none."""
    marks = [name for name in MARKS if name in table.column_names]
    rows = zip(*(table[name].to_pylist() for name in marks), strict=True)
    failed = pa.array([any(map(is_set, row)) for row in rows], pa.bool_())
    count = sum(failed.to_pylist())
    for name in (name for name in _ERRORS if name in table.column_names):
        column = table[name]
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            continue  # a size, or the score itself
        pairs = zip(column.to_pylist(), scores.to_pylist(), strict=True)
        erred = sum(score is not None and is_set(error) for error, score in pairs)
        if erred:
            note(
                f"{origin.name}: {erred} samples have {name!r} set and count with the score they "
                "have. If it was the judge or the harness that failed, "
                "leave their scores empty."
            )
    if not count:
        return scores
    note(f"{origin.name}: {count} samples were never scored, as {' or '.join(marks)} says.")
    return pc.if_else(failed, pa.scalar(None, scores.type), scores)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as texts; lists and other things within are written as JSON."""
    if pa.types.is_string(column.type):
        return column
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return pa.chunked_array([[as_text(value) for value in column.to_pylist()]], pa.string())


def _questions(column: pa.ChunkedArray, *, answered: bool) -> pa.ChunkedArray:
    """Prompts as texts; a conversation may end with the answer, where no other column has that."""
    # Beside an answer of its own, what a conversation ends with was put into the model's mouth,
    # and is a part of the question.
    texts = _texts(column)
    if not answered or not pc.any(pc.starts_with(texts, "[")).as_py():
        return texts
    return pa.chunked_array([[_unanswered(text) for text in texts.to_pylist()]], pa.string())


def _unanswered(text: str | None) -> str | None:
    try:
        turns = json.loads(text or "")
    except ValueError:
        return text
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return text
    while turns and str(turns[-1].get("role", turns[-1].get("from"))).lower() in _ANSWERERS:
        turns.pop()
    return as_text(turns)


def _feature_names(
    wanted: str | Iterable[str] | None, table: pa.Table, used: set[str], origin: Origin
) -> list[str]:
    names = table.column_names
    if wanted is None:
        others = {*used, *_INDEX_NAMES, *FIELDS, *MARKS}
        fields = [field for field in table.schema if field.name not in others]
        # What is no number or text, such as token ids, is nothing to look for damage in.
        return [f.name for f in fields if any(kind(f.type) for kind in _FLAT_TYPES)]
    features = split_names(wanted)
    missing = [name for name in features if name not in names]
    if missing:
        raise SampleSchemaError(
            f"{origin.name} has no {origin.word}s {missing}; {origin.has}.{origin.hint}"
        )
    return features
