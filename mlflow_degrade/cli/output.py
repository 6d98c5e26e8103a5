"""What a command writes besides its tables: files, whole or not at all, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.errors import InputError

if TYPE_CHECKING:
    from ..decision.noise import NoiseFindings
    from ..decision.results import Decision


class OutputFile(click.ParamType):  # type: ignore[type-arg]  # not generic in older click
    """A file to be written; what cannot be one is said before anything is computed."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it was given."""
        if value != "-":
            path = Path(value).expanduser()
            if path.is_dir():
                self.fail(f"{value!r} is a folder: name a file in it.", param, ctx)
            if not path.parent.is_dir():
                self.fail(f"there is no folder {str(path.parent)!r}: make it first.", param, ctx)
        return str(value)


class JsonFile(OutputFile):
    """A file for JSON, called so: an option with or without a value must not take an argument."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it was given."""
        if value != "-" and not str(value).endswith((".json", "/")) and "/dev/" not in str(value):
            self.fail(
                f"{value!r} does not end in .json: where --json has no file it comes last, or is "
                "written --json -.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


OUTPUT = OutputFile()

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(what: str) -> Callable[[Command], Command]:
    """``--json``, alike on every command: alone or with ``-`` on standard output, else a file."""
    return click.option(
        "--json",
        "json_",
        type=JsonFile(),
        is_flag=False,
        flag_value="-",
        metavar="[FILE|-]",
        help=f"Write {what} as JSON, to standard output without a FILE.",
    )


def document_options(command: Command) -> Command:
    """Add ``--markdown`` and ``--junit``: what continuous integration shows of a decision."""
    command = click.option(
        "--junit",
        type=OUTPUT,
        metavar="FILE",
        help="Write the verdict and the tasks as JUnit XML; INCONCLUSIVE is skipped there.",
    )(command)
    return click.option(
        "--markdown",
        type=OUTPUT,
        metavar="FILE|-",
        help="Write a summary for a pull request; - is standard output.",
    )(command)


def require_one_stdout(json_: str | None, markdown: str | None) -> bool:
    """Whether a document takes standard output, which two cannot share."""
    if json_ == "-" and markdown == "-":
        raise InputError("--json - and --markdown - both want standard output: give one a file.")
    return "-" in (json_, markdown)


def write_documents(
    decision: Decision,
    markdown: str | None,
    junit: str | None,
    noise: NoiseFindings | None = None,
) -> None:
    """Write what `document_options` asked for."""
    if markdown is not None:
        from ..report.markdown import pull_request_summary

        write_out(pull_request_summary(decision, noise), markdown)
    if junit is not None:
        from ..report.junit import junit_xml

        write_out(junit_xml(decision), junit)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch file that takes the place of `path` when the block ends well."""
    target = Path(path)
    # The suffix stays: some writers choose their format by it.
    scratch = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield scratch
        os.replace(scratch, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(document: Any, where: str | None) -> None:
    """Write a document as JSON to a file, or to standard output for ``"-"``; nothing for None."""
    write_out(json.dumps(document, indent=2, ensure_ascii=False) + "\n", where)


def write_out(text: str, where: str | None) -> None:
    """Write a text to a file, or to standard output for ``"-"``; nothing for None."""
    if where is None:
        return
    if where == "-":
        click.echo(text, nl=False)
    else:
        write_text(where, text)


def require_plot_name(plot: str | None, endings: tuple[str, ...] = (".png", ".svg")) -> None:
    """Raise unless the name of a plot, if there is one, says a format."""
    if plot is not None and not plot.lower().endswith(endings):
        raise InputError(f"plot {plot!r}: the name must end in {' or '.join(endings)}.")


def write_plot(figure: Any, plot: str) -> None:
    """Save a matplotlib figure whole or not at all, and say where."""
    from ..report.candidates import save_figure

    with whole_file(plot) as scratch:
        save_figure(figure, scratch)
    click.echo(f"plot: {plot}", err=True)
