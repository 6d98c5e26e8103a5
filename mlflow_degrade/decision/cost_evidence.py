"""What two models were measured to cost, side by side: every round, as evidence keeps it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ..core.cache import digest_json
from ..core.errors import InputError

Phase = Literal["prefill", "decode", "encode"]
"""A decoder's two, and the one of an encoder or a classifier."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BothSides(_Frozen):
    """One figure per round or process, of either side in the same order."""

    baseline: tuple[PositiveFloat, ...] = Field(min_length=1)
    candidate: tuple[PositiveFloat, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.baseline) != len(self.candidate):
            raise ValueError(
                f"{len(self.baseline)} figures of the baseline and {len(self.candidate)} of the "
                "candidate: both are measured in every round"
            )
        return self


class PhaseRounds(BothSides):
    """Seconds per round of one phase on one shape."""

    phase: Phase
    batch_size: PositiveInt
    length: PositiveInt
    new_tokens: int = Field(ge=0)

    @property
    def shape(self) -> str:
        """The shape as metrics name it."""
        return f"batch{self.batch_size}_length{self.length}"


class CostEvidence(_Frozen):
    """One measurement of two models, interleaved in one process on one machine.

    Attributes
    ----------
    baseline_digest, candidate_digest : str or None
        Digests of the model directories that were run.
    device, processor, threads : str, str, int
        Where.
    seed : int
        Of the order of the models within the rounds.
    size_bytes : BothSides
        Graph and weights on disk: one figure a side.
    phases : tuple of PhaseRounds
    memory_bytes : BothSides, optional
        Per process, where memory was measured.
    joules : BothSides, optional
        Per round, all counters and phases added up.
    not_measured : tuple of str
        What is missing, and why.
    """

    baseline_digest: str | None
    candidate_digest: str | None
    device: str
    processor: str
    threads: int
    seed: int
    size_bytes: BothSides
    phases: tuple[PhaseRounds, ...]
    memory_bytes: BothSides | None = None
    joules: BothSides | None = None
    not_measured: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As indented JSON; the same evidence gives the same bytes."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the text") -> Self:
        """Read back what `to_json` wrote."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise InputError(
                f"{source} is no measurement of two models: {where}: {first['msg']}. Measure again "
                "with mlflow-degrade bench."
            ) from error

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest_json(self.model_dump(mode="json"))
