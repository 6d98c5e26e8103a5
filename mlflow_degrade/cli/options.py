"""Options of a command made from the fields of an option model, and read back into it.

One command serves people and ``mlflow run``, which hands every parameter over as text, an unset one
as the empty text, and starts in the project's folder. The fields, their defaults and the numpydoc
section ``Attributes`` of the model are all there is to say about a parameter: help texts,
docs/cli.md and the MLproject files are made of them.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..core.errors import InputError
from ..core.prompting import parameter_errors
from ..core.question_names import names_questions, split_of, split_tasks
from ..decision.policy import EARLY_STOPS, GatePolicy
from ..tracking.runs import joined_run_id

Options = TypeVar("Options", bound=BaseModel)
Command = TypeVar("Command", bound=Callable[..., Any])

# What a policy file says, and the options that say it where there is none.
_POLICY = ("rule", "alpha", "margin_pp", "aggregation", "sequential")
_POLICY_HELP = "Policy file, in place of the five options below."
# Without a word it is the first of those that ask for one.
EARLY_STOP: dict[str, Any] = {"is_flag": False, "flag_value": next(iter(EARLY_STOPS))}
_SWITCH: dict[str, Any] = {"is_flag": False, "flag_value": "true"}
# Parameters that hold a path of the caller's.
_PATHS = (
    "model", "baseline_model", "recipe", "space", "include_path", "policy", "signing_key", "cost",
)  # fmt: skip


def options_of(
    model: type[BaseModel],
    *,
    only: tuple[str, ...] | None = None,
    required: tuple[str, ...] = (),
    policy: tuple[str, ...] = _POLICY,
) -> Callable[[Command], Command]:
    """Add an option for each field of a model, or for some; a policy becomes its file and keys."""

    def add(command: Command) -> Command:
        for option in reversed(list(_options(model, only, required, policy))):
            command = option(command)
        return command

    return add


def read(model: type[Options], given: Mapping[str, Any]) -> Options:
    """What the options of a command say, checked; errors name the parameter, value and limit."""
    fields = model.model_fields
    values = {
        name: [_asked(task) for task in split_tasks(text)] if name in ("tasks", "selection_tasks")
        else caller_path(text) if name in _PATHS
        else new_path(text) if name == "output" and text
        else text
        for name, text in given.items()
        # The empty text is an unset parameter, unless something else is what an unset one means.
        if name in fields and (text or _text(fields[name].default))
    }  # fmt: skip
    if "policy" in fields:
        values["policy"] = _policy(fields["policy"].default, given)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(parameter_errors(error))) from error


def whole_numbers(
    _: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Callback of an option that lists whole numbers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        name = option.opts[0]
        raise InputError(f"{name} {text!r} is not a list of whole numbers such as 1,8.") from error


def flag(name: str, text: str) -> bool:
    """Read a switch of the command's own, as pydantic reads those of a model."""
    try:
        return TypeAdapter(bool).validate_python(text or "false")
    except ValidationError as error:
        raise InputError(f"parameter {name} = {text!r}: give true or false.") from error


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field to description, from the numpydoc section ``Attributes`` of a model and its bases."""
    inherited = (meanings(base) for base in model.__bases__ if base is not BaseModel)
    section = (inspect.getdoc(model) or "").split("Attributes\n----------\n")[-1]
    section = re.split(r"\n\n\w+\n-+\n", section)[0]
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line.startswith("    "):
            for name in names:
                found[name].append(line.strip())
        else:
            names = [name.strip() for name in re.split(r" : | from ", line)[0].split(",")]
            found |= {name: [] for name in names}
    texts = {name: " ".join(lines) for name, lines in found.items()}
    for known in inherited:
        texts = {**texts, **{name: text for name, text in known.items() if name not in texts}}
    return texts


def _options(
    model: type[BaseModel],
    only: tuple[str, ...] | None,
    required: tuple[str, ...],
    policy: tuple[str, ...],
) -> Iterator[Callable[[Any], Any]]:
    texts = meanings(model)
    for name in texts if only is None else only:
        field = model.model_fields[name]
        if name == "policy":
            yield click.option(
                "--policy",
                default="",
                metavar="FILE",
                help=_POLICY_HELP if policy else "Policy file; the default policy without it.",
            )
            about, keys = meanings(GatePolicy), GatePolicy.model_fields
            for key in policy:
                value = _text(getattr(field.default, key))
                yield click.option(
                    _flag(key),
                    default=value,
                    show_default=bool(value),
                    **(EARLY_STOP if key == "sequential" else {}),
                    help=_plain(about[key] + _choices(keys[key].annotation, key)),
                )
            continue
        must = field.is_required() or name in required
        default = None if must else _text(field.default)
        # ``--force`` and ``--force false`` both mean what they say.
        switch = bool in (field.annotation, *get_args(field.annotation))
        yield click.option(
            _flag(name),
            required=must,
            default=default,
            show_default=bool(default),
            **(_SWITCH if switch else {}),
            metavar="[true|false]" if field.annotation is bool else None,
            help=_plain(texts[name] + _choices(field.annotation, name)),
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _choices(annotation: Any, name: str) -> str:
    """The values that a parameter may have, where it is one of a few."""
    from ..optimize.schemes import SCHEME_PLUGINS, SCHEMES
    from ..stats._combination_rules import rule_names

    known: tuple[str, ...] = ()
    if name == "scheme":
        return f" Known: {', '.join((*SCHEMES, *SCHEME_PLUGINS.names))}."
    if name == "aggregation":
        known = tuple(rule_names())
    elif get_origin(annotation) is Literal:
        known = get_args(annotation)
    return f" One of {', '.join(known)}." if known else ""


def _plain(text: str) -> str:
    """A docstring's words for a terminal."""
    text = re.sub(r"`mlflow_degrade\.(?:\w+\.)*(\w+)`", r"\1", text)
    return text.replace("``", "").replace("`", "")


