"""One way to compare two saved models, whatever their family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError, NonFiniteLogitsError, ParityError
from ...engine.family import model_family, unscored_task
from ...engine.one_text import one_text
from ...engine.providers import CPU, open_session
from ...engine.session import read_json
from ...engine.tokenization import EncoderText
from ..onnx_graph.files import GRAPH_FILE, load_graph
from ..source.weight_files import load_whole
from .decoder import EXPORT_TOLERANCE, Parity, check_parity, parity, probable_cause
from .encoder import EncoderParity, encoder_parity
from .prompts import parity_texts

# How far a saved model is from its source by what it puts out, whatever that means.

Outputs = Mapping[str, NDArray[Any]]

BROKEN_CORRELATION = 0.5
"""Correlation of two models' outputs below which a result is an accident."""


@dataclass(frozen=True)
class OutputParity:
    """Agreement of a candidate's outputs with its reference's on the same texts."""

    max_abs_difference: float  # Over all texts, outputs and numbers.
    # Of all numbers of both models, 1 when they are the same but for a scale and an offset.
    correlation: float
    n_texts: int  # Texts compared.

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
    """Compare all outputs of two saved models on real texts, one text at a time."""
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


EMBEDDING_TOLERANCE = 1e-4
"""Largest difference between components of two embeddings that an fp32 export may show.

Components of a vector of length 1 are smaller than logits by an order of magnitude.
"""


Agreement = Parity | EncoderParity | OutputParity
"""What is known of two models after they were compared."""


def agreement(
    reference: str | Path, candidate: str | Path, prompts: Sequence[str] | None = None
) -> Agreement:
    """`parity` of two decoders, `encoder_parity` of two encoders or classifiers."""
    # `output_parity` of what is neither.
    if is_unscored(candidate):
        return output_parity(reference, candidate, prompts)
    if model_family(candidate) == "decoder":
        return parity(reference, candidate, prompts)
    return encoder_parity(reference, candidate, prompts)


def export_tolerance(model: str | Path) -> float:
    """Largest difference that a faithful fp32 copy of a model may show."""
    if is_unscored(model):
        return EXPORT_TOLERANCE
    return EMBEDDING_TOLERANCE if model_family(model) == "encoder" else EXPORT_TOLERANCE


def is_unscored(model: str | Path) -> bool:
    """Whether a model directory's outputs are none of those that the engine reads."""
    if unscored_task(model) is not None:
        return True
    if model_family(model) != "encoder":
        return False
    # A masked language model, exported with its head.
    return any(o.name == "logits" for o in load_graph(model, weights=False).graph.output)


def check_agreement(reference: str | Path, candidate: str | Path) -> Agreement:
    """Require that an export computes what its source computes."""
    if not is_unscored(candidate) and model_family(candidate) == "decoder":
        return check_parity(reference, candidate)
    found = agreement(reference, candidate)
    limit = export_tolerance(candidate)
    if found.max_abs_difference > limit:
        raise ParityError(
            f"{candidate} does not reproduce {reference}: {found}; the limit is {limit:g}. "
            f"{probable_cause(Path(reference))}"
        )
    return found
