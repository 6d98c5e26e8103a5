"""Words for definitions. Source: WordNet 3.0."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .items import Draft, choose
from .lexicon import Word, wordnet, words

QUOTA = {"noun": 1400, "verb": 500, "adjective": 400}

_KINDS = {"noun": "n", "verb": "v", "adjective": "a"}
_LENGTH = range(15, 91)


def drafts() -> Iterator[Draft]:
    """Drafts of ``starter_definitions``."""
    for category, pos in _KINDS.items():
        defined = [word for word in words(pos) if _definition(word)]
        alike: dict[str, list[str]] = defaultdict(list)
        for word in defined:
            alike[word.synset.lexname()].append(word.text)
        for word in defined:
            # Words of the same field make the better wrong answers.
            pool = alike[word.synset.lexname()]
            wrong = choose(pool, ("definition", word.text), _related(word))
            question = f"Definition: {_definition(word)}. The {category} defined here is"
            yield Draft(category, word.text, question, word.text, wrong)


def _definition(word: Word) -> str | None:
    """First part of the gloss, unless it holds the word or is of little use."""
    text = str(word.synset.definition()).split(";")[0].strip()
    if len(text) not in _LENGTH or "(" in text or ")" in text or "`" in text or '"' in text:
        return None
    # The stem, so that neither "walk" nor "walking" stands in its own definition.
    stem = word.text[: max(4, len(word.text) - 2)]
    return None if stem in text.casefold() else text


def _related(word: Word) -> set[str]:
    """Synonyms, and words directly above, below or beside it, in any of its senses."""
    names = {word.text}
    for synset in wordnet().synsets(word.text, word.pos):
        names.update(synset.lemma_names())
        for near in _neighbours(synset):
            names.update(near.lemma_names())
    return names


def _neighbours(synset: Any) -> list[Any]:
    above = synset.hypernyms()
    beside = [sister for parent in above for sister in parent.hyponyms()]
    return [*above, *beside, *synset.hyponyms(), *synset.similar_tos(), *synset.also_sees()]
