"""Does a model's score of a text depend on how it was computed? Measured, not assumed.

An activation scale that spans the whole batch (dynamic quantization per tensor) makes a prompt's
score depend on its neighbours, and a kernel chosen by the number of rows can. Such a model has no
score that belongs to the prompt alone, so it is run one sequence at a time, and a model compared
with it as well.

Computing what prompts have in common once, or continuing it from its key-value cache, puts the same
numbers into other matrix products, which low precision could turn into another score. A model whose
scores change is run without shared prefixes, and a model compared with it as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bench.machine import current_processor
from ..core.errors import InputError
from ..engine.decoder import OnnxDecoder, Score
from ..engine.encoder import OnnxEncoder, log_softmax, unit
from ..engine.generation import Sampling
from ..engine.pooling import Answer
from ..engine.providers import on_gpu, resolve_device
from ..engine.schedule import Batch, Row, Tokens
from ..samples.origin import Origin

# Operations of a model whose results depend on the processor by more than the last digits.

_ROUNDING = frozenset(("DynamicQuantizeLinear", "QuantizeLinear"))
# Products that take 8-bit integers, or round to them.
_INTEGER = frozenset(
    (
        "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger",
        "MatMulIntegerToFloat", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul",
    )
)  # fmt: skip
_PRODUCTS = frozenset(("Attention", "Conv", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits"))
# Levels of MatMulNBits at which activations become float16, bfloat16 or 8-bit integers.
_LEVELS = {2: "float16", 3: "bfloat16", 4: "8-bit"}
# See `mlflow_degrade.optimize.passes.simulate`.
_SIMULATED = "simulated."


def origin_of(folder: Path, device: str, threads: int | None = None) -> Origin:
    """Where the scores of a model directory are computed on a device of this machine."""
    providers = resolve_device(device)
    here = current_processor(providers)
    return Origin(
        processor=here if threads is None else here.model_copy(update={"threads": threads}),
        dependent_operations=dependent_operations(folder, providers),
    )


def dependent_operations(folder: Path, providers: tuple[str, ...]) -> tuple[str, ...]:
    """Operations of a model directory whose results depend on the processor."""
    from ..optimize.onnx_graph.files import load_graph

    if on_gpu(providers):
        return (f"everything on {providers[0]}",)
    return tuple(sorted(set(_operations(load_graph(folder, weights=False).graph))))


def _operations(graph: Any) -> Iterator[str]:
    from onnx import TensorProto

    halves = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        name = str(node.op_type)
        if name in _INTEGER or (name in _ROUNDING and node.input[0] not in types):
            yield name
        elif node.name.startswith(_SIMULATED):
            yield "simulated rounding"
        elif name in _PRODUCTS:
            yield from (
                f"{name} in {halves[types[x]]}" for x in node.input if types.get(x) in halves
            )
            level = next((a.i for a in node.attribute if a.name == "accuracy_level"), 0)
            if name == "MatMulNBits" and level in _LEVELS:
                yield f"{name} with {_LEVELS[level]} activations"


# Do an encoder's numbers depend on the batch they were computed in? Measured, as for decoders.

SIMILARITY_TOLERANCE = 1e-3
"""Largest accepted change of a cosine.

