"""Minimal pairs of English grammar: two continuations, of which one is grammatical.

The kind of test is that of BLiMP (Warstadt et al. 2020, arXiv:1912.00582); sentences, words and
code are our own. Sources: `lemminflect` and `inflect` for the forms, WordNet for the nouns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from .items import Draft, listed, stable_hash
from .lexicon import countable_nouns, only_form, with_article, words_by_text

QUOTA = {
    "simple": 200,
    "across_phrase": 500,
    "joined": 400,
    "demonstrative": 500,
    "article": 500,
    "tense": 200,
}

_VERBS = listed(
    "arrive argue climb complain cook cough cry dance disappear dream eat escape fall fight help "
    "hide hunt jump laugh lie listen live move play pray return rest run shout sing sleep smile "
    "stay stop struggle study suffer swim talk travel wait walk win work worry write"
)
_ADJECTIVES = listed(
    "afraid alone angry asleep bored busy careful clever dangerous famous friendly happy healthy "
    "hungry ill late lazy lucky missing nervous old patient quiet ready rich sad safe sick silent "
    "slow small strong tired ugly unhappy weak wet young"
)
_PREPOSITIONS = ("near", "behind", "beside", "next to", "in front of", "with", "far from")
_CERTAIN = ("I think that", "It seems that", "They say that", "We know that")
_WHEN = ("every day", "every night", "all the time", "a lot", "on Sundays", "in the morning")

T = TypeVar("T")
Noun = tuple[str, str]  # singular, plural


def drafts() -> Iterator[Draft]:
    """Drafts of ``starter_agreement``."""
    nouns = countable_nouns(3)
    beings = [noun for noun in nouns if _is_being(noun[0])]
    by_article = [
        [one for one, _ in nouns if with_article(one) == f"{article} {one}"]
        for article in ("a", "an")
    ]
    for index in range(2 * max(QUOTA.values())):
        yield _simple(index, beings)
        yield _across_phrase(index, beings)
        yield _joined(index, beings)
        yield _demonstrative(index, nouns)
        yield _article(index, by_article)
        yield _tense(index, beings)


def _pick(pool: Sequence[T], *key: object) -> T:
    return pool[stable_hash("agreement", *key) % len(pool)]


def _is_being(noun: str) -> bool:
    return words_by_text()[noun].synset.lexname() in ("noun.person", "noun.animal")


def _predicate(key: tuple[object, ...], plural: bool) -> tuple[str, str]:
    """A (right, wrong) pair of predicates that differ in number only."""
    adjective, verb = _pick(_ADJECTIVES, *key, "adjective"), _pick(_VERBS, *key, "verb")
    when = _pick(_WHEN, *key, "when")
    one, many = _pick(
        (
            (f"is {adjective}.", f"are {adjective}."),
            (f"was {adjective}.", f"were {adjective}."),
            (f"has to {verb}.", f"have to {verb}."),
            (f"{only_form(verb, 'VBZ')} {when}.", f"{verb} {when}."),
        ),
        *key,
        "predicate",
    )
    return (many, one) if plural else (one, many)


def _simple(index: int, beings: Sequence[Noun]) -> Draft:
    key = ("simple", index)
    plural = index % 2
    subject = _pick(beings, *key)[plural]
    right, wrong = _predicate(key, bool(plural))
    question = f"{_pick(_CERTAIN, *key, 'certain')} the {subject}"
    return Draft("simple", str(index), question, right, (wrong,))


def _across_phrase(index: int, beings: Sequence[Noun]) -> Draft:
    """The verb agrees with the head, not with the noun of the other number before it."""
    key = ("across_phrase", index)
    plural = index % 2
    subject = _pick(beings, *key)[plural]
    other = _pick(beings, *key, "other")[1 - plural]
    right, wrong = _predicate(key, bool(plural))
    question = f"The {subject} {_pick(_PREPOSITIONS, *key, 'where')} the {other}"
    return Draft("across_phrase", str(index), question, right, (wrong,))


def _joined(index: int, beings: Sequence[Noun]) -> Draft:
    """Two subjects joined by "and" take a plural verb, two by "or" agree with the nearer one."""
    key = ("joined", index)
    plural = index % 2
    subject = _pick(beings, *key)[0]
    other = _pick(beings, *key, "other")[0]
    right, wrong = _predicate(key, bool(plural))
    question = (
        f"{_pick(_CERTAIN, *key, 'certain')} the {subject} {('or', 'and')[plural]} the {other}"
    )
    return Draft("joined", str(index), question, right, (wrong,))


def _demonstrative(index: int, nouns: Sequence[Noun]) -> Draft:
    key = ("demonstrative", index)
    plural = index % 2
    noun = _pick(nouns, *key)
    pointer = _pick((("this", "these"), ("that", "those")), *key, "pointer")[plural]
    question = f"Nobody has ever seen {pointer}"
    return Draft("demonstrative", str(index), question, noun[plural], (noun[1 - plural],))


def _article(index: int, by_article: Sequence[Sequence[str]]) -> Draft:
    """The noun must begin with the sound that the article announces."""
    key = ("article", index)
    which = index % 2
    right = _pick(by_article[which], *key)
    wrong = _pick(by_article[1 - which], *key, "other")
    question = f"In the picture there is {('a', 'an')[which]}"
    return Draft("article", str(index), question, right, (wrong,))


def _tense(index: int, beings: Sequence[Noun]) -> Draft:
    key = ("tense", index)
    subject = _pick(beings, *key)[1]
    verb = _pick([verb for verb in _VERBS if only_form(verb, "VBD")], *key, "verb")
    past, ing = str(only_form(verb, "VBD")), str(only_form(verb, "VBG"))
    question, right, wrong = _pick(
        (
            (f"Yesterday the {subject} decided to", verb, past),
            (f"For a whole year the {subject} have", f"been {ing}", f"be {ing}"),
            (f"Tomorrow the {subject} will", verb, past),
            (f"Last night the {subject}", past, ing),
            (f"At this moment the {subject} are", ing, verb),
        ),
        *key,
        "frame",
    )
    return Draft("tense", str(index), question, f"{right}.", (f"{wrong}.",))
