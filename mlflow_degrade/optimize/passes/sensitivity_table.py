"""Filling the table of sensitivities: one trial for each line."""

from __future__ import annotations

from ...core.progress import progress_bar
from .layer_ablation import LayerTrials
from .sensitivity_report import LayerSensitivity, SensitivityReport


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
