"""What quantizing each layer does to a model, as a table that can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..cache import digest_json
from .layer_trials import LayerTrials
from .quiet_work import counted_work

SENSITIVITY_FILE = "sensitivity.json"
"""Where a model directory keeps the table that its scheme was decided by."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing a layer, or all layers of a kind, does.

    Attributes
    ----------
    name : str
        Of the layer's node, or the kind.
    kind : str
        See `mlflow_degrade.optimize.layers.layer_kind`.
    layers : int
        How many they are.
    weights : int
        Numbers in their matrices.
    alone : float
        Distance from the float model when they are quantized and nothing else is.
    without : float or None
        Distance when everything but them is quantized; None for single layers.
    """

    name: str
    kind: str
    layers: int
    weights: int
    alone: float
    without: float | None = None

    @property
    def per_weight(self) -> float:
        """`alone` for each weight: damage saved for the time that float arithmetic takes."""
        return self.alone / self.weights


@dataclass(frozen=True)
class SensitivityReport:
    """Sensitivity of a model's layers to a scheme.

    Attributes
    ----------
    model : str
        Name of its source.
    model_digest : str
        Of the float model directory.
    scheme : str
    measure : str
        What a distance is, see `mlflow_degrade.optimize.layer_trials.LayerTrials`.
    texts : int
        Texts it is a mean over.
    whole : float
        Distance when every layer is quantized.
    kinds : tuple of LayerSensitivity
        In the order of the graph.
    layers : tuple of LayerSensitivity
        Single layers in the order of the graph; empty where they were not measured.
    """

    model: str
    model_digest: str
    scheme: str
    measure: str
    texts: int
    whole: float
    kinds: tuple[LayerSensitivity, ...]
    layers: tuple[LayerSensitivity, ...]

    def ranked(self) -> tuple[LayerSensitivity, ...]:
        """Single layers, those first that float arithmetic helps most for its time."""
        return tuple(sorted(self.layers, key=lambda row: (-row.per_weight, row.name)))

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SensitivityReport:
        """The report that `to_dict` was called on."""
        rows = {
            name: tuple(LayerSensitivity(**row) for row in values[name])
            for name in ("kinds", "layers")
        }
        return cls(**{**values, **rows})

    def digest(self) -> str:
        """``"sha256:…"`` of `to_dict`."""
        return digest_json(self.to_dict())


def sensitivity_table(
    trials: LayerTrials,
    scheme: str,
    *,
    texts: int | None = None,
    single_layers: bool = True,
    progress: bool = True,
) -> SensitivityReport:
    """Quantize each kind of layer alone, everything but it, and each layer alone.

    Parameters
    ----------
    trials : LayerTrials
    scheme : str
        Its name, for the report.
    texts : int, optional
        Compare on the first so many texts only.
    single_layers : bool
        Whether to try single layers; they are many.
    progress : bool
        Show a bar, on standard error.
    """
    layers = trials.layers
    names = {layer.name for layer in layers}
    kinds = {
        kind: [layer for layer in layers if layer.kind == kind]
        for kind in dict.fromkeys(layer.kind for layer in layers)
    }
    rows: list[LayerSensitivity] = []
    single: list[LayerSensitivity] = []
    count = 1 + 2 * len(kinds) + len(layers) * single_layers
    with counted_work("Sensitivity of layers", count, progress) as advance:

        def distance(quantized: set[str]) -> float:
            found = trials.distance(quantized, texts)
            advance()
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
