"""Scores of one query's ranking and of one group of rated texts, each a sample that can be paired.

A query's scores are those of trec_eval: gains are the relevances themselves, discounted by the
binary logarithm of the rank plus one [1]_. Queries are independent samples, as in the usual paired
tests of information retrieval [2]_.

Rank correlation is a number of a whole data set: what one item adds to it depends on all others, so
that a paired test over items would take their scores for independent, and their spread for less
than it is (by a factor of two for Kendall's tau, whose terms share items [3]_). Items are therefore
dealt into groups, and a sample is a group: of its couples with different gold scores, the share
that the model orders alike. Groups share no item, the mean over them is about (Kendall's tau + 1)
/ 2 with ties of the model counted half, and a group of ten gives 45 couples where ten items dealt
in twos would give five.

References
----------
.. [1] Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20,
   2002; trec_eval's ndcg_cut, recall and recip_rank.
.. [2] Smucker, Allan and Carterette, "A comparison of statistical significance tests for
   information retrieval evaluation", CIKM 2007.
.. [3] Hoeffding, "A class of statistics with asymptotically normal distribution", Annals of
   Mathematical Statistics 19, 1948.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

GROUP_SIZE = 10
"""Fewest items of a group whose order is compared."""


def ndcg(ranked: Sequence[str], relevances: Mapping[str, float], k: int = 10) -> float:
    """Normalized discounted cumulated gain of the first `k` of a ranking."""
    ideal = sorted(relevances.values(), reverse=True)
    return _gain([relevances.get(p, 0.0) for p in ranked[:k]]) / _gain(ideal[:k])


def _gain(relevances: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 2) for rank, gain in enumerate(relevances))


def recall(ranked: Sequence[str], relevances: Mapping[str, float], k: int = 10) -> float:
    """Share of the relevant passages among the first `k`."""
    relevant = {passage for passage, value in relevances.items() if value > 0}
    return len(relevant & set(ranked[:k])) / len(relevant)


def reciprocal_rank(ranked: Sequence[str], relevances: Mapping[str, float], k: int = 10) -> float:
    """1 / rank of the first relevant passage; 0 where none is among the first `k`."""
    places = (i for i, passage in enumerate(ranked[:k], 1) if relevances.get(passage, 0) > 0)
    return 1 / next(places, math.inf)


def order_agreement(gold: Sequence[float], given: Sequence[float]) -> float:
    """Share of the couples with different gold scores that are ordered alike; a tie counts half."""
    alike = couples = 0.0
    for i, (first, mine) in enumerate(zip(gold, given, strict=True)):
        for second, yours in zip(gold[:i], given[:i], strict=True):
            if first != second:
                couples += 1
                apart = (mine > yours) - (mine < yours)
                alike += (1 + apart * (1 if first > second else -1)) / 2
    return alike / couples


def ranked(ratings: Mapping[str, float], query: str, most: int) -> list[str]:
    """Passages by falling rating."""
    # Those rated alike in an order that has nothing to do with them.
    # An order of the file would give a model that rates all alike what the file's order is worth.

    def place(passage: str) -> tuple[float, bytes]:
        mark = hashlib.sha256(f"{query}\0{passage}".encode(errors="surrogatepass")).digest()
        return -ratings[passage], mark

    return sorted(ratings, key=place)[:most]


def deal(gold: Sequence[float], marks: Sequence[str]) -> list[list[int]]:
    """Indices of items by group, so that every group has couples to order."""
    # Items are sorted by their gold score, those with the most frequent one last, and each run of
    # as many items as there are groups gives every group one of them at random. There are no more
    # groups than items beside those of the most frequent score, so each gets two different scores.
    usual, most = Counter(gold).most_common(1)[0]
    groups = max(1, min(len(gold) // GROUP_SIZE, len(gold) - most))
    mixed = [hashlib.sha256(m.encode(errors="surrogatepass")).digest() for m in marks]
    order = sorted(range(len(gold)), key=lambda i: (gold[i] == usual, gold[i], mixed[i]))
    dealt: list[list[int]] = [[] for _ in range(groups)]
    for start in range(0, len(order), groups):
        run = sorted(order[start : start + groups], key=lambda i: mixed[i][::-1])
        for group, item in zip(dealt, run, strict=False):
            group.append(item)
    return dealt
