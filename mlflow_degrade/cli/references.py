"""Arguments that name per-sample scores, shared by the commands that read them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InputError, SameModelError
from ..readers import READERS, ReaderNote, read_samples
from ..scores import SampleScores

if TYPE_CHECKING:
    from ..optimize.source import SourceModel

Command = TypeVar("Command", bound=Callable[..., Any])

_RUN = "runs:/"


def reader_options(command: Command) -> Command:
    """Add ``--format`` and ``--option`` to a command."""
    names = [reader.name for reader in READERS]
    command = click.option(
        "-o",
        "--option",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the reader, e.g. id_column=example_id or features=category. Repeatable.",
    )(command)
    return click.option(
        "--format",
        "format_",
        type=click.Choice(names),
        help="Format of the logs, where it is not recognized.",
    )(command)


def read_sides(
    references: Sequence[str], format_: str | None, options: Sequence[str], *, allow_same: bool
) -> list[SampleScores]:
    """Read both sides; what the readers had to decide is said on standard error.

    Raises
    ------
    SameModelError
        Both references are the same, and that was not allowed.
    """
    if not allow_same and _canonical(references[0]) == _canonical(references[1]):
        raise SameModelError(
            f"baseline and candidate are the same log ({references[0]}): a model is never worse "
            "than itself. Check the two references."
        )
    given = dict(parse_option(option) for option in options)
    if any(reference.startswith(_RUN) for reference in references):
        from ..tracking.connection import require_tracking_server

        require_tracking_server()
    sides = [_read(reference, format_, given) for reference in references]
    if not allow_same and sides[0].table.equals(sides[1].table):
        shared = _files(references[0]) & _files(references[1])
        if shared:
            raise SameModelError(
                f"baseline and candidate are the same log, {min(shared)}: a model is never worse "
                "than itself. Check the two references."
            )
    return sides


def _read(reference: str, format_: str | None, options: dict[str, str]) -> SampleScores:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReaderNote)
        scores = read_samples(reference, format=format_, **options)
    for warning in caught:
        if issubclass(warning.category, ReaderNote):
            click.echo(f"note: {warning.message}", err=True)
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    # Without a name of its own a model is called what the command line called it.
    return scores if scores.model is not None else scores.with_model(reference)


def _canonical(reference: str) -> str:
    if reference.startswith(_RUN):
        return _RUN + reference.removeprefix(_RUN).strip("/")
    # Path.resolve() would raise where links go round in circles.
    return os.path.realpath(Path(reference).expanduser()) if reference else reference


def _files(reference: str) -> set[str]:
    """The files that a reference stands for; a run stands for itself."""
    if reference.startswith(_RUN):
        return {_canonical(reference).split("/")[1]}
    path = Path(reference).expanduser().resolve()
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(file.resolve()) for file in files if file.is_file()}


def parse_option(option: str) -> tuple[str, str]:
    """A reader's option, ``KEY=VALUE``, as key and value.

    Raises
    ------
    InputError
    """
    key, equals, value = option.partition("=")
    if not equals or not key:
        raise InputError(f"option {option!r} is not of the form KEY=VALUE.")
    return key.replace("-", "_"), value


def model_folder(reference: str) -> Path:
    """The model directory that a word names; what is no such directory is exported first."""
    from ..optimize.source import resolve_model

    return exported_folder(resolve_model(reference))


def exported_folder(source: SourceModel) -> Path:
    """The model directory of a model, exported as the recipes would where it is not one yet."""
    from ..optimize.export import export_onnx
    from ..optimize.graph import optimize_graph

    if source.layout == "onnx":
        return source.path.resolve()
    return optimize_graph(export_onnx(source))
