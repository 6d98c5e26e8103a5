"""Per-sample scores from logs that already exist.

`read_samples` finds out what a reference is and returns `SampleScores`. A format is one module
with a `READER` in this folder; other distributions add theirs by entry points of
the group ``mlflow_degrade.readers``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from ...core.errors import DegradeError, SampleSchemaError, UnknownNameError
from ...core.plugins import Plugins, PluginWarning
from ...core.remote_files import is_remote, local_copy
from ..table import SampleScores
from . import mlflow_runs
from ._reader import Reader, ReaderNote, files_below, note

__all__ = ["read_samples", "Reader", "ReaderNote", "READERS"]

_MODULES = (import_module(f".{module.name}", __name__) for module in iter_modules(__path__))
#: Those of the modules here, in the order in which they are tried; the first that recognizes a path
#: reads it.
READERS: tuple[Reader, ...] = tuple(
    sorted((m.READER for m in _MODULES if hasattr(m, "READER")), key=attrgetter("order"))
)
# Readers from here on take whatever has the right columns: those of other distributions come first.
_ANY_TABLE = 20

#: Readers of other distributions.
READER_PLUGINS = Plugins(
    "mlflow_degrade.readers",
    "reader",
    Reader,
    [reader.name for reader in READERS].__contains__,
)


def reader_names() -> tuple[str, ...]:
    """Names of all readers, those of other distributions last."""
    return (*(reader.name for reader in READERS), *READER_PLUGINS.names)


# What a value of another kind than a format's own leads to.
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def read_samples(
    reference: str | os.PathLike[str], *, format: str | None = None, **options: Any
) -> SampleScores:
    """Read the per-sample scores of one model.

    Parameters
    ----------
    reference : str or path
        A file or directory of one of the `READERS`, ``runs:/<run id>[/<artifact path>]`` for
        an MLflow run (its samples, or the traces that ``mlflow.genai.evaluate`` scored in it), or
        an address that fsspec knows: ``s3://``, ``gs://``, ``hf://``, ``https://``.
    format : str, optional
        Name of the reader, where recognizing the format is not wanted.
    **options
        Options of the reader, e.g. ``id_column="example_id"`` for tables; see its ``options``.

    Returns
    -------
    SampleScores
        One row per scored answer.

    Raises
    ------
    SampleSchemaError
        There is nothing at the reference, or nothing a reader knows.
    UnknownNameError
        The format, or an option, does not exist.
    PluginError
        The format is of another package, and cannot be used.

    Warns
    -----
    ReaderNote
        What the reader had to decide, e.g. which of several runs it took.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "arc.csv").write_text("prompt_id,score\\n1,1\\n2,0\\n")
    >>> read_samples(folder).means()
    {('arc', 'score', 'none'): 0.5}
    """
    if not str(reference).strip():
        raise SampleSchemaError(
            "an empty reference: name a file, a directory, or runs:/<run id>; . is this directory."
        )
    if mlflow_runs.is_run_reference(str(reference)):
        with mlflow_runs.downloaded(str(reference)) as path:
            samples = _read_path(path, format, options)
        run_id, _ = mlflow_runs.split_reference(str(reference))
        return mlflow_runs.with_agreements(samples, run_id)
    if is_remote(reference):
        with local_copy(str(reference)) as path:
            return _read_path(path, format, options)
    return _read_path(Path(reference).expanduser(), format, options)


def _read_path(path: Path, format: str | None, options: dict[str, Any]) -> SampleScores:
    if not path.exists():
        raise SampleSchemaError(
            f"{path} does not exist. A reference is a file, a directory, or runs:/<run id>."
        )
    if not (path.is_file() or path.is_dir()):
        raise SampleSchemaError(f"{path} is neither a file nor a directory.")
    reader = _by_name(format) if format is not None else _recognize(path)
    reader.check_options(options)
    try:
        return reader.read(path, **options)
    except DegradeError:
        raise
    except _MALFORMED as error:
        raise SampleSchemaError(
            f"{path} looks like {reader.what}, and something in it is not as it is written there "
            f"({type(error).__name__}: {error}). If it was edited or cut, write it anew; if it is "
            "of another version, give its samples as a table with id and score."
        ) from error


def _by_name(name: str) -> Reader:
    for reader in READERS:
        if reader.name == name:
            return reader
    if name in READER_PLUGINS.names:
        return READER_PLUGINS.load(name)
    raise UnknownNameError("format", name, reader_names())


def _in_order() -> Iterator[Reader]:
    yield from (reader for reader in READERS if reader.order < _ANY_TABLE)
    yield from READER_PLUGINS.usable()
    yield from (reader for reader in READERS if reader.order >= _ANY_TABLE)


def _recognizes(reader: Reader, path: Path) -> bool:
    plugin = READER_PLUGINS.source(reader.name)
    if plugin is None:
        return reader.recognizes(path)
    try:
        found = reader.recognizes(path)
    except Exception as error:  # noqa: BLE001 - it is another package's code
        why = f"{type(error).__name__}: {error}"
        warnings.warn(f"{plugin} fails on {path}: {why}", PluginWarning, stacklevel=5)
        return False
    if found:
        note(f"{path} is read by {plugin}")
    return bool(found)


def _recognize(path: Path) -> Reader:
    # A folder with far too many files is said before it is searched many times.
    files_below(path)
    for reader in _in_order():
        # What cannot be made sense of is not of this format; its own reader says what is wrong.
        with suppress(DegradeError, *_MALFORMED):
            if _recognizes(reader, path):
                return reader
    known = "".join(f"\n  {reader.name}: {reader.what}" for reader in _in_order())
    raise SampleSchemaError(
        f"{path} is none of the formats that can be read:{known}\n"
        "  runs:/<run id>: samples of an MLflow run\n"
        "Name the format if it is one of these in an unusual place."
    )
