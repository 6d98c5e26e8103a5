"""Options of the commands that ask a model, and what they make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--apply-chat-template",
        is_flag=False,
        flag_value="true",
        metavar="[NAME]",
        help="Ask in the model's chat template; a name chooses among several.",
    ),
    click.option("--system-instruction", metavar="TEXT", help="System message of every prompt."),
    click.option(
        "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
        default=None,
        help="Few-shot examples as turns of the conversation, which is usual with a template, or "
        "as one message.",
    ),
    click.option(
        "--gen-kwargs",
        metavar="KEY=VALUE,…|JSON",
        help="Of tasks that generate text, in place of their own.",
    ),
)


def prompting_options(command: Command) -> Command:
    """Add the options about how a model is asked."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
