"""Arguments that name per-sample scores, shared by the commands that read them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.errors import InputError, SameModelError
from ..core.remote_files import is_remote, local_copy, shown_address
from ..samples.readers import ReaderNote, read_samples, reader_names
from ..samples.readers._reader import files_below
from ..samples.readers.mlflow_runs import whole_reference
from ..samples.table import SampleScores

if TYPE_CHECKING:
    from ..decision.noise import NoiseRecord
    from ..optimize.source.resolve import SourceModel

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")

_RUN = "runs:/"


def reader_options(command: Command) -> Command:
    """Add ``--format``, ``--option`` and the options of one side to a command."""
    for side, short in (("candidate", "-c"), ("baseline", "-b")):
        command = click.option(
            short,
            f"--{side}-option",
            f"{side}_options",
            multiple=True,
            metavar="KEY=VALUE",
            help=f"Option of the reader for the {side} alone, e.g. model=fp16. Repeatable.",
        )(command)
    command = click.option(
        "--average",
        metavar="COLUMN",
        help="Combine the scores of a sample by the raters or runs in this column.",
    )(command)
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
        type=click.Choice(reader_names()),
        help="Format of the logs, where it is not recognized.",
    )(command)


def read_sides(
    references: Sequence[str],
    format_: str | None,
    options: Sequence[str],
    baseline_options: Sequence[str] = (),
    candidate_options: Sequence[str] = (),
    *,
    average: str | None = None,
    allow_same: bool,
    stream: bool | None = False,
) -> list[SampleScores]:
    """Read both sides; what the readers had to decide is said on standard error.

    They stay in their files where `stream` says so, or is None and they are large.
    """
    if average is not None:
        options = [*options, f"average={average}"]
    given = _of_sides(options, baseline_options, candidate_options)
    if any(reference.startswith(_RUN) for reference in references):
        from ..tracking.connection import require_tracking_server

        require_tracking_server(create=False)
        references = [whole_reference(reference) for reference in references]
    called = [shown_address(reference) for reference in references]
    references = [str(_local(r)) if is_remote(r) else r for r in references]
    one = _canonical(references[0]) == _canonical(references[1]) and given[0] == given[1]
    if one and not allow_same:
        # A log that holds both sides says how they are told apart.
        _read(references[0], format_, given[0])
        raise SameModelError(
            f"baseline and candidate are the same log ({called[0]}): a model is never worse "
            "than itself. Check the two references. If this log holds both sides, say which part "
            "is which with -b and -c, e.g. -b model=fp16 -c model=int4, or -b score_column=… "
            "-c score_column=…."
        )
    sides = _streamed(references, format_, given, stream) or [
        _read(reference, format_, own) for reference, own in zip(references, given, strict=True)
    ]
    if not allow_same and not sides[0].streamed and sides[0].table.equals(sides[1].table):
        shared = _files(references[0]) & _files(references[1])
        if shared:
            raise SameModelError(
                f"baseline and candidate are the same log, {min(shared)}: a model is never worse "
                "than itself. Check the two references."
            )
    names = called
    if names[0] == names[1]:
        # One log with both sides: what tells them apart names them.
        names = [
            f"{n}:{','.join(v for k, v in own.items() if other.get(k) != v)}"
            for n, own, other in zip(names, given, given[::-1], strict=True)
        ]
    # Without a name of its own a model is called what the command line called it.
    return [
        side if side.model is not None else side.with_model(name)
        for side, name in zip(sides, names, strict=True)
    ]


def _streamed(
    references: Sequence[str],
    format_: str | None,
    options: Sequence[dict[str, str]],
    asked: bool | None,
) -> list[SampleScores]:
    """Both sides left in their files; none where they are read into memory."""
    if asked is False or any(reference.startswith(_RUN) for reference in references):
        if asked:
            raise InputError("--stream reads files, and runs:/ is a run: download its samples.")
        return []
    from ..samples.readers.parquet_files import parquet_parts

    parts = []
    for reference, own in zip(references, options, strict=True):
        found = parquet_parts(Path(reference).expanduser(), format_, own)
        if isinstance(found, str):
            if asked:
                raise InputError(f"--stream: {found}. Leave the option out.")
            return []
        parts.append(found)
    if not all(parts):
        return []  # The reader says which options it does not take.
    from ..samples.streamed_scores import StreamedScores, needs_streaming

    if not asked and not needs_streaming([part for own in parts for part in own]):
        return []
    sides = _with_notes(
        lambda: [StreamedScores(own, name) for own, name in zip(parts, references, strict=True)]
    )
    rows = " and ".join(f"{len(side):,}" for side in sides)
    click.echo(
        f"note: {rows} rows stay in their files (see docs/scale.md): subgroups and log-likelihoods "
        "are not looked at.",
        err=True,
    )
    return list(sides)


def read_one(reference: str) -> SampleScores:
    """Read the samples of one log or run."""
    if reference.startswith(_RUN):
        from ..tracking.connection import require_tracking_server

        require_tracking_server(create=False)
        reference = whole_reference(reference)
    return _read(reference, None, {})


def read_noise(reference: str) -> NoiseRecord:
    """What ``mlflow-degrade noise`` wrote with --json, or logged beside an evaluation."""
    from ..decision.noise import NoiseRecord

    if not reference.startswith(_RUN):
        try:
            text = _local(reference).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the noise run {reference} cannot be read ({error}): write one with "
                "mlflow-degrade noise --json FILE."
            ) from error
        return NoiseRecord.read(text, reference)
    from ..samples.readers.mlflow_runs import split_reference
    from ..tracking.connection import require_tracking_server
    from ..tracking.evaluations import logged_noise_of

    require_tracking_server(create=False)
    return logged_noise_of(split_reference(reference)[0])


def _local(reference: str) -> Path:
    """Where a file lies on this machine; what lies elsewhere is copied for as long as a command."""
    if not is_remote(reference):
        return Path(reference)
    context = click.get_current_context()
    copies: dict[str, Path] = context.meta.setdefault(__name__, {})
    if reference not in copies:
        copies[reference] = context.with_resource(local_copy(reference))
    return copies[reference]


def _of_sides(options: Sequence[str], *own: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What each side's reader is told."""
    shared = dict(map(parse_option, options))
    first, second = ({**shared, **dict(map(parse_option, texts))} for texts in own)
    if first.get("score_column") != second.get("score_column") and "metric" not in shared:
        # Columns of two models hold one metric, whatever they are called.
        first.setdefault("metric", "score")
        second.setdefault("metric", "score")
    return first, second


