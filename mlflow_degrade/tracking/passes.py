"""The passes of a recipe in MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from ..optimize.model_directory import ModelDirectory
from ..optimize.pass_result import PassResult
from ..report.cost import CostFigures, relative_cost
from .evaluations import log_finite_metrics
from .sensitivity import log_sensitivity


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


def log_findings(made: ModelDirectory) -> None:
    """Log what a scheme found out about a model, if it did, to the active run.

    Parameters
    ----------
    made : ModelDirectory
        The result.

    Notes
    -----
    Metrics ``weights/in_float`` and ``weights/quantized_share``, and ``weights.json``, which names
    the largest matrices in float; the table that layers were chosen by.
    """
    import mlflow

    if (found := made.weights) is not None:
        shares = {f"weights/{key}": found[key] for key in ("in_float", "quantized_share")}
        mlflow.log_metrics(shares)
        mlflow.log_dict(dict(found), "weights.json")
    if made.sensitivity is not None:
        log_sensitivity(made.sensitivity)
