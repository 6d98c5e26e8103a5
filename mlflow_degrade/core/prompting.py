"""How questions become prompts, and how answers are generated: what both sides must have in common.

A chat template, a system instruction, few-shot examples as turns and generation arguments change
scores as much as a model does. Here is what may be asked for, and how what was done is compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from .errors import InputError

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Prompting(BaseModel):
    """How a model is asked; what is not given is left to the tasks and to lm-eval's defaults.

    Attributes
    ----------
    apply_chat_template : bool or str, optional
        Ask in the model's own chat template; text names one of several.
    system_instruction : str, optional
        System message of every conversation; without a template, text before every prompt.
    fewshot_as_multiturn : bool, optional
        Whether few-shot examples are turns of the conversation (the default with a template) or
        one message.
    gen_kwargs : mapping, optional
        Generation arguments that take the place of a task's own, such as
        ``{"max_gen_toks": 64, "until": ["\\n"]}``; ``key=value,…`` as text. Sampling needs a
        ``temperature`` and a ``seed``.

    Examples
    --------
    >>> asked = Prompting(apply_chat_template="true", gen_kwargs="max_new_tokens=64")
    >>> asked.apply_chat_template, asked.gen_kwargs
    (True, {'max_gen_toks': 64})
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    apply_chat_template: bool | str | None = None
    system_instruction: str | None = Field(default=None, min_length=1)
    fewshot_as_multiturn: bool | None = None
    gen_kwargs: dict[str, Any] | None = None

    @field_validator(
        "apply_chat_template", "system_instruction", "fewshot_as_multiturn", mode="before"
    )
    @classmethod
    def _unset(cls, value: Any) -> Any:
        """MLflow hands an unset parameter over as the empty text."""
        return None if value == "" else value

    @field_validator("apply_chat_template")
    @classmethod
    def _flag_or_name(cls, value: bool | str | None) -> bool | str | None:
        if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        return value

    @field_validator("fewshot_as_multiturn")
    @classmethod
    def _turns_need_a_template(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and not info.data.get("apply_chat_template"):
            raise ValueError(
                "few-shot examples are turns of a conversation only with apply_chat_template=true: "
                "set that too, or leave this out"
            )
        return value

    @field_validator("gen_kwargs", mode="before")
    @classmethod
    def _arguments(cls, value: Any) -> Any:
        if value in (None, ""):
            return None
        given = parse_gen_kwargs(value) if isinstance(value, str) else value
        return checked_gen_kwargs(given) or None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Validate what a user gave; other keys are ignored.

        Raises
        ------
        InputError
            With the option, its value and the remedy.
        """
        known = {name: values[name] for name in Prompting.model_fields if name in values}
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            raise InputError("\n".join(parameter_errors(error))) from error

    @property
    def prompting(self) -> Prompting:
        """Only how a model is asked, of options that say more."""
        return Prompting(**{name: getattr(self, name) for name in Prompting.model_fields})

    @property
    def multiturn(self) -> bool:
        """Whether few-shot examples are turns: lm-eval's default is yes with a template."""
        return bool(self.apply_chat_template) and self.fewshot_as_multiturn is not False

    def stated(self) -> dict[str, Any]:
        """What is given, JSON-serializable; empty where all is left to the defaults."""
        values = ((name, getattr(self, name)) for name in Prompting.model_fields)
        return {name: value for name, value in values if value is not None}

    def completed(self, policy: Prompting) -> Prompting:
        """With what a policy asks for.

        Raises
        ------
        InputError
            The two contradict each other.
        """
        mine, required = self.stated(), policy.stated()
        for name in mine.keys() & required.keys():
            if mine[name] != required[name]:
                raise InputError(
                    f"{name} = {mine[name]!r}, and the policy asks for {required[name]!r}: leave "
                    "it out, or change the policy."
                )
        return Prompting(**{**required, **mine})

    def facts(self, template_digest: str | None) -> dict[str, Any]:
        """What was done, as scores carry it.

        Parameters
        ----------
        template_digest : str, optional
            SHA-256 of the template's text in hexadecimal, as lm-eval logs it.
        """
        return {
            "apply_chat_template": self.apply_chat_template or False,
            "chat_template_sha": template_digest,
            "system_instruction": self.system_instruction,
            "fewshot_as_multiturn": self.multiturn,
            "gen_kwargs": self.gen_kwargs,
        }

    def contradictions(self, facts: Mapping[str, Any] | None) -> list[str]:
        """Where what was done, as far as it is known, is not what is asked for here."""
        if facts is None:
            return [f"{name} is not recorded" for name in self.stated()]
        return [
            f"{name} is {facts.get(name)!r} instead of {wanted!r}"
            for name, wanted in self.stated().items()
            if (facts.get(name) or None) != (wanted or None)
        ]


def differences(
    baseline: Mapping[str, Any] | None, candidate: Mapping[str, Any] | None
) -> dict[str, tuple[Any, Any]]:
    """Facts of two evaluations that are known of both and differ, by their name."""
    left, right = baseline or {}, candidate or {}
    both = [name for name in left if name in right]
    if "chat_template_sha" in both:  # what it is called then says nothing
        both = [name for name in both if name != "apply_chat_template"]
    return {
        name: (left[name], right[name])
        for name in both
        if (left[name] or None) != (right[name] or None)
    }


def in_words(facts: Mapping[str, Any] | None) -> str:
    """How a model was asked in one line; empty for plain prompts."""
    known = facts or {}
    sha, name = known.get("chat_template_sha"), known.get("apply_chat_template")
    parts = []
    if sha or name:
        named = f" {name!r}" if isinstance(name, str) else ""
        parts.append(f"chat template{named}" + (f" ({sha[:12]})" if sha else ""))
        parts.append(
            f"few-shot as {'turns' if known.get('fewshot_as_multiturn') else 'one message'}"
        )
    if known.get("system_instruction"):
        parts.append(f"system instruction {known['system_instruction']!r}")
    if known.get("gen_kwargs"):
        parts.append(f"gen_kwargs {json.dumps(known['gen_kwargs'], sort_keys=True)}")
    return ", ".join(parts)


_NO_TEXT = {
    "int_parsing": "not a whole number",
    "float_parsing": "not a number",
    "bool_parsing": "give true or false",
}


def parameter_errors(error: ValidationError) -> list[str]:
    """One line per mistake: parameter, value and limit."""
    lines: dict[str, str] = {}
    for item in error.errors():
        said = _NO_TEXT.get(item["type"], item["msg"].removeprefix("Value error, ").rstrip("."))
        if not item["loc"]:  # about several parameters, which the message names with their values
            lines.setdefault("", f"{said}.")
            continue
        name = str(item["loc"][0])
        # Of the alternatives that a parameter has, the first says best what is wrong.
        given = item["input"]
        shown = given if item["type"] not in _NO_TEXT and _is_number(given) else repr(given)
        lines.setdefault(name, f"parameter {name} = {shown}: {said}.")
    return list(lines.values())


def _is_number(value: Any) -> bool:
    """Whether a text, as commands hand everything over, is a number and shown without quotes."""
    return isinstance(value, str) and bool(re.fullmatch(r"-?[\d.]+", value))


def parse_gen_kwargs(text: str) -> dict[str, Any]:
    """Generation arguments from ``key=value,…``, as lm-eval reads them, or from a JSON object.

    Raises
    ------
    ValueError
        Neither of both.

    Examples
    --------
    >>> parse_gen_kwargs("max_gen_toks=8,do_sample=false,until=stop")
    {'max_gen_toks': 8, 'do_sample': False, 'until': 'stop'}
    """
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"this is no JSON object ({error})") from error
        return dict(found)
    found = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(
                f"{part!r} is not of the form key=value; values with commas need a JSON object, "
                'such as {"until": [",", "."]}'
            )
        found[key.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least


def _number(inside: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and inside(v)


def _stops(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text for text in texts)


# What the engine of this package can do, what a value must be, and whether it is that.
_KNOWN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_LENGTHS, ("a whole number of at least 1", _whole(1))),
    "until": ("a stop sequence or a list of them, none empty", _stops),
    "do_sample": ("true or false", lambda v: isinstance(v, bool)),
    "temperature": ("a number of at least 0", _number(lambda v: 0 <= v < float("inf"))),
    "top_k": ("a whole number of at least 0", _whole(0)),
    "top_p": ("a number above 0 and at most 1", _number(lambda v: 0 < v <= 1)),
    "repetition_penalty": ("a number above 0", _number(lambda v: 0 < v < float("inf"))),
    "seed": ("a whole number of at least 0", _whole(0)),
}


