"""Rows of a file or data set of one's own, and which of its columns is what."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import DegradeError, InputError, UnknownNameError
from ..core.progress import quiet_libraries
from ..core.question_names import HUB, MLFLOW, file_suffix, split_of, task_of
from ..samples.readers._columns import usual_form
from ..samples.readers._reader import look_up, text_encoding
from ..samples.readers.tables import delimiter_of

# Records of files, data sets and evaluation datasets, as dictionaries by column.

_SPLITS = ("test", "validation", "dev", "eval")


def of_file(path: Path, suffix: str) -> list[dict[str, Any]]:
    """Rows of a file of one of the known suffixes."""
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found = pq.read_table(path, partitioning=None).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from error
        return [{k: v for k, v in row.items() if not k.startswith("__index")} for row in found]
    text = _text_of(path)
    if suffix in (".csv", ".tsv"):
        return _of_csv(path, text)
    if suffix == ".json":
        return _objects(path, _json(text, str(path)))
    # Not splitlines: texts may hold what Unicode calls a line separator.
    lines = enumerate(text.split("\n"), start=1)
    return _objects(path, [_json(line, f"{path}, line {n}") for n, line in lines if line.strip()])


def _text_of(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its first bytes say so."""
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    try:
        return content.decode(text_encoding(content))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} is not UTF-8 throughout: line {line} has the byte "
            f"0x{content[error.start]:02x}; save it as UTF-8."
        ) from error


def _of_csv(path: Path, text: str) -> list[dict[str, Any]]:
    delimiter = delimiter_of(text.partition("\n")[0])
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[dict[str, Any]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise InputError(f"{path} has several columns called {repeated}: rename them.")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} cells under {len(names)} "
                    f"columns; put texts that hold {delimiter!r} in double quotes."
                )
            records.append({n: cell or None for n, cell in zip(names, row, strict=True)})
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from error
    return records


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}).") from error


def _objects(path: Path, content: Any) -> list[dict[str, Any]]:
    """The one array of objects in what a JSON file holds."""
    if isinstance(content, dict):
        arrays = {key: value for key, value in content.items() if isinstance(value, list)}
        if len(arrays) != 1:
            raise InputError(
                f"{path} holds an object with {len(arrays)} arrays {sorted(arrays)}: an array of "
                "objects is needed, a row each."
            )
        (content,) = arrays.values()
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(f"{path} holds something else than objects: one is needed for each row.")
    return content


def of_datasets(source: str) -> list[dict[str, Any]]:
    """Rows of one split of a data set on this disk or on the hub."""
    import datasets

    named, split = split_of(source)
    with quiet_libraries():
        try:
            if named.startswith(HUB):
                found = datasets.load_dataset(*_hub_name(named))
            else:
                folder = Path(named).expanduser()
                saved = any((folder / n).is_file() for n in ("dataset_dict.json", "state.json"))
                found = (
                    datasets.load_from_disk(str(folder))
                    if saved
                    else datasets.load_dataset(str(folder))
                )
        except DegradeError:
            raise
        except Exception as error:
            raise _unread(named, error) from error
    if isinstance(found, dict):
        chosen = split or next((name for name in _SPLITS if name in found), None)
        if chosen is None and len(found) == 1:
            chosen = next(iter(found))
        if chosen not in found:
            raise InputError(
                f"{named} has the splits {sorted(found)}: name one, e.g. {named}:{min(found)}."
            )
        found = found[chosen]
    elif split is not None:
        raise InputError(f"{named} has no splits, so none is called {split!r}.")
    return [dict(row) for row in _with_class_names(found)]


def _unread(named: str, error: Exception) -> InputError:
    """What to say of a data set that `datasets` did not read."""
    if configs := re.search(r"(?:configs|Available): \[(.+?)\]", str(error)):
        names = re.findall(r"'(.+?)'", configs[1])
        whole = HUB + _hub_name(named)[0] if named.startswith(HUB) else None
        remedy = "save the one that is meant by itself" if whole is None else f"{whole}/{names[0]}"
        return InputError(f"{named} has the configs {names}: name one, e.g. {remedy}.")
    cause: BaseException = error
    while cause.__cause__ is not None and "generating the dataset" in str(cause):
        cause = cause.__cause__  # which says what is wrong with its files
    why = " ".join(str(cause).split()).rstrip(".")
    return InputError(
        f"{named} cannot be read as a data set ({type(cause).__name__}: {why}). If it is on the "
        "hub, check its name, the network and your access."
    )


