"""Options of the commands that ask a model, and what they make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..core.prompting import HELP

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--apply-chat-template",
        is_flag=False,
        flag_value="true",
        metavar="[NAME]",
        help=HELP["apply_chat_template"],
    ),
    click.option("--system-instruction", metavar="TEXT", help=HELP["system_instruction"]),
    click.option(
        "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
        default=None,
        help=HELP["fewshot_as_multiturn"],
    ),
    click.option(
        "--gen-kwargs",
        metavar="KEY=VALUE,…|JSON",
        help=HELP["gen_kwargs"],
    ),
)


def prompting_options(command: Command) -> Command:
    """Add the options about how a model is asked."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