Measured on all-MiniLM-L6-v2: fp32 and weight-only models change by 0, fp16 by 1.4e-4, int8
activations by .04. A change of 1e-3 decides an item only when two choices are that close.
"""
RATING_TOLERANCE = 0.01
"""Largest accepted change of a model's one number, in standard deviations over the texts: about
what `SIMILARITY_TOLERANCE` is of the spread of cosines."""

_QUANTITIES: Mapping[Answer, Quantity] = {
    "embedding": "similarities",
    "label": "log-probabilities",
    "number": "ratings",
}


def probe_encoder(encoder: OnnxEncoder, sequences: Sequence[Tokens]) -> BatchInvariance:
    """Run texts alone and in padded batches of eight, and compare what is scored by them."""
    distinct = list(dict.fromkeys(tuple(tokens) for tokens in sequences))
    if not distinct:
        raise InputError("no prompt: batch invariance is probed on real prompts.")
    groups = mixed_lengths(distinct)
    alone = [_together(encoder, [tokens]) for group in groups for tokens in group]
    batched = [_together(encoder, group) for group in groups]
    before, after = (_scores(encoder, np.concatenate(parts)) for parts in (alone, batched))
    difference = np.abs(before - after)
    return BatchInvariance(
        prompts=len(distinct),
        tokens=int(difference.size),
        max_abs_difference=float(difference.max()),
        mean_abs_difference=float(difference.mean()),
        top1_changes=int((before.argmax(axis=1) != after.argmax(axis=1)).sum()),
        generation_changes=None,
        tolerance=_tolerance(encoder.answer, before),
        quantity=_QUANTITIES[encoder.answer],
    )


def _tolerance(answer: Answer, scores: NDArray[np.float64]) -> float:
    if answer == "number":
        return RATING_TOLERANCE * float(scores.std())
    return SIMILARITY_TOLERANCE if answer == "embedding" else TOLERANCE


def _together(encoder: OnnxEncoder, group: Sequence[Tokens]) -> NDArray[np.float32]:
    """Vectors of texts in one batch, padded to the longest."""
    rows = [Row(tuple(tokens)) for tokens in group]
    batch = Batch(tuple(range(len(rows))), max(len(row.tokens) for row in rows))
    return np.array([vector for _, vector in encoder.run_batch(rows, batch)])


def _scores(encoder: OnnxEncoder, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """What choices are scored by: one row of numbers per text."""
    if encoder.answer == "label":
        return log_softmax(vectors)
    exact = vectors.astype(np.float64)
    if encoder.answer == "number":
        return exact
    units = unit(exact)
    cosines: NDArray[np.float64] = units @ units.T
    np.fill_diagonal(cosines, 0.0)  # a text is its own nearest neighbour
    return cosines


_T = TypeVar("_T")

ScoringPath = Literal["shared-prefix", "batched", "one-by-one"]
"""How sequences are run: what they have in common once, in padded batches of whole sequences, or
each alone and unpadded."""

TOLERANCE = 0.02
"""Largest accepted change of a token's log-probability, in nats.

Half precision differs by up to 0.01 between batch shapes, int8 and int4 weights by 0, dynamic int8
by 3. A change of 0.02 decides an item only when two choices are that close.
"""

_BATCH = 8
# Of the equivalence probe: continuations per prefix, and their tokens.
_CONTINUATIONS, _TOKENS = 4, 16

SHORTEST_PROMPT = 16
"""Tokens a prompt needs for its first half to be shared."""

PROBED_PROMPTS = 16
"""Prompts that a probe is run on."""

Quantity = Literal["log-probabilities", "similarities", "ratings"]

_UNITS: Mapping[Quantity, str] = {
    "log-probabilities": "nats",
    "similarities": "cosine",
    "ratings": "in their own unit",
}


@dataclass(frozen=True)
class _Difference:
    """How far the same tokens' log-probabilities are apart when computed in two ways."""

    prompts: int
    tokens: int  # How many prompts and scored tokens were compared.
    max_abs_difference: float
    mean_abs_difference: float  # Of the tokens' log-probabilities, in nats.
    top1_changes: int  # Tokens that were the most likely one in one way and not in the other.
    tolerance: float  # Largest difference accepted.

    @classmethod
    def between(cls, one: Sequence[Score], other: Sequence[Score], **stated: Any) -> Self:
        """Compare the scores of the same tokens."""
        apart = np.abs(np.subtract([s.logprob for s in one], [s.logprob for s in other]))
        return cls(
            tokens=len(one),
            max_abs_difference=float(apart.max()),
            mean_abs_difference=float(apart.mean()),
            top1_changes=sum(a.is_greedy != b.is_greedy for a, b in zip(one, other, strict=True)),
            **stated,
        )

    def fields(self) -> dict[str, Any]:
        """What the class is made from."""
        return asdict(self)


@dataclass(frozen=True)
class BatchInvariance(_Difference):
    """Log-probabilities of the same prompts alone and in padded batches of eight."""

    # Prompts whose greedy continuation changed; None when that was not tried.
    generation_changes: int | None = None
    # What was compared; cosines of texts for a sentence encoder, the one number of a text for a
    # model that gives one.
    quantity: Quantity = "log-probabilities"

    @property
    def unit(self) -> str:
        """Of the differences."""
        return _UNITS[self.quantity]

    @property
    def invariant(self) -> bool:
        """Whether scores may be computed in batches."""
        return self.max_abs_difference <= self.tolerance and not self.generation_changes

    def to_dict(self) -> dict[str, Any]:
        """All fields and the conclusion, for logging."""
        return {**self.fields(), "invariant": self.invariant}


