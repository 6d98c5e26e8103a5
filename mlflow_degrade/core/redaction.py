"""Secrets stay in the process: what is logged, written, printed or raised goes through here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

# `token`, `hf_token`, `api_key`, `aws_secret_access_key`, … but not `tokens`, `tokenizer` or the
# special tokens of a vocabulary.
_SPECIAL = "|".join(("bos", "eos", "pad", "unk", "sep", "cls", "mask", "prefix", "eot", "special"))
_NAME = (
    rf"(?:[\w-]*(?<!{')(?<!'.join(f'{word}_' for word in _SPECIAL.split('|'))})token"
    r"|[\w-]*api[_-]?key[\w-]*|[\w-]*access[_-]?key[\w-]*|[\w-]*passw(?:or)?d|[\w-]*secret[\w-]*"
    r"|[\w-]*credentials?|authorization)"
)
_IS_SECRET = re.compile(_NAME, re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?<![\w-])({_NAME})=([^,\s&'\"]+|'[^']*'|\"[^\"]*\")", re.IGNORECASE)
_QUOTED = re.compile(rf"(['\"]{_NAME}['\"]\s*:\s*)('[^']*'|\"[^\"]*\")", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(-----END \1-----|\Z)", re.DOTALL
)
_USER_INFO = re.compile(r"(?<=://)[^/\s@'\"]+@")


def redact(text: str) -> str:
    """A text without the secrets in it: by the names of keys, in URLs, and private keys in PEM."""
    text = _ASSIGNED.sub(rf"\1={HIDDEN}", text)
    text = _QUOTED.sub(rf"\1'{HIDDEN}'", text)
    text = _PRIVATE_KEY.sub(HIDDEN, text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _USER_INFO.sub(f"{HIDDEN}@", text)


def redact_value(value: Any) -> Any:
    """The same for what JSON can hold: all texts in it, and whatever a secret's name stands for."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_setting(key, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_value(item) for item in value]
    return value


def redact_setting(name: Any, value: Any) -> Any:
    """The value of a setting, hidden where the name says that it is a secret."""
    secret = isinstance(name, str) and _IS_SECRET.fullmatch(name) and value not in (None, "", True)
    return HIDDEN if secret and value is not False else redact_value(value)
