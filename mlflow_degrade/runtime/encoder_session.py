"""The graph of an encoder or a classifier as a session: what it is fed, and what answers.

No tokenizer is needed for that, so that memory can be measured without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedModelError
from .layout import right_padded
from .plan import Row
from .providers import open_session

_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
_HIDDEN = ("last_hidden_state", "token_embeddings")


class EncoderSession:
    """A session on an encoder or a classifier.

    Parameters
    ----------
    folder : Path
        A model directory.
    providers : tuple of str
        From `mlflow_degrade.runtime.providers.resolve_device`.
    classifier : bool
        Whether logits of labels are wanted, not hidden states.
    threads : int, optional
        Threads per operator; all available cores by default.

    Raises
    ------
    ModelError
        The graph cannot be loaded.
    ProviderUnavailableError
        The session did not get its first provider.
    UnsupportedModelError
        An input that the engine does not know how to fill, or no output that it knows.
    """

    def __init__(
        self,
        folder: Path,
        providers: tuple[str, ...],
        *,
        classifier: bool,
        threads: int | None = None,
    ) -> None:
        self._session: Any = open_session(folder / "model.onnx", providers, threads=threads)
        self._inputs = {node.name for node in self._session.get_inputs()}
        unknown = self._inputs - _INPUTS
        if unknown:
            raise UnsupportedModelError(
                f"the model in {folder} takes {sorted(unknown)}, which the engine does not "
                "know how to fill: export it with Optimum's task 'feature-extraction' or "
                "'text-classification'."
            )
        names = [node.name for node in self._session.get_outputs()]
        known = ("logits",) if classifier else _HIDDEN
        found = next((name for name in known if name in names), None)
        if found is None:
            raise UnsupportedModelError(
                f"the model in {folder} gives {', '.join(names)}, and no {' or '.join(known)}."
            )
        self._output = found

    def run(self, rows: Sequence[Row], length: int, *, pad_id: int) -> NDArray[Any]:
        """Hidden states of shape (rows, length, width), or logits of shape (rows, labels).

        Parameters
        ----------
        rows : sequence of Row
            One batch.
        length : int
            What they are padded to on the right.
        pad_id : int
            By what; some models count positions by it.
        """
        ids, mask = right_padded([row.tokens for row in rows], length, fill=pad_id)
        positions = np.arange(length, dtype=np.int64)[None]
        # One text has no second part, which then begins behind its end.
        second = np.array([[row.second or length] for row in rows])
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": mask * (positions >= second),
            "position_ids": np.repeat(positions, len(rows), axis=0),
        }
        values: NDArray[Any]
        (values,) = self._session.run(
            [self._output], {name: feeds[name] for name in feeds if name in self._inputs}
        )
        return values