def _with_class_names(data: Any) -> Iterator[dict[str, Any]]:
    """Rows with the names of classes, where the data set knows them."""
    named = {
        name: feature for name, feature in data.features.items() if hasattr(feature, "int2str")
    }
    for row in data:
        for name, feature in named.items():
            if isinstance(row[name], int):
                # Unlabelled rows are written as −1.
                row[name] = feature.int2str(row[name]) if row[name] >= 0 else None
        yield row


def _hub_name(named: str) -> tuple[str, str | None]:
    parts = named.removeprefix(HUB).split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InputError(f"{named} is not of the form hf:org/name or hf:org/name/config.")
    name = "/".join(parts[:2])
    if Path(name).exists():  # which `datasets` prefers
        raise InputError(
            f"{named} is meant on the hub, and {Path(name).absolute()} would be read: write "
            f"./{name} for it, or start from another directory."
        )
    return name, parts[2] if len(parts) == 3 else None


def of_mlflow(source: str) -> list[dict[str, Any]]:
    """Records of an evaluation dataset: inputs and expectations as columns."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.genai import datasets

    name = source.removeprefix(MLFLOW)
    try:
        try:
            found = datasets.get_dataset(name=name)
        except MlflowException:
            if not name.startswith("d-"):
                raise
            found = datasets.get_dataset(dataset_id=name)
        frame = found.to_df()
    except MlflowException as error:
        raise InputError(
            f"{source} is no evaluation dataset in {mlflow.get_tracking_uri()}: {error}"
        ) from error
    return [
        one_row(record["inputs"], record.get("expectations"))
        for record in frame.to_dict(orient="records")
    ]


def one_row(inputs: Any, expectations: Any) -> dict[str, Any]:
    """Inputs and expectations side by side; what both have is told apart by a prefix."""
    given, wanted = dict(inputs or {}), dict(expectations or {})
    for name in set(given) & set(wanted):
        given[f"inputs.{name}"] = given.pop(name)
        wanted[f"expectations.{name}"] = wanted.pop(name)
    if isinstance(given.get("messages"), list) and "prompt" not in given:
        turns = [turn for turn in given["messages"] if isinstance(turn, dict)]
        if len(turns) == 1 and isinstance(turns[0].get("content"), str):
            given["prompt"] = turns[0]["content"]
    return {**given, **wanted}


#: What a column can be, and the names by which it is known without being told, best first.
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "input", "instruction", "full_prompt"),
    "question": ("question", "query", "problem"),
    "context": ("context", "passage", "paragraph"),
    "answer": (
        "answer", "answers", "target", "targets", "gold", "reference", "expected",
        "expected_answer", "expected_response", "expected_output", "ground_truth",
        "correct_answer", "correct", "answer_key", "answerkey", "answer_index", "answer_idx",
        "correct_index", "gold_index", "correct_idx",
    ),
    "choices": ("choices", "options", "candidates", "endings"),
    "text": (
        "text", "sentence", "review", "document", "text1", "sentence1", "text_a", "premise",
    ),
    "label": ("label", "labels", "class", "gold_label", "true_label"),
    "text_pair": ("text_pair", "text2", "sentence2", "text_b", "hypothesis"),
    "score": (
        "score", "similarity", "similarity_score", "relatedness", "relatedness_score", "rating",
    ),
    "query": ("query", "question"),
    "passage": ("passage", "document", "text", "doc"),
    "relevance": ("relevance", "relevant", "label", "score", "qrel"),
    "category": ("category", "subject", "topic"),
}  # fmt: skip

# Found in logs of answers, and in no file of questions.
_LOG_NAMES = frozenset(
    ("resps", "filtered_resps", "score", "scores", "is_correct", "passed", "exact_match", "acc")
)


@dataclass(frozen=True)
class Columns:
    """Names of columns that a user stated, for all files or for one."""

    # From ``field`` or ``task.field`` to the column's name.
    stated: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Columns:
        """Read ``field=column,…``."""
        stated = {}
        for part in filter(None, map(str.strip, text.split(","))):
            key, equals, column = (piece.strip() for piece in part.partition("="))
            if not equals or not key or not column:
                raise InputError(
                    f"columns: {part!r} is not of the form field=column, as in "
                    "question=Frage,answer=Antwort."
                )
            stated[key] = column
        return cls.of_mapping(stated)

    @classmethod
    def of_mapping(cls, stated: Mapping[str, str]) -> Columns:
        """Check the fields of a mapping; the errors are those of `parse`."""
        for key in stated:
            name = key.rpartition(".")[2]
            if name not in USUAL_NAMES:
                raise UnknownNameError("field of columns", name, USUAL_NAMES)
        return cls(dict(stated))

    def of(self, task: str) -> dict[str, str]:
        """What was stated for one task; its own entries win."""
        shared = {key: name for key, name in self.stated.items() if "." not in key}
        own = {
            key.removeprefix(f"{task}."): name
            for key, name in self.stated.items()
            if "." in key and key.rpartition(".")[0] == task
        }
        return {**shared, **own}

    def refuse_strangers(self, tasks: Iterable[str]) -> None:
        """Refuse entries for tasks that are not asked."""
        known = sorted(tasks)
        for key in self.stated:
            task = key.rpartition(".")[0]
            if task and task not in known:
                raise UnknownNameError("file of columns", task, known)


@dataclass(frozen=True)
class DataRows:
    """Rows of one file or data set."""

    source: str  # As the user named it.
    # Column → value, as the file has it: of CSV all are texts, an empty cell is None.
    records: list[dict[str, Any]]
    # Column by field (`USUAL_NAMES`), as far as the user said so.
    stated: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """Name of the task that is made of it."""
        return task_of(self.source)

    @cached_property
    def names(self) -> list[str]:
        """Names of all columns, in order of first mention."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def column(self, *fields: str) -> str | None:
        """The column of the first of some fields that there is: stated ones first, then usual."""
        for name in fields:
            if name in self.stated:
                column = self.stated[name]
                # Choices may be several columns, and within objects a path is a name.
                if not all(self._has(part) for part in column.split("+")):
                    raise self.error(
                        f"has no column {column!r}, which columns names as {name}; it has "
                        f"{self.names}."
                    )
                return column
        lower = {usual_form(name): name for name in reversed(self.names)}
        known = (alias for name in fields for alias in USUAL_NAMES[name])
        taken = set(self.stated.values())
        return next((lower[a] for a in known if a in lower and lower[a] not in taken), None)

    def require(self, *fields: str) -> str:
        """As `column`, where one is needed."""
        found = self.column(*fields)
        if found is None:
            wanted = " or ".join(fields)
            raise self.error(
                f"has no column for {wanted}; it has {self.names}. Say which it is: "
                f"columns={fields[0]}=NAME.{self._log_hint()}"
            )
        return found

    def values(self, column: str) -> list[Any]:
        """A column; names of nested values are written with dots."""
        return [look_up(record, column) for record in self.records]

    def texts(self, column: str) -> list[str]:
        """A column of texts, none of them empty."""
        found = [as_text(value) for value in self.values(column)]
        empty = [i for i, text in enumerate(found, start=1) if not text.strip()]
        if empty:
            raise self.error(
                f"has {len(empty)} rows without {column!r}, the first is row {empty[0]}: fill or "
                "remove them."
            )
        return found

    def looks_like_log(self) -> bool:
        """Whether its columns are those of scored answers."""
        return bool(_LOG_NAMES & {usual_form(name) for name in self.names})

    def error(self, what: str) -> InputError:
        """An error about this source: its name, then `what`."""
        return InputError(f"{self.source} {what}")

    def _has(self, column: str) -> bool:
        return any(look_up(record, column) is not None for record in self.records)

    def _log_hint(self) -> str:
        if not self.looks_like_log():
            return ""
        return (
            " It looks like a log of scored answers: those are compared by mlflow-degrade compare."
        )


