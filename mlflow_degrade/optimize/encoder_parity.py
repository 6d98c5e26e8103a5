"""How far a saved encoder or classifier is from the one it was made from.

Compared is what a user gets: embeddings as the model's files state them, or a classifier's logits,
of the same real texts, from models loaded from disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import ModelError, NonFiniteLogitsError
from ..runtime.encoder import OnnxEncoder, Vectors, cosines
from ..runtime.encoder_text import EncoderText
from ..runtime.family import model_family
from ..runtime.pooling import read_pooling
from ..runtime.providers import CPU, device_name
from ..runtime.session import read_json
from .onnx_files import GRAPH_FILE
from .prompts import parity_texts
from .whole_weights import load_whole


@dataclass(frozen=True)
class EncoderParity:
    """Agreement of a candidate's vectors with its reference's on the same texts.

    Attributes
    ----------
    max_abs_difference : float
        Over all texts and components: of embeddings, or of a classifier's logits.
    min_cosine, mean_cosine : float
        Over texts: cosine of both models' vectors, 1 for the same direction.
    n_texts : int
        Texts compared.
    """

    max_abs_difference: float
    min_cosine: float
    mean_cosine: float
    n_texts: int

    @property
    def broken(self) -> str | None:
        """What makes the candidate an accident, not a trade-off; None when it is none."""
        if self.mean_cosine >= BROKEN_COSINE:
            return None
        return f"the limit is a mean cosine of {BROKEN_COSINE:g}"

    def as_dict(self) -> dict[str, float | int]:
        """The four numbers, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"mean cosine {self.mean_cosine:.5f}, least {self.min_cosine:.5f}, largest difference "
            f"{self.max_abs_difference:.3g} over {self.n_texts} texts"
        )


BROKEN_COSINE = 0.5
"""Mean cosine below which a result is an accident: texts that have little to do with each other are
about as similar to a good encoder."""


def encoder_parity(
    reference: str | Path,
    candidate: str | Path,
    texts: Sequence[str] | None = None,
    *,
    providers: tuple[str, ...] = (CPU,),
) -> EncoderParity:
    """Compare two saved encoders, or two saved classifiers, on real texts.

    Parameters
    ----------
    reference, candidate : path
        Model directories, or Hugging Face directories (those run in PyTorch, fp32).
    texts : sequence of str, optional
        `mlflow_degrade.optimize.prompts.PARITY_PROMPTS` by default; a text longer than the model's
        attention window, if it has one, is added.
    providers : tuple of str
        Where ONNX files run.

    Returns
    -------
    EncoderParity

    Raises
    ------
    InputError
        There is no text.
    NonFiniteLogitsError
        When either model produces NaN or infinity.
    ModelError
        When the vectors are of different width.
    """
    chosen = parity_texts(texts, read_json(Path(reference), "config.json", needed=True))
    want = _vectors(Path(reference), chosen, providers)
    got = _vectors(Path(candidate), chosen, providers)
    if want.shape != got.shape:
        raise ModelError(
            f"{candidate} gives vectors of {got.shape[1]} numbers, its reference {reference} of "
            f"{want.shape[1]}: they are not the same model."
        )
    same = cosines(want, got)
    return EncoderParity(
        float(np.abs(want - got).max()), float(same.min()), float(same.mean()), len(chosen)
    )


def _vectors(folder: Path, texts: Sequence[str], providers: tuple[str, ...]) -> Vectors:
    if not (folder / GRAPH_FILE).is_file():
        return _torch_vectors(folder, texts)
    encoder = OnnxEncoder(folder, device=device_name(providers))
    encoder.unpadded = True  # the plainest path there is
    vectors = encoder.vectors(texts)
    encoder.close()
    return vectors


def _torch_vectors(folder: Path, texts: Sequence[str]) -> Vectors:
    """The same in PyTorch, one text at a time."""
    import torch

    classifier = model_family(folder) == "classifier"
    model = load_whole(folder)
    text = EncoderText(folder, read_json(folder, "config.json", needed=True))
    pooling = None if classifier else read_pooling(folder)
    found = []
    for ids in text.encode(texts)[0]:
        with torch.inference_mode():
            output = model(torch.tensor([ids]))
        values = output.logits if pooling is None else output.last_hidden_state
        row = values[0].numpy()
        found.append(np.asarray(row if pooling is None else pooling(row), np.float32))
    vectors = np.array(found)
    if not np.isfinite(vectors).all():
        raise NonFiniteLogitsError(
            f"{folder} gives NaN or infinity for a plain text in PyTorch: the model is broken."
        )
    return vectors