def _text(value: Any) -> str:
    """A default as MLflow hands it over."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    # A recipe is called by its name.
    return "" if value is None else str(getattr(value, "name", value))


def _policy(default: GatePolicy, given: Mapping[str, Any]) -> GatePolicy:
    """The policy of a file, or of the options that stand for the main keys."""
    if given["policy"]:
        return GatePolicy.from_yaml(caller_path(given["policy"]))
    keys = {name: given[name] for name in _POLICY if given.get(name)}
    for name in ("alpha", "margin_pp"):
        if name in keys:
            keys[name] = _number(name, keys[name])
    if not keys:
        return default
    stated = {name: getattr(default, name) for name in _POLICY if getattr(default, name)}
    return GatePolicy.from_mapping({**stated, **keys}, source="parameters")


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"parameter {name} = {text!r} is not a number.") from error


def caller_path(text: str) -> str:
    """A path as the person who called ``mlflow run`` meant it."""
    # Relative paths are looked up in the folder ``mlflow run`` was called from when they exist
    # there; anything else (a model id, an absolute path, a preset) is returned as it is.
    if not text or Path(text).is_absolute():
        return text
    for folder in caller_directories():
        if (folder / text).exists():
            # Not resolved: the name of a link is what the user calls the model.
            return os.path.abspath(folder / text)
    return text


def new_path(text: str) -> str:
    """Where something new is to be made, as the person who called ``mlflow run`` meant it."""
    away = (folder for folder in caller_directories() if folder != Path.cwd())
    return os.path.abspath(next(away, Path.cwd()) / Path(text).expanduser())


def _asked(name: str) -> str:
    """A task's name, one of a file or directory as the caller meant it."""
    data, split = split_of(name)
    if names_questions(name) or "/" in name:
        data = caller_path(data)
    return data if split is None else f"{data}:{split}"


def caller_directories() -> list[Path]:
    """Where the processes above this one work, nearest first; empty without ``mlflow run``."""
    import psutil

    if joined_run_id() is None:
        return []  # paths mean what they say
    try:
        above = psutil.Process().parents()[:4]
        return [Path(process.cwd()) for process in above if process.pid > 1]
    except (psutil.Error, OSError):
        # Some systems do not tell; paths then are relative to the project, as MLflow documents.
        return []