def _read(reference: str, format_: str | None, options: dict[str, str]) -> SampleScores:
    return _with_notes(lambda: read_samples(reference, format=format_, **options))


def _with_notes(read: Callable[[], Result]) -> Result:
    """What reading gives; what a reader had to decide is said once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReaderNote)
        result = read()
    said = set()
    for warning in caught:
        if not issubclass(warning.category, ReaderNote):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif (text := str(warning.message)) not in said:
            said.add(text)
            click.echo(f"note: {text}", err=True)
    return result


def _canonical(reference: str) -> str:
    if reference.startswith(_RUN):
        return _RUN + reference.removeprefix(_RUN).strip("/")
    # Path.resolve() would raise where links go round in circles.
    return os.path.realpath(Path(reference).expanduser()) if reference else reference


def _files(reference: str) -> set[str]:
    """The files that a reference stands for; a run stands for itself."""
    if reference.startswith(_RUN):
        return {_canonical(reference).split("/")[1]}
    return {os.path.realpath(file) for file in files_below(Path(_canonical(reference)))}


def parse_option(option: str) -> tuple[str, str]:
    """A reader's option, ``KEY=VALUE``, as key and value."""
    key, equals, value = option.partition("=")
    if not equals or not key:
        raise InputError(f"option {option!r} is not of the form KEY=VALUE.")
    return key.replace("-", "_"), value


def model_folder(reference: str) -> Path:
    """The model directory that a word names; what is no such directory is exported first."""
    from ..optimize.source.resolve import resolve_model

    return exported_folder(resolve_model(reference))


def exported_folder(source: SourceModel) -> Path:
    """The model directory of a model, exported as the recipes would where it is not one yet."""
    from ..optimize.export import export_onnx
    from ..optimize.fusion.optimize_graph import optimize_graph

    if source.layout == "onnx":
        return source.path.resolve()
    return optimize_graph(export_onnx(source))
