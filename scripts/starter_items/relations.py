"""Relations between words: kinds, opposites and parts. Source: WordNet 3.0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .items import Draft, choose, listed
from .lexicon import COUNTABLE, Word, is_singular, with_article, wordnet, words

QUOTA = {"kind_of": 900, "kind_of_mass": 300, "opposite": 500, "part_of": 300}

_MASS = frozenset(f"noun.{kind}" for kind in listed("feeling food phenomenon substance"))
# Kinds so general that nearly everything is one.
_MIN_DEPTH = 4


def drafts() -> Iterator[Draft]:
    """Drafts of ``starter_relations``."""
    nouns = words("n")
    kinds = {word.text: _kind(word) for word in nouns}
    pool = [kind for kind in kinds.values() if kind]
    for word in nouns:
        kind = kinds[word.text]
        if kind is None:
            continue
        wrong = choose(pool, ("kind", word.text), _all_above(word.text))
        lexname = word.synset.lexname()
        if lexname in COUNTABLE and is_singular(word):
            question = f"{_capital(with_article(word.text))} is a kind of"
            yield Draft("kind_of", word.text, question, kind, wrong)
        elif lexname in _MASS:
            question = f"{_capital(word.text)} is a kind of"
            yield Draft("kind_of_mass", word.text, question, kind, wrong)
    yield from _opposites()
    yield from _parts(nouns)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _plain(name: str) -> bool:
    return name.isascii() and name.isalpha() and name.islower()


def _kind(word: Word) -> str | None:
    """Name of the next more general thing, if it is one plain word that does not give it away."""
    above = word.synset.hypernyms()
    if len(above) != 1 or above[0].min_depth() < _MIN_DEPTH:
        return None
    name: str = above[0].lemma_names()[0]
    if not _plain(name) or name in word.text or word.text in name:
        return None
    return name


def _all_above(text: str) -> set[str]:
    """Everything the word can be in any of its senses, and its synonyms."""

    def more_general(synset: Any) -> list[Any]:
        return [*synset.hypernyms(), *synset.instance_hypernyms()]

    return _names_reached(text, more_general)


def _all_wholes(text: str) -> set[str]:
    """Everything the word can be a part of in any of its senses, and what that is."""

    def wider(synset: Any) -> list[Any]:
        wholes = [*synset.part_holonyms(), *synset.member_holonyms(), *synset.substance_holonyms()]
        return [*wholes, *synset.hypernyms()]

    return _names_reached(text, wider)


def _names_reached(text: str, step: Callable[[Any], list[Any]]) -> set[str]:
    names = {text}
    waiting = wordnet().synsets(text, "n")
    reached = set()
    while waiting:
        synset = waiting.pop()
        if synset.name() not in reached:
            reached.add(synset.name())
            names.update(synset.lemma_names())
            waiting.extend(step(synset))
    return names


def _parts(nouns: Sequence[Word]) -> Iterator[Draft]:
    countable = {
        word.text: word
        for word in nouns
        if word.synset.lexname() in COUNTABLE and is_singular(word)
    }
    wholes = {text: _whole(word) for text, word in countable.items()}
    named = {text: whole for text, whole in wholes.items() if whole in countable}
    for text, whole in named.items():
        wrong = choose(named.values(), ("part", text), _all_wholes(text))
        question = f"{_capital(with_article(text))} is a part of"
        gold, *others = (with_article(name) for name in (whole, *wrong))
        if whole not in text and text not in whole:
            yield Draft("part_of", text, question, gold, tuple(others))


def _whole(word: Word) -> str:
    """Name of the thing this is a part of, or nothing."""
    around = word.synset.part_holonyms()
    return str(around[0].lemma_names()[0]) if around else ""


def _opposites() -> Iterator[Draft]:
    adjectives = words("a")
    pool = [word.text for word in adjectives]
    for word in adjectives:
        lemmas = [lemma for lemma in word.synset.lemmas() if lemma.name() == word.text]
        opposites = [other.name() for lemma in lemmas for other in lemma.antonyms()]
        if not opposites or not _plain(opposites[0]) or word.text in opposites[0]:
            # "unhappy" for "happy" is a matter of spelling.
            continue
        gold = opposites[0]
        wrong = choose(pool, ("opposite", word.text), _close_to(word.text) | _close_to(gold))
        yield Draft("opposite", word.text, f"The opposite of {word.text} is", gold, wrong)


def _close_to(text: str) -> set[str]:
    """Adjectives near the word or opposed to it, in any of its senses."""
    names = {text}
    for start in wordnet().synsets(text, "a"):
        for synset in (start, *start.similar_tos(), *start.also_sees()):
            for lemma in synset.lemmas():
                names.add(lemma.name())
                names.update(other.name() for other in lemma.antonyms())
    return names
