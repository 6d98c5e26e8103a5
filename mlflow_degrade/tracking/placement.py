"""Where a model's nodes run, in MLflow."""

from __future__ import annotations

from ..runtime.placement import Placement
from ..runtime.providers import CPU


def log_placement(placement: Placement) -> None:
    """Log a placement to the active run.

    Parameters
    ----------
    placement : Placement
        From `mlflow_degrade.runtime.placement.find_placement`.

    Notes
    -----
    ``placement.json`` has everything; the metrics are ``placement/nodes_on_cpu``,
    ``placement/nodes_fallen_back`` (those that were to run elsewhere) and
    ``placement/memory_copies``.
    """
    import mlflow

    mlflow.log_dict(placement.as_dict(), "placement.json")
    mlflow.log_metrics(
        {
            "placement/nodes_on_cpu": placement.count(CPU),
            "placement/nodes_fallen_back": sum(placement.fallen_back.values()),
            "placement/memory_copies": sum(placement.copies.values()),
        }
    )
