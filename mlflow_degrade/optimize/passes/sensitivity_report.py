"""What quantizing each layer does to a model, as a table that can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...core.cache import digest_json

SENSITIVITY_FILE = "sensitivity.json"
"""Where a model directory keeps the table that its scheme was decided by."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing a layer, or all layers of a kind, does."""

    name: str  # Of the layer's node, or the kind.
    kind: str  # See `mlflow_degrade.optimize.passes.layer_ablation.layer_kind`.
    layers: int  # How many they are.
    weights: int  # Numbers in their matrices.
    alone: float  # Distance from the float model when they are quantized and nothing else is.
    # Distance when everything but them is quantized; None for single layers.
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
        What a distance is, see `mlflow_degrade.optimize.passes.layer_ablation.LayerTrials`.
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
