"""Numbers in digits and in words. Source: the number engine of `inflect`."""

from __future__ import annotations

from collections.abc import Iterator

import inflect

from .items import Draft, choose, shuffled

QUOTA = {"digits_of_words": 1200, "words_of_digits": 500, "ordinal": 300, "successor": 500}


def drafts() -> Iterator[Draft]:
    """Drafts of ``starter_numbers``."""
    engine = inflect.engine()
    for n in _numbers("digits_of_words", 1600):
        question = f"Written as digits, the number {_words(engine, n)} is"
        yield Draft("digits_of_words", str(n), question, str(n), _alike(n))
    for n in _numbers("words_of_digits", 700):
        wrong = tuple(_words(engine, int(other)) for other in _alike(n))
        question = f"Written in words, the number {n} is"
        yield Draft("words_of_digits", str(n), question, _words(engine, n), wrong)
    for n in shuffled(range(1, 1000), "ordinal")[:400]:
        right = str(engine.ordinal(n))
        wrong = tuple(f"{n}{ending}" for ending in ("st", "nd", "rd", "th"))
        question = f"The ordinal number of {_words(engine, n)} is"
        yield Draft("ordinal", str(n), question, right, tuple(w for w in wrong if w != right))
    for n in _numbers("successor", 700):
        question = f"The whole number that comes right after {n} is"
        wrong = tuple(str(other) for other in (n - 1, n + 2, n + 10))
        yield Draft("successor", str(n), question, str(n + 1), wrong)


def _numbers(purpose: str, count: int) -> list[int]:
    """Numbers of two to five digits, every length equally often."""
    ranges = [range(21, 100), range(100, 1000), range(1000, 10_000), range(10_000, 100_000)]
    share = count // len(ranges)
    return [n for numbers in ranges for n in shuffled(numbers, purpose)[:share]]


def _alike(n: int) -> tuple[str, ...]:
    """Three numbers of as many digits: one digit moved by one or two, or two neighbours swapped."""
    digits = str(n)
    near = set()
    for place, digit in enumerate(digits):
        near |= {
            f"{digits[:place]}{int(digit) + step}{digits[place + 1 :]}"
            for step in (-2, -1, 1, 2)
            if 0 <= int(digit) + step <= 9
        }
        near.add(digits[:place] + digits[place : place + 2][::-1] + digits[place + 2 :])
    pool = (text for text in near if text[0] != "0")
    return choose(pool, ("alike", n), (digits,))


def _words(engine: inflect.engine, n: int) -> str:
    return str(engine.number_to_words(n, andword=""))
