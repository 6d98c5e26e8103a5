"""The passes of a recipe in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..optimize.pass_result import PassResult
from ..report.cost import CostFigures, relative_cost
from .evaluations import log_finite_metrics


def log_passes(results: Sequence[PassResult], cost: CostFigures | None = None) -> None:
    """Log what each pass left, and what the result costs to run, to the active run.

    Parameters
    ----------
    results : sequence of PassResult
        Of one recipe, in order.
    cost : mapping, optional
        Per side, metric name to (value, unit), the result as ``"candidate"``.

    Notes
    -----
    ``graph/nodes``, ``size/bytes`` and ``parity/<figure>`` have a step for each pass, so that the
    UI draws how they went; the latest is the model's. ``passes.json`` has all of them, the run's
    note a table. Of the cost the candidate's metrics are logged, and ``relative/<what>``.
    """
    import mlflow

    from ..report.passes import passes_note

    for number, result in enumerate(results, start=1):
        parity = {f"parity/{name}": float(value) for name, value in result.parity.as_dict().items()}
        figures = {"graph/nodes": result.nodes, "size/bytes": result.size_bytes, **parity}
        mlflow.log_metrics(figures, step=number)
    if cost:
        metrics = {name: value for name, (value, _) in cost["candidate"].items()}
        metrics.pop("size/bytes", None)  # has a step for each pass
        log_finite_metrics({**metrics, **relative_cost(cost)})
    mlflow.log_dict({"passes": [result.as_dict() for result in results]}, "passes.json")
    mlflow.set_tag("mlflow.note.content", passes_note(results, cost))


def log_stored(weights: Mapping[str, Any]) -> None:
    """Log what a model's weights are stored in to the active run.

    Parameters
    ----------
    weights : mapping
        `mlflow_degrade.optimize.float_share.FloatShare.as_dict`.

    Notes
    -----
    Metrics ``weights/in_float`` and ``weights/quantized_share``, and ``weights.json``, which names
    the largest matrices in float.
    """
    import mlflow

    mlflow.log_metrics({f"weights/{key}": weights[key] for key in ("in_float", "quantized_share")})
    mlflow.log_dict(dict(weights), "weights.json")
