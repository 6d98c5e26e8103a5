"""The path on which models are compared: the fastest that changes none of their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .probes import BatchInvariance, PathEquivalence, ScoringPath, choose_path

if TYPE_CHECKING:
    from .model_evaluation import Arm


@dataclass(frozen=True)
class PathChoice:
    """A scoring path, and what was measured for it."""

    path: ScoringPath  # The path every model may take.
    probes: dict[str, BatchInvariance]  # Per model: whether its scores depend on the batch.
    # Per model: whether its scores change with shared prefixes; empty where batches are no choice
    # or a model cannot share.
    equivalences: dict[str, PathEquivalence]

    def sentences(self) -> list[str]:
        """What was found and follows from it, for people."""
        lines = [
            f"{label}: a batch changes {probe.quantity} by up to {probe.max_abs_difference:.2g} "
            f"{probe.unit} (limit {probe.tolerance:g})"
            for label, probe in self.probes.items()
        ]
        lines += [
            f"{label}: shared prefixes change log-probabilities by up to "
            f"{found.max_abs_difference:.2g} nats (limit {found.tolerance:g})"
            for label, found in self.equivalences.items()
        ]
        if self.path == "one-by-one":
            lines.append("so both are scored one sample at a time")
        elif self.path == "shared-prefix":
            lines.append("so what prompts have in common is run once")
        elif self.equivalences:
            lines.append("so both are scored without shared prefixes")
        return lines


def choose(arms: Mapping[str, Arm]) -> PathChoice:
    """Probe models that are compared and choose their path."""
    probes = {label: arm.probe for label, arm in arms.items()}
    if choose_path(*probes.values()) == "one-by-one":
        return PathChoice("one-by-one", probes, {})
    found = {}
    for label, arm in arms.items():
        if arm.equivalence is None:
            break
        found[label] = arm.equivalence
    path = choose_path(*probes.values(), equivalences=list(found.values()))
    return PathChoice(path, probes, found)
