"""How embeddings are meant to be searched, as sentence-transformers' file of a model says."""

from __future__ import annotations

from pathlib import Path

from ..errors import UnsupportedModelError
from .session import read_json

PROMPTS_FILE = "config_sentence_transformers.json"
"""Where sentence-transformers keeps prompts and the way to compare embeddings."""

# Of its `encode_document`, in its order.
_PASSAGE_PROMPTS = ("document", "passage", "corpus")


def stated_similarity(folder: Path) -> str:
    """``"cosine"``, also where nothing is stated, or ``"dot"``.

    Raises
    ------
    UnsupportedModelError
        Another one is stated.
    """
    stated = read_json(folder, PROMPTS_FILE, needed=False).get("similarity_fn_name") or "cosine"
    if stated not in ("cosine", "dot"):
        raise UnsupportedModelError(
            f"{folder / PROMPTS_FILE} compares embeddings by {stated!r}; known are 'cosine' and "
            "'dot'."
        )
    return str(stated)


def retrieval_prompts(folder: Path) -> tuple[str, str]:
    """What is put before queries and before passages."""
    prompts = read_json(folder, PROMPTS_FILE, needed=False).get("prompts") or {}
    passage = next((prompts[n] for n in _PASSAGE_PROMPTS if prompts.get(n)), "")
    return str(prompts.get("query") or ""), str(passage)
