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
    from .tracking.promotion import Promotion, promote
    from .tracking.verification import Verification, verify_version
    from .tracking.verified_loading import load_verified_model

_HOME = {
    "decide": "decision",
    "Decision": "results",
    "DegradeError": "errors",
    "GatePolicy": "policy",
    "load_verified_model": "tracking.verified_loading",
    "pair": "pairing",
    "PairedScores": "pairing",
    "PairedTask": "pairing",
    "promote": "tracking.promotion",
    "Promotion": "tracking.promotion",
    "quantize_and_gate": "recipes.quantize",
    "QuantizeOptions": "recipes.quantize",
    "SampleScores": "scores",
    "TaskPolicy": "policy",
    "Verdict": "results",
    "Verification": "tracking.verification",
    "verify_version": "tracking.verification",
}

__all__ = [
    "decide",
    "Decision",
    "DegradeError",
    "GatePolicy",
    "load_verified_model",
    "pair",
    "PairedScores",
    "PairedTask",
    "promote",
    "Promotion",
    "quantize_and_gate",
    "QuantizeOptions",
    "SampleScores",
    "TaskPolicy",
    "Verdict",
    "Verification",
    "verify_version",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mlflow-degrade")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
