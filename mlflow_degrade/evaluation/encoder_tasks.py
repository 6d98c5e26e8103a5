"""Tasks that encoders, cross-encoders and classifiers answer, as lm-eval runs them.

Each asks the model a question of its own kind (a method of `encoder_backend.OnnxEncoderLM`), and
decoders are never asked them.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import matthews_corrcoef, mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble

from ..engine.tokenization import Text
from .collection import Collection

# Scores of one query's ranking and of one group of rated texts, each a sample that can be paired.

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


_KEPT = 100  # passages of a ranking; what comes later enters no metric


class EncoderTask(Task):  # type: ignore[misc]
    """What the tasks have in common; a subclass with documents is made by `task_config`."""

    documents: Sequence[Mapping[str, Any]] = ()
    VERSION = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        # lm-eval's own constructor does the same for a task that it downloads.
        self._training_docs = self._fewshot_docs = self._instances = None
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        self.fewshot_rnd = None
        kind: Any = self.OUTPUT_TYPE
        self._config = TaskConfig(
            task=config["task"], metadata=config["metadata"], num_fewshot=0, output_type=kind
        )

    def has_training_docs(self) -> bool:
        """None: nothing is shown beforehand."""
        return False

    def has_validation_docs(self) -> bool:
        """None: the documents are those of the test."""
        return False

    def has_test_docs(self) -> bool:
        """Always."""
        return True

    def test_docs(self) -> Sequence[Mapping[str, Any]]:
        """Every sample."""
        return self.documents

    def fewshot_context(self, doc: Mapping[str, Any], **_: Any) -> str:
        """The text alone."""
        return str(self.doc_to_text(doc))

    def dump_config(self) -> dict[str, Any]:
        """What the task is, for its digest; its documents are hashed beside it."""
        return {"task": self.config.task, "output_type": self.OUTPUT_TYPE, "version": self.VERSION}

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **options: Any) -> list[Any]:
        """One request of the task's own kind."""
        arguments = (ctx, *self.arguments(doc))
        kind: Any = self.OUTPUT_TYPE
        return [Instance(kind, dict(doc), arguments, 0, metadata=options["metadata"])]

    def arguments(self, doc: Mapping[str, Any]) -> tuple[Any, ...]:
        """What is asked beside the text."""
        raise NotImplementedError

    def aggregation(self) -> dict[str, Callable[..., float]]:
        """How each metric is computed over all samples."""
        raise NotImplementedError

    def higher_is_better(self) -> dict[str, bool]:
        """Of all of them."""
        return dict.fromkeys(self.aggregation(), True)

    @staticmethod
    def response(sample: Mapping[str, Any]) -> str:
        """What the model answered, for people."""
        raise NotImplementedError


class LabelTask(EncoderTask):
    """A text, or a pair of texts, and which of a classifier's labels it has."""

    OUTPUT_TYPE = "label_text"

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """The first text, or the only one."""
        return str(doc["text"])

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """The label, as the model calls it."""
        return str(doc["label"])

    def arguments(self, doc: Mapping[str, Any]) -> tuple[Any, ...]:
        """The second text, if there is one."""
        return (doc["text_pair"],) if doc.get("text_pair") else ()

    def process_results(
        self, doc: Mapping[str, Any], results: Sequence[Any]
    ) -> dict[str, float | tuple[str, str]]:
        """Whether the most likely of all the model's labels is the right one."""
        pair = (str(doc["label"]), str(results[0]))
        return {"acc": float(pair[0] == pair[1]), "f1": pair, "mcc": pair}

    def aggregation(self) -> dict[str, Callable[..., float]]:
        """The mean; F1 (of all labels alike) and Matthews' correlation over all samples."""
        return {"acc": mean, "f1": _macro_f1, "mcc": matthews_corrcoef}

    @staticmethod
    def response(sample: Mapping[str, Any]) -> str:
        """The label."""
        return str(sample["filtered_resps"][0])


