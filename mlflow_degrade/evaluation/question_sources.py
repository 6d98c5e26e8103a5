"""Records of files, data sets and evaluation datasets, as dictionaries by column."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._question_names import HUB, MLFLOW, split_of
from ..errors import DegradeError, InputError
from ..readers._reader import text_encoding
from ..readers.tables import delimiter_of

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
    with _quiet_datasets():
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


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    import datasets

    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


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
