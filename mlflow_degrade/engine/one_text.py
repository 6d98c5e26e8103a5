"""What a graph is fed to read one text: unpadded, on top of an empty cache, as the only choice."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UnsupportedModelError
from .session import cache_inputs


def one_text(
    session: Any, folder: Path, ids: NDArray[np.int64], *, others: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """Inputs of a graph for one text."""
    known: dict[str, NDArray[Any]] = {
        "input_ids": ids[None],
        "attention_mask": np.ones_like(ids)[None],
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        "token_type_ids": np.zeros_like(ids)[None],
    }
    shapes = {node.name: node.shape for node in session.get_inputs()}
    if len(shapes.get("input_ids", ())) == 3:  # [batch, choices, length]
        known = {name: values[None] for name, values in known.items()}
    known |= {
        entry.name: np.zeros(entry.empty_shape(1), entry.dtype)
        for entry in cache_inputs(session, folder)
    }
    names = shapes.keys() - set(others)
    if unknown := sorted(names - known.keys()):
        raise UnsupportedModelError(
            f"the model in {folder} takes {unknown}, which is neither tokens nor a cache: only "
            "models that read texts can be run here."
        )
    return {name: known[name] for name in names}
