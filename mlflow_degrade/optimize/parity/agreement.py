"""One way to compare two saved models, whatever their family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError, NonFiniteLogitsError, ParityError
from ...engine.encoder import OnnxEncoder, Vectors, cosines
from ...engine.family import model_family, unscored_task
from ...engine.pooling import Answer, head_answer, head_labels, read_pooling
from ...engine.providers import CPU, device_name, open_session
from ...engine.schedule import one_text
from ...engine.session import read_json
from ...engine.tokenization import EncoderText, Text
from ..onnx_graph.files import GRAPH_FILE, load_graph
from ..source.weight_files import load_whole
from .decoder import EXPORT_TOLERANCE, Parity, check_parity, parity, probable_cause
from .prompts import parity_texts

# How far a saved encoder or classifier is from the one it was made from.


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