def read_rows(source: str, columns: Columns | Mapping[str, str] | None = None) -> DataRows:
    """Read a file or data set."""
    stated = columns.of(task_of(source)) if isinstance(columns, Columns) else dict(columns or {})
    suffix = file_suffix(source)
    if source.startswith(MLFLOW):
        records = of_mlflow(source)
    elif source.startswith(HUB) or Path(split_of(source)[0]).expanduser().is_dir():
        records = of_datasets(source)
    else:
        path = Path(source).expanduser()
        if suffix is None or not path.is_file():
            raise InputError(
                f"{source} does not exist: tasks are names of lm-eval, files "
                "(CSV, TSV, JSON lines, JSON, Parquet), mlflow:NAME or hf:NAME."
            )
        records = of_file(path, suffix)
    if not records:
        raise InputError(f"{source} has no rows: there is nothing to ask.")
    return DataRows(source, records, stated)


def as_text(value: Any) -> str:
    """A value as it would be written in a file; nothing is the empty text."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        # What pandas makes of whole numbers beside an empty cell.
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def as_list(value: Any) -> list[Any] | None:
    """Several values in one cell: a list, one written as JSON or Python, or ``{"text": […]}``."""
    value = as_object(value)
    if isinstance(value, Mapping):
        value = value.get("text")
    return list(value) if isinstance(value, (list, tuple)) else None


def as_object(value: Any) -> Any:
    """A list or an object that is written as JSON or Python; anything else as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value
