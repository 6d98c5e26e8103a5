"""How far a saved encoder or classifier is from the one it was made from.

Compared is what a user gets: embeddings as the model's files state them, or a classifier's logits,
of the same real texts, from models loaded from disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError, NonFiniteLogitsError
from ...engine.encoder import OnnxEncoder, Vectors, cosines
from ...engine.family import model_family
from ...engine.pooling import Answer, head_answer, head_labels, read_pooling
from ...engine.providers import CPU, device_name
from ...engine.session import read_json
from ...engine.tokenization import EncoderText, Text
from ..onnx_graph.files import GRAPH_FILE
from ..source.weight_files import load_whole
from .prompts import parity_texts


@dataclass(frozen=True)
class EncoderParity:
    """Agreement of a candidate's vectors with its reference's on the same texts."""

    # Over all texts and components: of embeddings, or of a classifier's logits.
    max_abs_difference: float
    min_cosine: float
    # Over texts: cosine of both models' vectors, 1 for the same direction. Of models that give one
    # number, which has no direction, both are the correlation over the texts.
    mean_cosine: float
    n_texts: int  # Texts, or pairs of them, compared.

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
    """Compare two saved encoders, or two saved classifiers, on real texts."""
    chosen = parity_texts(texts, read_json(Path(reference), "config.json", needed=True))
    want = _vectors(Path(reference), chosen, providers)
    got = _vectors(Path(candidate), chosen, providers)
    if want.shape != got.shape:
        raise ModelError(
            f"{candidate} gives vectors of {got.shape[1]} numbers, its reference {reference} of "
            f"{want.shape[1]}: they are not the same model."
        )
    same = cosines(want, got) if want.shape[1] > 1 else _correlation(want, got)
    return EncoderParity(
        float(np.abs(want - got).max()), float(same.min()), float(same.mean()), len(chosen)
    )


def _correlation(want: Vectors, got: Vectors) -> NDArray[np.float64]:
    """Of two models' numbers over the texts."""
    left, right = (side.astype(np.float64).T - side.mean(dtype=np.float64) for side in (want, got))
    return cosines(left, right)


def _vectors(folder: Path, texts: Sequence[str], providers: tuple[str, ...]) -> Vectors:
    if not (folder / GRAPH_FILE).is_file():
        return _torch_vectors(folder, texts)
    encoder = OnnxEncoder(folder, device=device_name(providers))
    encoder.unpadded = True  # the plainest path there is
    vectors = encoder.vectors(_read_by(encoder.answer, texts))
    encoder.close()
    return vectors


def _read_by(answer: Answer, texts: Sequence[str]) -> Sequence[Text]:
    """The texts, or each with the one after it where a model rates pairs."""
    following = [*texts[1:], *texts[:1]]
    return list(zip(texts, following, strict=True)) if answer == "number" else texts


def _torch_vectors(folder: Path, texts: Sequence[str]) -> Vectors:
    """The same in PyTorch, one text at a time."""
    import torch

    config = read_json(folder, "config.json", needed=True)
    family = model_family(folder)
    labels = head_labels(config, folder) if family == "classifier" else ()
    answer = head_answer(family, labels)
    pooling = read_pooling(folder) if answer == "embedding" else None
    model = load_whole(folder)
    found = []
    for row in EncoderText(folder, config).rows(_read_by(answer, texts))[0]:
        kinds = {}
        if row.second:
            second = [int(place >= row.second) for place in range(len(row.tokens))]
            kinds["token_type_ids"] = torch.tensor([second])
        with torch.inference_mode():
            output = model(torch.tensor([row.tokens]), **kinds)
        values = output.logits if pooling is None else output.last_hidden_state
        numbers = values[0].numpy()
        found.append(np.asarray(numbers if pooling is None else pooling(numbers), np.float32))
    vectors = np.array(found)
    if not np.isfinite(vectors).all():
        raise NonFiniteLogitsError(
            f"{folder} gives NaN or infinity for a plain text in PyTorch: the model is broken."
        )
    return vectors
