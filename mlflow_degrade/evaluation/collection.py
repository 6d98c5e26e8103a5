"""The passages that queries are put to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..core.cache import digest_json

SHORTLIST = 50
"""Passages that a cross-encoder ranks for a query where none but relevant ones were judged."""

_SHOWN = 200


class Collection(str):
    """Passages by id; as a text, in requests and logs, it is their digest."""

    __slots__ = ("__dict__",)

    passages: Mapping[str, str]  # Text by id.

    def __new__(cls, passages: Mapping[str, str]) -> Collection:
        made = super().__new__(cls, digest_json(dict(passages)))
        made.passages = passages
        return made

    def shown(self, ids: Sequence[str]) -> list[str]:
        """Beginnings of some passages, for people."""
        return [self.passages[name][:_SHOWN] for name in ids]

    def shortlist(self, query: str, judged: Sequence[str]) -> list[str]:
        """The judged passages and, up to `SHORTLIST`, those nearest to the query by their words."""
        # Nearness is the cosine of TF-IDF vectors: a first stage that no model has a part in, so
        # that all models rank the same passages.
        vectorizer, matrix = self._words
        near = np.asarray((matrix @ vectorizer.transform([query]).T).todense()).ravel()
        order = sorted(range(len(near)), key=lambda i: (-near[i], self._ids[i]))
        others = (self._ids[i] for i in order if self._ids[i] not in set(judged))
        return [*judged, *list(others)[: max(0, SHORTLIST - len(judged))]]

    @cached_property
    def _ids(self) -> list[str]:
        return list(self.passages)

    @cached_property
    def _words(self) -> tuple[Any, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        return vectorizer, vectorizer.fit_transform(list(self.passages.values()))
