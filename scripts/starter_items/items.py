"""From drafts to items: distractors, order and answer positions, all decided by hashes.

Nothing here is random: every choice is taken from the SHA-256 of what it is about, so the same
sources give the same bytes on every machine, and adding one item moves no other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_CHOICES = 4


@dataclass(frozen=True)
class Draft:
    """A question with its answer, before the choices are put in order.

    Attributes
    ----------
    category : str
        Kind of question within the task.
    key : str
        Distinguishes the drafts of one category.
    question : str
        Text that every choice continues after one space.
    gold : str
        The right continuation.
    distractors : tuple of str
        One to three wrong ones.
    """

    category: str
    key: str
    question: str
    gold: str
    distractors: tuple[str, ...]


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def stable_hash(*parts: object) -> int:
    """64 bits that depend on `parts` alone."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def shuffled(values: Iterable[Any], *key: object) -> list[Any]:
    """The distinct values in an order that depends on the values and `key` alone."""
    return sorted(set(values), key=lambda value: (stable_hash(*key, value), str(value)))


def choose(
    pool: Iterable[str], key: object, forbidden: Iterable[str], count: int = 3
) -> tuple[str, ...]:
    """`count` values of `pool`, none of which equals a forbidden one when case is ignored."""
    taken = {value.casefold() for value in forbidden}
    chosen: list[str] = []
    for value in shuffled(pool, "choose", key):
        if value.casefold() not in taken:
            taken.add(value.casefold())
            chosen.append(value)
            if len(chosen) == count:
                break
    return tuple(chosen)


def assemble(task: str, drafts: Iterable[Draft], quota: dict[str, int]) -> list[dict[str, Any]]:
    """Items of one task, shuffled, with balanced answer positions.

    Parameters
    ----------
    task : str
        Name of the task; part of every hash and of every id.
    drafts : iterable of Draft
        More than needed.
    quota : dict of str to int
        How many items of each category to keep, at most.

    Returns
    -------
    list of dict
        ``id``, ``category``, ``question``, ``choices``, ``answer``. Any prefix is a random
        sample of the whole.
    """
    usable = _unambiguous([draft for draft in drafts if _well_formed(draft)])
    by_category: dict[str, list[Draft]] = defaultdict(list)
    for draft in sorted(usable, key=lambda draft: stable_hash(task, draft.category, draft.key)):
        by_category[draft.category].append(draft)
    if by_category.keys() != quota.keys():
        raise ValueError(f"{task}: drafts of {sorted(by_category)}, quotas of {sorted(quota)}")
    kept = [draft for name, group in by_category.items() for draft in group[: quota[name]]]
    kept.sort(key=lambda draft: stable_hash(task, "order", draft.category, draft.key))
    seen: Counter[int] = Counter()
    items = []
    for draft in kept:
        size = 1 + len(draft.distractors)
        choices = shuffled(draft.distractors, task, draft.category, draft.key)
        position = _position(task, size, seen[size])
        seen[size] += 1
        choices.insert(position, draft.gold)
        items.append(
            {
                "id": f"{draft.category}-{draft.key}",
                "category": draft.category,
                "question": draft.question,
                "choices": choices,
                "answer": position,
            }
        )
    return items


def _position(task: str, size: int, index: int) -> int:
    """Answer position of the `index`-th item with `size` choices: each block uses each once."""
    block, place = divmod(index, size)
    order: list[int] = shuffled(range(size), task, "positions", size, block)
    return order[place]


def _well_formed(draft: Draft) -> bool:
    texts = (draft.question, draft.gold, *draft.distractors)
    return (
        1 <= len(draft.distractors) < MAX_CHOICES
        and len({draft.gold, *draft.distractors}) == 1 + len(draft.distractors)
        and all(text and text == text.strip() for text in texts)
    )


def _unambiguous(drafts: Sequence[Draft]) -> list[Draft]:
    """Drop repetitions, and drafts whose distractor answers another draft's equal question."""
    answers: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        answers[draft.question].add(draft.gold)
    seen: set[tuple[str, frozenset[str]]] = set()
    kept = []
    for draft in drafts:
        content = (draft.question, frozenset((draft.gold, *draft.distractors)))
        if content in seen or answers[draft.question].intersection(draft.distractors):
            continue
        seen.add(content)
        kept.append(draft)
    return kept


def to_lines(items: Iterable[dict[str, Any]]) -> bytes:
    """JSON lines, UTF-8."""
    rows = (json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items)
    return "".join(f"{row}\n" for row in rows).encode()
