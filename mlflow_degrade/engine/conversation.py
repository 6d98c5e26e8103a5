"""Conversations to prompts, by the chat template of a model's tokenizer, as transformers does it.

A template is ``chat_template`` of ``tokenizer_config.json`` (a text, or a list of named ones), or
the files ``chat_template.jinja`` and ``additional_chat_templates/*.jinja``; transformers reads all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError, UnknownNameError
from .session import read_json

_DEFAULT = "default"
ROLES = ("system", "user", "assistant", "tool")
"""Roles of messages; a template may know fewer."""


def has_template(folder: Path) -> bool:
    """Whether a directory's tokenizer has a chat template, without loading the tokenizer."""
    if any(
        (folder / name).exists() for name in ("chat_template.jinja", "additional_chat_templates")
    ):
        return True
    return bool(read_json(folder, "tokenizer_config.json", needed=False).get("chat_template"))


def choose_template(tokenizer: Any, choice: bool | str, folder: Path | str) -> str:
    """The text of the template that is meant: a named one, or the default."""
    known = tokenizer.chat_template
    if not known:
        raise InputError(
            f"the tokenizer in {folder} has no chat template: leave apply_chat_template out, or "
            "use an instruction-tuned model."
        )
    templates = known if isinstance(known, dict) else {_DEFAULT: known}
    name = choice if isinstance(choice, str) else _DEFAULT
    if name in templates:
        return str(templates[name])
    if isinstance(choice, str):
        raise UnknownNameError(f"chat template of the tokenizer in {folder}", choice, templates)
    raise InputError(
        f"the tokenizer in {folder} has the chat templates {sorted(templates)} and no default: "
        "name one of them, apply_chat_template=<name>."
    )


def template_digest(template: str) -> str:
    """SHA-256 of a template's text in hexadecimal, as lm-eval logs it."""
    return hashlib.sha256(template.encode()).hexdigest()


def says_the_date(template: str) -> bool:
    """Whether a template's prompts change from day to day, as Llama 3's do."""
    return "strftime_now" in template


def template_of(folder: Path, choice: bool | str) -> str:
    """`choose_template` for the tokenizer of a model directory."""
    from .tokenization import TextEncoder

    return choose_template(TextEncoder(folder).tokenizer, choice, folder)


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    template: str,
    folder: Path,
    *,
    reply: bool = True,
) -> str:
    """The prompt text of a conversation."""
    import jinja2

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=reply,
            continue_final_message=not reply,
        )
    except jinja2.exceptions.TemplateError as error:
        raise InputError(
            f"the chat template in {folder} refuses the conversation: {error}."
        ) from error
    return text


def check_messages(messages: Any) -> list[dict[str, str]]:
    """Messages as chat APIs take them, ending with the one to be answered."""
    wanted = 'give a list of {"role": "user", "content": "…"}'
    if isinstance(messages, (str, Mapping)) or not hasattr(messages, "__iter__"):
        raise InputError(f"messages are a {type(messages).__name__}: {wanted}.")
    found = []
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError(f"{str(message)[:80]!r} is no message: {wanted}.")
        if message["role"] not in ROLES:
            raise UnknownNameError("role of a message", str(message["role"]), ROLES)
        if not isinstance(message["content"], str):
            raise InputError(
                f"the content of a message is a {type(message['content']).__name__}: this model "
                "reads text."
            )
        found.append({"role": str(message["role"]), "content": message["content"]})
    if not found:
        raise InputError(f"there are no messages: {wanted}.")
    if found[-1]["role"] in ("assistant", "system"):
        raise InputError(
            f"the last message is the {found[-1]['role']}'s: end with one of the user's, which is "
            "to be answered."
        )
    return found


def conversation_prompt(
    tokenizer: Any, messages: Any, folder: Path, prompting: Mapping[str, Any]
) -> str:
    """The prompt of a conversation as a model was asked when it was evaluated."""
    choice = prompting.get("apply_chat_template") or True
    template = choose_template(tokenizer, choice, folder)
    given = check_messages(messages)
    instruction = prompting.get("system_instruction")
    if instruction is None or given[0]["role"] == "system":
        return render(tokenizer, given, template, folder)
    try:
        whole = [{"role": "system", "content": instruction}, *given]
        return render(tokenizer, whole, template, folder)
    except InputError:
        # A template that knows no system message was evaluated without it.
        return render(tokenizer, given, template, folder)
