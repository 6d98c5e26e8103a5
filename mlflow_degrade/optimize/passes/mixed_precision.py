"""Which layers stay in float: as few as bring a model near enough to its source.

The rule: layers are ranked by the distance that each causes when it alone is quantized, divided by
its weights, which stand for the time that float arithmetic takes. The shortest head of that ranking
is kept in float with which the model, everything else quantized, is within the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from ...core.progress import progress_bar
from ..source.model_directory import ModelDirectory
from .layer_ablation import LayerTrials, Rewrite
from .sensitivity_report import LayerSensitivity, SensitivityReport

# Filling the table of sensitivities: one trial for each line.


def sensitivity_table(
    trials: LayerTrials,
    scheme: str,
    *,
    texts: int | None = None,
    single_layers: bool = True,
    progress: bool = True,
) -> SensitivityReport:
    """Quantize each kind of layer alone, everything but it, and each layer alone."""
    layers = trials.layers
    names = {layer.name for layer in layers}
    kinds = {
        kind: [layer for layer in layers if layer.kind == kind]
        for kind in dict.fromkeys(layer.kind for layer in layers)
    }
    rows: list[LayerSensitivity] = []
    single: list[LayerSensitivity] = []
    count = 1 + 2 * len(kinds) + len(layers) * single_layers
    with progress_bar("Sensitivity of layers", progress) as advance:
        advance(count, 0)

        def distance(quantized: set[str]) -> float:
            found = trials.distance(quantized, texts)
            advance(0, 1)
            return found

        whole = distance(names)
        for kind, members in kinds.items():
            own = {layer.name for layer in members}
            weights = sum(layer.weights for layer in members)
            alone, without = distance(own), distance(names - own)
            rows.append(LayerSensitivity(kind, kind, len(members), weights, alone, without))
        for layer in layers if single_layers else ():
            alone = distance({layer.name})
            single.append(LayerSensitivity(layer.name, layer.kind, 1, layer.weights, alone))
    return SensitivityReport(
        model=str(trials.base.source["name"]),
        model_digest=trials.base.digest,
        scheme=scheme,
        measure=trials.measure,
        texts=min(texts or trials.texts, trials.texts),
        whole=whole,
        kinds=tuple(rows),
        layers=tuple(single),
    )


RANKING_TEXTS = 4
"""Texts that layers are ranked by: single layers differ by orders of magnitude."""


@dataclass(frozen=True)
class Exclusion:
    """What `ExclusionRule` decided."""

    kept: tuple[str, ...]  # Names of the layers that stay in float, the most sensitive first.
    distance: float  # From the float model when all others are quantized.
    reached: bool  # Whether that is within the target.
    report: SensitivityReport  # The table it was decided by.

    @property
    def options(self) -> dict[str, Any]:
        """What the scheme's function is told."""
        return {"keep": self.kept}

    def as_dict(self) -> dict[str, Any]:
        """What a manifest says of it; the table is named by its digest."""
        return {
            "kept_in_float": list(self.kept),
            "kept_distance": self.distance,
            "target_reached": self.reached,
            "measure": self.report.measure,
            "sensitivity": self.report.digest(),
        }


@dataclass(frozen=True)
class ExclusionRule:
    """Keep the fewest layers in float that bring the model within a target."""

    # By what is measured, see `LayerTrials`: the largest distance from the float model.
    target: Mapping[str, float] = field(
        default_factory=lambda: {
            "mean KL, nats": 0.06,
            "1 - cosine": 0.002,
            "1 - correlation": 0.002,
        }
    )
    # Share of all layers' weights that may stay in float. Where that is too little the target is
    # missed, which the manifest says.
    most: float = 0.5

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def __call__(
        self,
        base: ModelDirectory,
        scheme: str,
        rewrite: Rewrite,
        options: Mapping[str, Any],
        *,
        progress: bool = True,
        **_: Any,
    ) -> Exclusion:
        """Measure the layers of a float model, and decide."""
        # Layers are ranked on the first few texts that parity is checked on; the distance of the
        # choice is measured on all of them. How many layers are kept is found by bisection, which
        # takes the distance to fall with every further layer. It nearly does; what is chosen was
        # in any case measured.
        with LayerTrials(base, rewrite, options, progress=progress) as trials:
            names = frozenset(layer.name for layer in trials.layers)
            limit = self.target[trials.measure]
            whole = trials.distance(names)
            report = sensitivity_table(trials, scheme, texts=RANKING_TEXTS, progress=progress)
            ranked = report.ranked()
            room = self.most * sum(row.weights for row in ranked)
            # The target is not met with `low` layers, and with `high` or not at all.
            low, high = 0, sum(taken <= room for taken in accumulate(r.weights for r in ranked))
            if whole <= limit:
                return Exclusion((), whole, True, report)
            with progress_bar("Layers to keep in float", progress) as advance:
                advance(high.bit_length() + 1, 0)

                def distance(count: int) -> float:
                    kept = {row.name for row in ranked[:count]}
                    advance(0, 1)
                    return trials.distance(names - kept)

                found = distance(high)
                while high - low > 1 and found <= limit:
                    middle = (low + high) // 2
                    there = distance(middle)
                    if there <= limit:
                        high, found = middle, there
                    else:
                        low = middle
            kept = tuple(row.name for row in ranked[:high])
            return Exclusion(kept, found, found <= limit, report)
