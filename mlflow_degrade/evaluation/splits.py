"""Documents that candidates are chosen on, and others that the chosen one has to pass on.

Which part a document is in depends on its content and a seed alone: it is in the same part whatever
the task, the limit and the other documents are, so that one which tasks share is in one part only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .suite import Suite, SuiteTask

_NAMED = 3


@dataclass(frozen=True)
class Part:
    """A part of every task's documents."""

    name: Literal["selection", "confirmation"]
    share: float  # Of the documents that are for the selection.
    seed: int

    def holds(self, document: str) -> bool:
        """Whether the document with a hash is in this part."""
        digest = hashlib.sha256(f"{self.seed}:{document}".encode()).digest()
        chosen = int.from_bytes(digest[:8], "big") / 2.0**64 < self.share
        return chosen == (self.name == "selection")

    def of(self, task: SuiteTask) -> tuple[int, ...]:
        """Indices of a task's documents in this part."""
        documents = zip(task.indices, task.documents(), strict=True)
        return tuple(index for index, document in documents if self.holds(document_hash(document)))

    def stated(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @classmethod
    def read(cls, stated: Mapping[str, Any] | None) -> Part | None:
        """What `stated` gave."""
        return None if stated is None else cls(**stated)


def document_hash(document: Any) -> str:
    """A document's hash as lm-eval states it, and sample tables with it."""
    from lm_eval.utils import handle_non_serializable, hash_string

    text = json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))


def document_hashes(suite: Suite) -> dict[str, str]:
    """Hash of every document of a suite, and a task that asks it."""
    return {
        document_hash(document): f"{task.name}/{index}"
        for task in suite.tasks
        for index, document in zip(task.indices, task.documents(), strict=True)
    }


def require_disjoint(selection: Suite, confirmation: Suite) -> None:
    """Raise where a document is in both."""
    chosen_on, confirmed_on = map(document_hashes, (selection, confirmation))
    shared = sorted(chosen_on.keys() & confirmed_on.keys(), key=confirmed_on.__getitem__)
    if shared:
        pairs = [f"{chosen_on[h]} = {confirmed_on[h]}" for h in shared[:_NAMED]]
        more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
        raise InputError(
            f"selection and confirmation share {len(shared)} of {len(confirmed_on)} documents "
            f"({', '.join(pairs)}{more}): what a candidate was chosen on confirms nothing. Name "
            "other selection_tasks, or leave them out to split the tasks' documents."
        )
