"""What every MLflow project of this package does with its parameters, errors and exit code.

MLflow hands parameters over as text, an unset one as the empty text, and runs the entry point in
the project's folder, so that relative paths of the caller mean something else there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import BaseModel, ValidationError

from ..core.errors import DegradeError, InputError, UnknownNameError
from ..core.prompting import HELP as PROMPTING_HELP
from ..core.prompting import parameter_errors
from ..core.question_names import names_questions, split_of, split_tasks

if TYPE_CHECKING:
    from ..optimize.recipe import Recipe

Options = TypeVar("Options", bound=BaseModel)
Command = TypeVar("Command", bound=Callable[..., Any])

SETTINGS = {"show_default": True, "help_option_names": ["-h", "--help"]}
MODEL_HELP = "starter, starter-encoder, a hub id, a directory or file, or models:/n@a."
SIGNING_KEY_HELP = "Private key in PEM to sign the evidence with, or sigstore."
RECIPE_HELP = "A preset's name (presets/*.yaml next to the project), or a .yaml file."

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0", "")


def build(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Validate recipe parameters, naming the parameter, its value and its limit."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise InputError("\n".join(parameter_errors(error))) from error


def prompting_options(command: Command) -> Command:
    """Add the parameters about how models are asked."""
    for name, meaning in reversed(PROMPTING_HELP.items()):
        command = click.option(f"--{name.replace('_', '-')}", default="", help=meaning)(command)
    return command


def flag(name: str, text: str) -> bool:
    """Read a true/false parameter."""
    lowered = text.strip().lower()
    if lowered not in _TRUE + _FALSE:
        raise UnknownNameError(f"value of {name}", text, ("true", "false"))
    return lowered in _TRUE


def number(name: str, text: str, kind: type[int] | type[float]) -> Any:
    """Read a numeric parameter."""
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"parameter {name} = {text!r} is not {what}.") from error


def caller_path(text: str) -> str:
    """A path as the person who called ``mlflow run`` meant it."""
    # Relative paths are looked up in the folder ``mlflow run`` was called from when they exist
    # there; anything else (a model id, an absolute path) is returned as it is.
    if not text or Path(text).is_absolute():
        return text
    for folder in _caller_directories():
        if (folder / text).exists():
            # Not resolved: the name of a link is what the user calls the model.
            return os.path.abspath(folder / text)
    return text


def caller_tasks(text: str) -> list[str]:
    """Task names, those of files and directories as the caller meant them."""
    found = []
    for name in split_tasks(text):
        data, split = split_of(name)
        if names_questions(name) or "/" in name:
            data = caller_path(data)
        found.append(data if split is None else f"{data}:{split}")
    return found


def named_recipe(text: str, presets: Path | None) -> Recipe:
    """A preset that lies next to the project, or a file as the caller means its path."""
    from ..optimize.recipe import is_file_name, load_recipe

    return load_recipe(caller_path(text) if is_file_name(text) else text, presets)


def _caller_directories() -> list[Path]:
    """Working directories of the processes above this one, nearest first."""
    import psutil

    try:
        above = psutil.Process().parents()[:4]
        return [Path(process.cwd()) for process in above if process.pid > 1]
    except (psutil.Error, OSError):
        # Some systems do not tell; paths then are relative to the project, as MLflow documents.
        return []


@contextmanager
def one_message() -> Iterator[None]:
    """Turn an error into one clear message and its exit code."""
    # MLflow draws a bar for every small file it reads; recipes show bars of their own.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        yield
    except DegradeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
