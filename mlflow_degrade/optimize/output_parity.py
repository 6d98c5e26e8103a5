"""How far a saved model is from its source by what it puts out, whatever that means.

For tasks that the engine does not score (labels of tokens, spans that answer a question, words
behind a mask, a choice between texts): every output of the graph, for the same real texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, NonFiniteLogitsError
from ..runtime.encoder_text import EncoderText
from ..runtime.family import unscored_task
from ..runtime.one_text import one_text
from ..runtime.providers import CPU, open_session
from ..runtime.session import read_json
from .onnx_files import GRAPH_FILE
from .prompts import parity_texts
from .whole_weights import load_whole

Outputs = Mapping[str, NDArray[Any]]

BROKEN_CORRELATION = 0.5
"""Correlation of two models' outputs below which a result is an accident."""


@dataclass(frozen=True)
class OutputParity:
    """Agreement of a candidate's outputs with its reference's on the same texts.

    Attributes
    ----------
    max_abs_difference : float
        Over all texts, outputs and numbers.
    correlation : float
        Of all numbers of both models, 1 when they are the same but for a scale and an offset.
    n_texts : int
        Texts compared.
    """

    max_abs_difference: float
    correlation: float
    n_texts: int

    @property
    def broken(self) -> str | None:
        """What makes the candidate an accident, not a trade-off; None when it is none."""
        if self.correlation >= BROKEN_CORRELATION:
            return None
        return f"the limit is a correlation of {BROKEN_CORRELATION:g}"

    def as_dict(self) -> dict[str, float | int]:
        """The three numbers, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"correlation {self.correlation:.5f}, largest difference "
            f"{self.max_abs_difference:.3g} over {self.n_texts} texts"
        )


def output_parity(
    reference: str | Path, candidate: str | Path, texts: Sequence[str] | None = None
) -> OutputParity:
    """Compare all outputs of two saved models on real texts, one text at a time.

    Parameters
    ----------
    reference : path
        A model directory, or a Hugging Face directory, which runs in PyTorch, fp32.
    candidate : path
        A model directory; its outputs are those that are compared.
    texts : sequence of str, optional
        `mlflow_degrade.optimize.prompts.PARITY_PROMPTS` by default; a text longer than the model's
        attention window, if it has one, is added.

    Returns
    -------
    OutputParity

    Raises
    ------
    InputError
        There is no text.
    NonFiniteLogitsError
        When either model produces NaN or infinity.
    ModelError
        When the reference has no such output, or one of another shape.
    UnsupportedModelError
        When the graph has an input that is no tokens.
    """
    config = read_json(Path(reference), "config.json", needed=True)
    chosen = parity_texts(texts, config)
    ids = EncoderText(Path(reference), config).encode(chosen)[0]
    got = list(_onnx_outputs(Path(candidate), ids))
    names = list(got[0])
    source = _onnx_outputs if (Path(reference) / GRAPH_FILE).is_file() else _torch_outputs
    pairs = []
    for theirs, ours in zip(source(Path(reference), ids), got, strict=True):
        for name in names:
            if name not in theirs or theirs[name].shape != ours[name].shape:
                raise ModelError(
                    f"{candidate} gives {name} of shape {ours[name].shape}, its reference "
                    f"{reference} does not: they are not the same model."
                )
            pairs.append((theirs[name].ravel(), ours[name].ravel()))
    want, found = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    for folder, values in ((reference, want), (candidate, found)):
        if not np.isfinite(values).all():
            raise NonFiniteLogitsError(
                f"{folder} gives NaN or infinity for a plain text: the model is broken, or its "
                "numbers leave the range of its data type."
            )
    correlation = float(np.corrcoef(want, found)[0, 1])
    return OutputParity(float(np.abs(want - found).max()), correlation, len(chosen))


def _onnx_outputs(folder: Path, texts: Sequence[Sequence[int]]) -> Iterator[Outputs]:
    session = open_session(folder / GRAPH_FILE, (CPU,))
    names = [node.name for node in session.get_outputs()]
    for ids in texts:
        found = session.run(names, one_text(session, folder, np.asarray(ids, np.int64)))
        yield dict(zip(names, found, strict=True))


def _torch_outputs(folder: Path, texts: Sequence[Sequence[int]]) -> Iterator[Outputs]:
    import torch
    import transformers

    (name, *_) = read_json(folder, "config.json", needed=True)["architectures"]
    kind: Any = getattr(transformers, name)
    # A model that chooses between texts gives each of them a number by itself.
    alone = 2 if unscored_task(folder) == "multiple-choice" else 1
    model = load_whole(folder, kind)
    for ids in texts:
        with torch.inference_mode():
            output = model(torch.tensor(ids).reshape(*[1] * alone, -1))
        yield {key: value.numpy() for key, value in output.items() if torch.is_tensor(value)}
