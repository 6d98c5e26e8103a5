"""Forms of English words. Sources: `lemminflect` for the forms, WordNet for the choice of words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .items import Draft
from .lexicon import countable_nouns, forms, only_form, words

QUOTA = {
    "past_tense": 500,
    "participle": 300,
    "third_person": 400,
    "ing_form": 400,
    "plural": 600,
    "comparative": 150,
    "superlative": 150,
}


def drafts() -> Iterator[Draft]:
    """Drafts of ``starter_inflection``."""
    for word in words("v", 2):
        yield from _verb(word.text)
    for singular, plural in countable_nouns(2):
        question = f"There is one {singular} here, and over there are two"
        wrong = _wrong([singular, singular + "s", singular + "es", singular + "en"], [plural])
        yield Draft("plural", singular, question, plural, wrong)
    for word in words("a", 2):
        yield from _adjective(word.text)


def _wrong(candidates: Iterable[str], right: Iterable[str]) -> tuple[str, ...]:
    """The first three candidates that are not a right form."""
    return tuple(text for text in dict.fromkeys(candidates) if text not in set(right))[:3]


def _regular_past(verb: str) -> str:
    """The past tense by rule alone, which for irregular verbs is the classic mistake."""
    if verb.endswith("e"):
        return f"{verb}d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ied"
    return f"{verb}ed"


def _verb(verb: str) -> Iterator[Draft]:
    tags = {tag: only_form(verb, tag) for tag in ("VBD", "VBN", "VBG", "VBZ")}
    past, participle, ing, third = tags.values()
    if not (past and participle and ing and third) or verb in (past, participle):
        return
    wrong = _wrong([ing, third, verb, _regular_past(verb)], [past])
    if past != participle:
        wrong = _wrong([participle, verb, _regular_past(verb), third], [past])
        others = _wrong([past, verb, third, ing], [participle])
        question = f"To {verb}: this is something they have always"
        yield Draft("participle", verb, question, participle, others)
    yield Draft("past_tense", verb, f"Today I {verb}. Yesterday I", past, wrong)
    wrong = _wrong([verb, ing, past], [third])
    yield Draft("third_person", verb, f"I {verb} every day, and he also", third, wrong)
    doubled = f"{verb}{verb[-1]}ing"
    undoubled = f"{verb}ing"
    wrong = _wrong([undoubled, doubled, verb, past], [ing])
    yield Draft("ing_form", verb, f"They often {verb}, and right now they are", ing, wrong)


def _adjective(word: str) -> Iterator[Draft]:
    comparative, superlative = only_form(word, "JJR"), only_form(word, "JJS")
    if not comparative or not superlative:
        return
    wrong = _wrong([word, superlative, f"{word}er", f"{word}est"], forms(word, "JJR"))
    after = "than this one."
    others = tuple(f"{text} {after}" for text in wrong)
    yield Draft("comparative", word, "That one is much", f"{comparative} {after}", others)
    wrong = _wrong([word, comparative, f"{word}est", f"{word}er"], forms(word, "JJS"))
    after = "of them all."
    others = tuple(f"{text} {after}" for text in wrong)
    yield Draft("superlative", word, "That one is the", f"{superlative} {after}", others)
