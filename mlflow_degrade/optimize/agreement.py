"""One way to compare two saved models, whatever their family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ParityError
from ..runtime.family import model_family, unscored_task
from .encoder_parity import EncoderParity, encoder_parity
from .onnx_files import load_graph
from .output_parity import OutputParity, output_parity
from .parity import EXPORT_TOLERANCE, Parity, check_parity, parity, probable_cause

EMBEDDING_TOLERANCE = 1e-4
"""Largest difference between components of two embeddings that an fp32 export may show.

Components of a vector of length 1 are smaller than logits by an order of magnitude.
"""


Agreement = Parity | EncoderParity | OutputParity
"""What is known of two models after they were compared."""


def agreement(
    reference: str | Path, candidate: str | Path, prompts: Sequence[str] | None = None
) -> Agreement:
    """`parity` of two decoders, `encoder_parity` of two encoders or classifiers.

    `output_parity` of what is neither.
    """
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
    """Require that an export computes what its source computes.

    Raises
    ------
    ParityError
        When a logit differs by more than 1e-3, or a component of an embedding by more than 1e-4.
    """
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
