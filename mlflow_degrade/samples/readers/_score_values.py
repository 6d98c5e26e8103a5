"""Scores as people write them: yes and no, decimal commas, or an answer beside the right one."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import SampleSchemaError, UnknownNameError

_WORDS = {
    **dict.fromkeys(("yes", "y", "true", "t", "pass", "passed", "correct", "right", "ok"), 1.0),
    **dict.fromkeys(("no", "n", "false", "f", "fail", "failed", "incorrect", "wrong"), 0.0),
}
# What spreadsheets write in other languages, and marks.
_WORDS |= dict.fromkeys(("wahr", "vrai", "verdadero", "vero", "✓", "✔", "✅"), 1.0)
_WORDS |= dict.fromkeys(("falsch", "faux", "falso", "✗", "✘", "❌"), 0.0)
_COMMA = re.compile(r"[-+]?\d*,\d+")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+")
_PERCENT = re.compile(r"([-+]?\d*[.,]?\d+)\s*%")
# What a missing score is called where everything is text.
_NOTHING = frozenset(("", "na", "n/a", "#n/a", "none", "null", "<na>", "-", "–", "—"))
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_values(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    """A column of scores as numbers; texts are read as numbers or as yes and no."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    _refuse_thousands(texts, name, source)
    stated = [text for text in texts if text.strip().lower() not in _NOTHING]
    if stated and all(
        _PERCENT.fullmatch(text.strip()) for text in stated
    ):  # beside plain numbers it would not be clear what 1 is
        values: list[float | str | None] = [
            _number(found[1]) / 100 if (found := _PERCENT.fullmatch(text.strip())) else None
            for text in texts
        ]
    else:
        values = [number_or_word(text) for text in texts]
    strange = [text for text, value in zip(texts, values, strict=True) if isinstance(value, str)]
    if strange:
        raise SampleSchemaError(
            f"{source}: column 'score' has type string ({name!r}) with values that are neither "
            f"numbers nor yes or no, e.g. {strange[:3]}. Leave empty what could not be scored, "
            "choose another column with score_column=…, or let answers be compared with targets: "
            "prediction_column=… target_column=…"
        )
    return pa.chunked_array([pc.take(pa.array(values, pa.float64()), encoded.indices)])


def number_or_word(text: str) -> float | str | None:
    """A number or a yes or no as a score, None for an empty one; any other text as it is."""
    plain = text.strip().lower()
    if plain in _NOTHING:
        return None
    if plain in _WORDS:
        return _WORDS[plain]
    try:
        return _number(plain)
    except ValueError:
        return text


def _number(text: str) -> float:
    return float(text.replace(",", ".") if _COMMA.fullmatch(text) else text)


def _refuse_thousands(texts: list[str], name: str, source: str) -> None:
    """Commas before three digits may stand for decimals or for thousands: other cells must say."""
    commas = [text.strip() for text in texts if "," in text]
    if commas and all(_THOUSANDS.fullmatch(text) for text in commas):
        raise SampleSchemaError(
            f"{source}: column {name!r} has numbers such as {commas[0]!r}, whose comma may stand "
            "for decimals or for thousands: write 1000 or 1.000."
        )


def exact(answer: str, target: str) -> float:
    """Equal, but for white space around it; numbers may be written in two ways."""
    if answer.strip() == target.strip():
        return 1.0
    try:
        return float(float(answer) == float(target))
    except ValueError:
        return 0.0


def squad_exact(answer: str, target: str) -> float:
    """Equal after SQuAD's normalization: no case, punctuation, articles or double blanks."""
    return float(_normal(answer) == _normal(target))


def squad_f1(answer: str, target: str) -> float:
    """SQuAD's F1 of the words that both have."""
    given, wanted = _normal(answer).split(), _normal(target).split()
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


SCORERS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact,
    "squad_em": squad_exact,
    "squad_f1": squad_f1,
}


def scored(answers: pa.ChunkedArray, targets: pa.ChunkedArray, scorer: str) -> pa.ChunkedArray:
    """Scores of answers against targets; no answer is wrong, no target is unscored."""
    if scorer not in SCORERS:
        raise UnknownNameError("scorer", scorer, SCORERS)
    score = SCORERS[scorer]
    pairs = zip(answers.to_pylist(), targets.to_pylist(), strict=True)
    return pa.chunked_array(
        [pa.array([None if t is None else _score(score, a, t) for a, t in pairs], pa.float64())]
    )


def _score(score: Callable[[str, str], float], answer: Any, target: Any) -> float:
    return 0.0 if answer is None else score(str(answer), str(target))


def _normal(text: str) -> str:
    """As in SQuAD's own evaluation script: ASCII punctuation goes, "10 €" keeps its sign."""
    bare = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())