def probe_batch_invariance(
    decoder: OnnxDecoder,
    prompts: Sequence[Tokens],
    *,
    tolerance: float = TOLERANCE,
    generation: bool = False,
) -> BatchInvariance:
    """Score prompts alone and in padded batches of eight, and compare token by token."""
    usable = [tuple(p[-decoder.context_length :]) for p in prompts if len(p) > 1]
    if not usable:
        raise InputError(
            "no prompt with at least two tokens: batch invariance is probed on real prompts."
        )
    before, decoder.unpadded = decoder.unpadded, False
    try:
        batches = mixed_lengths(usable)
        alone = [s for batch in batches for p in batch for s in _token_scores(decoder, [p])]
        together = [s for batch in batches for s in _token_scores(decoder, batch)]
        changes = None
        if generation:
            few = Sampling(max_new_tokens=_BATCH)
            prefixes = [p[-(decoder.context_length - _BATCH) :] for p in usable[:_BATCH]]
            singles = [decoder.generate([p], few)[0] for p in prefixes]
            pairs = zip(singles, decoder.generate(prefixes, few), strict=True)
            changes = sum(a != b for a, b in pairs)
    finally:
        decoder.unpadded = before
    return BatchInvariance.between(
        alone, together, prompts=len(usable), tolerance=tolerance, generation_changes=changes
    )


@dataclass(frozen=True)
class PathEquivalence(_Difference):
    """Log-probabilities of continuations after shared prefixes and from the first token on."""

    @property
    def equivalent(self) -> bool:
        """Whether scores may be computed from shared prefixes."""
        return self.max_abs_difference <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """All fields and the conclusion, for logging."""
        return {**self.fields(), "equivalent": self.equivalent}


def probe_path_equivalence(
    decoder: OnnxDecoder, prompts: Sequence[Tokens], *, tolerance: float = TOLERANCE
) -> PathEquivalence:
    """Continue halves of prompts from their cache and from the first token on, and compare."""
    # The first half of each prompt is followed by its own second half and by those of three
    # others.
    usable = [tuple(p[-decoder.context_length :]) for p in prompts if len(p) >= SHORTEST_PROMPT]
    if not decoder.can_reuse_prefixes or not usable:
        raise InputError(
            f"path equivalence is probed on prompts of at least {SHORTEST_PROMPT} tokens with a "
            "model whose graph can compute what sequences share once: score it 'batched'."
        )
    heads = [p[: len(p) // 2] for p in usable]
    tails = [p[len(p) // 2 :][:_TOKENS] for p in usable]
    pairs = [
        (head, tails[(i + k) % len(tails)])
        for i, head in enumerate(heads)
        for k in range(min(_CONTINUATIONS, len(tails)))
    ]
    requests = [
        ((*head, *tail[:k]), tail[k : k + 1]) for head, tail in pairs for k in range(len(tail))
    ]
    before = decoder.unpadded, decoder.reuse_prefixes
    try:
        decoder.unpadded, decoder.reuse_prefixes = False, False
        whole = decoder.score(requests)
        decoder.reuse_prefixes = True
        shared = decoder.score(requests, plan=decoder.plan(requests, always_continue=True))
    finally:
        decoder.unpadded, decoder.reuse_prefixes = before
    return PathEquivalence.between(whole, shared, prompts=len(usable), tolerance=tolerance)


def choose_path(
    *probes: BatchInvariance, equivalences: Sequence[PathEquivalence] = ()
) -> ScoringPath:
    """The path all probed models take: the fastest that every one of them may."""
    # Models that are compared must be run alike; otherwise the difference between them could be a
    # difference between paths.
    if not all(probe.invariant for probe in probes):
        return "one-by-one"
    if len(equivalences) == len(probes) and all(found.equivalent for found in equivalences):
        return "shared-prefix"
    return "batched"


def spread(prompts: Sequence[_T]) -> list[_T]:
    """At most `PROBED_PROMPTS` of the prompts, from everywhere among them."""
    return list(prompts[:: max(1, -(-len(prompts) // PROBED_PROMPTS))])


def mixed_lengths(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Groups of eight with lengths as unequal as the prompts offer, so that padding is real."""
    ordered = sorted(prompts, key=len)
    count = -(-len(ordered) // _BATCH)
    return [ordered[i::count] for i in range(count)]


def _token_scores(decoder: OnnxDecoder, prompts: Sequence[tuple[int, ...]]) -> list[Score]:
    """Score of every token after the first; the requests of one prompt share its row."""
    return decoder.score(
        [(prompt[:k], prompt[k : k + 1]) for prompt in prompts for k in range(1, len(prompt))]
    )
