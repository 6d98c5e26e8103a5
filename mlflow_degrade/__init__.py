"""Ship the fast model only when it is not worse: paired significance gates in MLflow.

The names below are the public interface. They are looked up when first used, so that importing
the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decision import decide
    from .errors import DegradeError
    from .pairing import PairedScores, PairedTask, pair
    from .policy import GatePolicy, TaskPolicy
    from .recipes.quantize import QuantizeOptions, quantize_and_gate
    from .results import Decision, Verdict
    from .scores import SampleScores

_HOME = {
    "decide": "decision",
    "Decision": "results",
    "DegradeError": "errors",
    "GatePolicy": "policy",
    "pair": "pairing",
    "PairedScores": "pairing",
    "PairedTask": "pairing",
    "quantize_and_gate": "recipes.quantize",
    "QuantizeOptions": "recipes.quantize",
    "SampleScores": "scores",
    "TaskPolicy": "policy",
    "Verdict": "results",
}

__all__ = [
    "decide",
    "Decision",
    "DegradeError",
    "GatePolicy",
    "pair",
    "PairedScores",
    "PairedTask",
    "quantize_and_gate",
    "QuantizeOptions",
    "SampleScores",
    "TaskPolicy",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
