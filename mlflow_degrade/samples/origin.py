"""Where scores were computed: on which processor, and whether other processors give the same.

Kernels are chosen by instruction sets. Their results differ in the last digits, and by more where a
model rounds to few bits or multiplies integers. Scores therefore say where they were computed.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..core.errors import SampleSchemaError


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Processor(_Record):
    """What decides which kernels compute, and with them the last digits.

    Attributes
    ----------
    architecture : str
        E.g. ``"x86_64"`` or ``"aarch64"``; ``"cuda"`` for a GPU.
    model : str
        Its name; empty where the system does not tell.
    instruction_sets : tuple of str
        Those that matrix kernels exist for, sorted, under Linux' names: ``avx2``, ``avx512_vnni``,
        ``asimddp`` …
    compute_capability : str or None
        Of a GPU, e.g. ``"9.0"``.
    onnxruntime : str
        Version.
    threads : int
        Of one operator on the CPU.

    Examples
    --------
    >>> there = Processor(architecture="x86_64", model="A", instruction_sets=("avx2", "avx_vnni"),
    ...                   onnxruntime="1.31.1", threads=2)
    >>> here = there.model_copy(update={"instruction_sets": ("avx2",)})
    >>> there.same_kind(here), there.differences(here)
    (False, ['no avx_vnni'])
    """

    architecture: str
    model: str = ""
    instruction_sets: tuple[str, ...] = ()
    compute_capability: str | None = None
    onnxruntime: str
    threads: int

    @property
    def name(self) -> str:
        """Model and instruction sets, for people."""
        if self.compute_capability is not None:
            return f"{self.model} (compute capability {self.compute_capability})"
        return " ".join(
            part for part in (self.architecture, self.model, *self.instruction_sets) if part
        )

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.name}, onnxruntime {self.onnxruntime}, {threads}"

    def same_hardware(self, other: Processor) -> bool:
        """Whether the same kernels are chosen, as far as the hardware decides."""
        return self._hardware == other._hardware

    def same_kind(self, other: Processor) -> bool:
        """Whether the same kernels of the same onnxruntime are chosen."""
        return self.same_hardware(other) and self.onnxruntime == other.onnxruntime

    @property
    def _hardware(self) -> tuple[Any, ...]:
        # The kernels of one compute capability still differ with the size of the GPU.
        gpu = None if self.compute_capability is None else (self.compute_capability, self.model)
        return self.architecture, self.instruction_sets, gpu

    def differences(self, here: Processor) -> list[str]:
        """What another processor has or lacks against this one, kernels first."""
        found = []
        if here.architecture != self.architecture:
            found.append(f"{here.architecture} instead of {self.architecture}")
        else:
            mine, its = set(self.instruction_sets), set(here.instruction_sets)
            if mine - its:
                found.append(f"no {', '.join(sorted(mine - its))}")
            if its - mine:
                found.append(f"{', '.join(sorted(its - mine))} besides")
        for label, old, new in (
            ("compute capability", self.compute_capability, here.compute_capability),
            ("onnxruntime", self.onnxruntime, here.onnxruntime),
            ("model", self.model, here.model),
            ("threads", self.threads, here.threads),
        ):
            if old != new:
                found.append(f"{label} {new} instead of {old}")
        return found


class Agreement(_Record):
    """Two runs of one model on processors of two kinds, compared by ``mlflow-degrade noise``.

    Attributes
    ----------
    processor : Processor
        The other one.
    samples_digest : str
        Of the other run's scores.
    n, worse, better : int
        Paired items, and how many of them scored worse and better there.
    largest_difference : float
        Of an item's scores, in the metric's unit.
    verdict : str
        ``PASS`` where a change of the margin, in either direction, would have been found and none
        was.
    alpha, power, margin : float
        What was asked: the two-sided level, the probability, and the margin in the unit of scores.
    """

    processor: Processor
    samples_digest: str
    n: int
    worse: int
    better: int
    largest_difference: float
    verdict: str
    alpha: float
    power: float
    margin: float


class Origin(_Record):
    """Where a table of scores was computed, and what is known of other places.

    Attributes
    ----------
    processor : Processor
    dependent_operations : tuple of str or None
        Operations of the model whose results depend on the processor by more than the last digits,
        see `mlflow_degrade.evaluation.probes`; None where nobody looked.
    agreements : tuple of Agreement
        With evaluations of the same model elsewhere.
    """

    processor: Processor
    dependent_operations: tuple[str, ...] | None = None
    agreements: tuple[Agreement, ...] = ()

    @classmethod
    def of(cls, stated: Any, where: object) -> Origin | None:
        """What a log states, if it states anything.

        Raises
        ------
        SampleSchemaError
            A newer version wrote it.
        """
        try:
            return None if stated is None else cls.model_validate(stated)
        except ValidationError as error:
            raise SampleSchemaError(
                f"{where} does not say in this version's terms where it was computed "
                f"({error.errors()[0]['msg']}): upgrade mlflow-degrade."
            ) from error