def checked_gen_kwargs(given: Any) -> dict[str, Any]:
    """Generation arguments for this package's engine, with one name and one meaning each.

    ``max_new_tokens`` and the like become ``max_gen_toks``, and a temperature says whether tokens
    are drawn: otherwise a task's own ``max_gen_toks`` or ``do_sample`` would silently win.

    Raises
    ------
    ValueError
        An unknown argument, a value beyond its limits, a contradiction, or sampling without seed.
    """
    if not isinstance(given, Mapping):
        raise ValueError("give key=value,… or a mapping")  # noqa: TRY004 - pydantic's way
    for name, value in given.items():
        if name not in _KNOWN:
            raise ValueError(f"{name!r} is not implemented; known are {sorted(_KNOWN)}")
        what, valid = _KNOWN[name]
        if not valid(value):
            raise ValueError(f"{name} = {value!r} must be {what}")
    lengths = [name for name in _LENGTHS if name in given]
    if len(lengths) > 1:
        raise ValueError(f"{' and '.join(lengths)} mean the same: keep one")
    found = {("max_gen_toks" if name in _LENGTHS else name): value for name, value in given.items()}
    temperature = found.get("temperature")
    if "do_sample" not in found and temperature is not None:
        found["do_sample"] = temperature > 0
    if found.get("do_sample") is False and temperature:
        raise ValueError(f"do_sample=false and temperature = {temperature:g} contradict each other")
    if found.get("do_sample") and not temperature:
        raise ValueError("do_sample=true needs a temperature above 0")
    require_seed(found)
    return dict(sorted(found.items()))


def require_seed(arguments: Mapping[str, Any], seed: int | None = None) -> None:
    """Refuse to draw tokens without a seed.

    Raises
    ------
    ValueError
    """
    temperature = arguments.get("temperature")
    drawn = arguments.get("do_sample", isinstance(temperature, (int, float)) and temperature > 0)
    if drawn and seed is None and arguments.get("seed") is None:
        raise ValueError(
            "tokens are drawn at random without a seed, and no one could repeat the result: add "
            "seed=0, or do not sample (temperature=0)"
        )
