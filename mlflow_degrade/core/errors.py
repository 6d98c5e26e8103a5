"""Every error the package raises on purpose, in one tree.

    DegradeError                        (exit code 3)
    ├── InputError                      something the caller gave is wrong; also a ValueError
    │   ├── UnknownNameError            a task, metric, scheme, model … that does not exist
    │   ├── PolicyError                 a gate policy that contradicts itself or its schema
    │   ├── StatisticsInputError        counts, levels or margins outside their domain
    │   └── SamplesError                a sample table that cannot be used
    │       ├── SampleSchemaError       missing or mistyped columns
    │       ├── EmptySamplesError       no rows, or no scored rows
    │       ├── NonFiniteScoreError     NaN or infinite scores
    │       ├── DuplicateSampleError    the same key twice on one side
    │       └── PairingError            the two sides do not belong together
    │           ├── UnpairedSamplesError    samples on one side only
    │           ├── PromptMismatchError     the same document under another prompt
    │           ├── MetricMismatchError     different metric, filter or direction
    │           ├── TaskVersionError        different versions of a task
    │           └── SameModelError          a model compared with itself
    ├── MissingExtraError               an optional dependency is not installed
    ├── PluginError                     what another package adds cannot be used, or is missing
    ├── ModelError                      a model that cannot be resolved, exported or loaded
    │   ├── UnsupportedModelError       an architecture or layout we do not handle
    │   ├── QuantizationError           a pass failed, or changed nothing
    │   └── ParityError                 the saved file does not reproduce its source
    ├── EngineError                     trouble while a model is running
    │   ├── ProviderUnavailableError    an execution provider was asked for and is absent
    │   ├── InexactKernelError          integer products come out wrong on this processor
    │   └── NonFiniteLogitsError        the model produced NaN or infinity
    ├── StorageError                    no space, or a cache that cannot be written
    └── TrackingError                   MLflow did not do what was asked
        ├── TrackingUnreachableError    the server did not answer
        └── RegistryError               the registry refused, or lacks what was named
            ├── VerificationError       a version is not what its evidence says
            └── PromotionRefusedError   the gate keeps a protected alias or stage from a version

Messages state the value, the limit and the remedy, in that order.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

# Secrets stay in the process: what is logged, written, printed or raised goes through here.

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


# Sentences for people about what was decided for them, on standard error.


@functools.cache
def say_note(text: str) -> None:
    """One line, once: a job comes by the same decision at several steps."""
    print(f"note: {text}", file=sys.stderr)


class DegradeError(Exception):
    """Base of all errors raised on purpose; the command line exits with `exit_code`.

    Messages often quote settings and other libraries' errors: secrets in them are hidden.
    """

    exit_code = 3

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(part) if isinstance(part, str) else part for part in args))


class InputError(DegradeError, ValueError):
    """Something the caller gave is wrong."""


class UnknownNameError(InputError):
    """A name that is not among the known ones; the message suggests the nearest.

    Parameters
    ----------
    kind : str
        What the name stands for, e.g. ``"scheme"``.
    name : str
        The name that was given.
    known : iterable of str
        The names that exist.
    hint : str, optional
        A further sentence, e.g. how to add one's own.

    Examples
    --------
    >>> print(UnknownNameError("scheme", "int8-weight", ["int8-weight-only", "fp16"]))
    unknown scheme 'int8-weight': did you mean 'int8-weight-only'? Known: fp16, int8-weight-only.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
        guess = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        shown = ", ".join(names[:20]) + (f" … ({len(names)} in all)" if len(names) > 20 else "")
        text = f"unknown {kind} {name!r}: {guess}Known: {shown or 'none'}."
        super().__init__(f"{text} {hint}".rstrip())
        self.kind, self.name, self.known, self.near = kind, name, names, near


class PolicyError(InputError):
    """A gate policy that contradicts itself or its schema."""


class StatisticsInputError(InputError):
    """Counts, levels or margins outside their domain."""


class SamplesError(InputError):
    """A sample table that cannot be used."""


class SampleSchemaError(SamplesError):
    """Missing or mistyped columns."""


class EmptySamplesError(SamplesError):
    """No rows, or no scored rows."""


class NonFiniteScoreError(SamplesError):
    """NaN or infinite scores."""


class DuplicateSampleError(SamplesError):
    """The same sample key twice on one side."""


class PairingError(SamplesError):
    """The two sides do not belong together."""


class UnpairedSamplesError(PairingError):
    """Samples on one side only."""


class PromptMismatchError(PairingError):
    """The same document was asked with another prompt."""


class MetricMismatchError(PairingError):
    """Different metric, filter or direction on the two sides."""


class TaskVersionError(PairingError):
    """Different versions of one task."""


class SameModelError(PairingError):
    """A model compared with itself."""


class MissingExtraError(DegradeError):
    """An optional dependency is not installed.

    Parameters
    ----------
    module : str
        The import that failed.
    extra : str
        The extra of this distribution that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f'{module!r} is not installed: pip install "mlflow-degrade[{extra}]" brings it.'
        )
        self.module, self.extra = module, extra


class PluginError(DegradeError):
    """What another package adds cannot be used, or is not installed."""


class ModelError(DegradeError):
    """A model that cannot be resolved, exported or loaded."""


class UnsupportedModelError(ModelError):
    """An architecture or file layout that is not handled."""


class QuantizationError(ModelError):
    """A pass failed, or changed nothing."""


class ParityError(ModelError):
    """The saved file does not reproduce its source."""


class EngineError(DegradeError):
    """Trouble while a model is running."""


class ProviderUnavailableError(EngineError):
    """An execution provider was asked for and is absent."""


class InexactKernelError(EngineError):
    """Integer products come out wrong on this processor."""


class NonFiniteLogitsError(EngineError):
    """The model produced NaN or infinity."""


class StorageError(DegradeError):
    """No space left, or a cache that cannot be written."""


class TrackingError(DegradeError):
    """MLflow did not do what was asked."""


class TrackingUnreachableError(TrackingError):
    """The tracking server did not answer."""


class RegistryError(TrackingError):
    """The model registry refused, or lacks what was named."""


class _ProblemsError(RegistryError):
    """A refusal for several reasons.

    Parameters
    ----------
    message : str
        All of them in one text.
    problems : iterable of str
        One sentence each.
    """

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class VerificationError(_ProblemsError):
    """A model version is not what its evidence says; `problems` has a sentence for each reason."""


class PromotionRefusedError(_ProblemsError):
    """The gate keeps a protected alias or stage from a version; reasons are in `problems`."""