class OrderTask(EncoderTask):
    """A group of rated texts, or pairs of texts, that the model is to order as their scores do."""

    OUTPUT_TYPE = "order_texts"

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """All texts of the group."""
        return "\n".join(" | ".join(texts) for texts in doc["texts"])

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """Their scores."""
        return ", ".join(f"{score:g}" for score in doc["scores"])

    def arguments(self, doc: Mapping[str, Any]) -> tuple[Any, ...]:
        """The texts."""
        return (tuple(tuple(texts) for texts in doc["texts"]),)

    def process_results(
        self, doc: Mapping[str, Any], results: Sequence[Any]
    ) -> dict[str, float | list[Any]]:
        """Agreement within the group, and what the correlation over all groups is made of."""
        gold, given = list(doc["scores"]), list(results[0])
        return {
            "order_agreement": order_agreement(gold, given),
            "spearman": list(zip(gold, given, strict=True)),
        }

    def aggregation(self) -> dict[str, Callable[..., float]]:
        """The mean; Spearman's correlation over all items."""
        return {"order_agreement": mean, "spearman": _spearman}

    @staticmethod
    def response(sample: Mapping[str, Any]) -> str:
        """The model's ratings."""
        return ", ".join(f"{rating:.4g}" for rating in sample["filtered_resps"][0])


class RankTask(EncoderTask):
    """A query whose passages are ranked, all of a collection or those that were judged for it."""

    OUTPUT_TYPE = "rank_passages"
    collection: Collection
    most_ranked: int = sys.maxsize
    """Passages of the collection that the model ranks for a query."""

    def dump_config(self) -> dict[str, Any]:
        """With the collection, which belongs to every query."""
        return {**super().dump_config(), "collection": str(self.collection)}

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """The query."""
        return str(doc["query"])

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """The relevant passages."""
        relevances = dict(zip(doc["judged"], doc["relevance"], strict=True))
        best = sorted((p for p in relevances if relevances[p] > 0), key=lambda p: -relevances[p])
        return "\n".join(self.collection.shown(best))

    def arguments(self, doc: Mapping[str, Any]) -> tuple[Any, ...]:
        """The collection, the judged passages, and whether the others are ranked as well."""
        return (self.collection, tuple(doc["judged"]), bool(doc["whole"]))

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """The query's scores."""
        relevances = dict(zip(doc["judged"], doc["relevance"], strict=True))
        order = list(results[0])
        found = {"ndcg_at_10": ndcg(order, relevances)}
        found |= {f"recall_at_{k}": recall(order, relevances, k) for k in self._depths}
        return {**found, "mrr_at_10": reciprocal_rank(order, relevances)}

    def aggregation(self) -> dict[str, Callable[..., float]]:
        """The mean."""
        names = ["ndcg_at_10", *(f"recall_at_{k}" for k in self._depths), "mrr_at_10"]
        return dict.fromkeys(names, mean)

    @cached_property
    def _depths(self) -> list[int]:
        """Where recall says something: all of a shorter list is found by every model."""
        whole = min(len(self.collection.passages), self.most_ranked)
        longest = max(whole if doc["whole"] else len(doc["judged"]) for doc in self.documents)
        return [k for k in (10, _KEPT) if k < longest]

    @staticmethod
    def response(sample: Mapping[str, Any]) -> str:
        """The first three passages."""
        collection: Collection = sample["arguments"][0][1]
        return "\n".join(collection.shown(sample["filtered_resps"][0][:3]))


KINDS: Mapping[str, type[EncoderTask]] = {
    kind.OUTPUT_TYPE: kind for kind in (LabelTask, OrderTask, RankTask)
}


def task_class(
    kind: str, documents: Sequence[Mapping[str, Any]], **attributes: Any
) -> type[EncoderTask]:
    """A task with its documents, as lm-eval's manager takes it under ``class``."""
    return type(KINDS[kind].__name__, (KINDS[kind],), {"documents": documents, **attributes})


def ranking_of(ratings: Mapping[str, float], query: str) -> list[str]:
    """As much of a ranking as enters any metric."""
    return ranked(ratings, query, _KEPT)


def texts_of(request: Instance) -> Sequence[Text]:
    """The texts of a request of an `OrderTask`: alone or in pairs."""
    return [texts[0] if len(texts) == 1 else texts for texts in map(tuple, request.args[1])]


def _spearman(samples: Sequence[Sequence[tuple[float, float]]]) -> float:
    from scipy.stats import spearmanr

    gold, given = zip(*(pair for sample in samples for pair in sample), strict=True)
    return float(spearmanr(gold, given).statistic)


def _macro_f1(samples: Sequence[tuple[str, str]]) -> float:
    from sklearn.metrics import f1_score as sklearn_f1

    gold, given = zip(*samples, strict=True)
    return float(sklearn_f1(gold, given, average="macro"))
