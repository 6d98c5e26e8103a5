"""Chat templates are found and rendered as transformers does, wherever they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny_tokenizer
from transformers import AutoTokenizer

from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.engine.conversation import (
    check_messages,
    choose_template,
    has_template,
    render,
    says_the_date,
    template_of,
)

SHORT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
LONG = "LONG" + SHORT + "{% if add_generation_prompt %}[assistant]{% endif %}"
TALK = [{"role": "user", "content": "Hello"}]


def _in_config(folder: Path, template: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def _text(folder: Path) -> None:
    _in_config(folder, LONG)


def _file(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(LONG)


def _named(folder: Path) -> None:
    named = [{"name": "default", "template": LONG}, {"name": "rag", "template": SHORT}]
    _in_config(folder, named)


def _files(folder: Path) -> None:
    _file(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(SHORT)


@pytest.mark.parametrize("keep", [_text, _file, _named, _files])
def test_templates_are_found_where_transformers_finds_them(
    keep: Callable[[Path], None], tmp_path: Path
) -> None:
    make_tiny_tokenizer(tmp_path)
    assert not has_template(tmp_path)
    keep(tmp_path)
    assert has_template(tmp_path)
    assert template_of(tmp_path, True) == LONG
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ours = render(tokenizer, TALK, LONG, tmp_path)
    expected = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert ours == expected == "LONG[user]Hello[assistant]"
    if keep in (_named, _files):
        assert template_of(tmp_path, "rag") == SHORT
        assert render(tokenizer, TALK, SHORT, tmp_path) == "[user]Hello"
    with pytest.raises(UnknownNameError, match="'rga'"):
        template_of(tmp_path, "rga")


def test_a_template_that_is_not_there_is_refused(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"has no chat template: leave apply_chat_template out"):
        template_of(tmp_path, True)
    _in_config(tmp_path, [{"name": "a", "template": SHORT}, {"name": "b", "template": LONG}])
    with pytest.raises(InputError, match=r"\['a', 'b'\] and no default: name one"):
        template_of(tmp_path, True)


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{{ raise_exception('users come first') }}"
    template = choose_template(tokenizer, True, tmp_path)
    with pytest.raises(InputError, match="refuses the conversation: users come first"):
        render(tokenizer, TALK, template, tmp_path)


def test_templates_that_say_the_date_are_known() -> None:
    assert says_the_date("{{ strftime_now('%d %b %Y') }}" + SHORT)
    assert not says_the_date(SHORT)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", "messages are a str"),
        ({"role": "user", "content": "Hello"}, "messages are a dict"),
        ([], "there are no messages"),
        (["Hello"], "'Hello' is no message"),
        ([{"role": "user"}], "is no message"),
        ([{"role": "usr", "content": "Hello"}], "did you mean 'user'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content of a message is a list"),
        ([*TALK, {"role": "assistant", "content": "Hi"}], "the last message is the assistant's"),
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        check_messages(messages)
    assert message in str(refused.value)
