"""Cost benchmarks in MLflow: a run with a child for each model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.benchmark_results import BenchmarkReport
from .evaluations import KIND_TAG, log_finite_metrics
from .runs import tracked_run

if TYPE_CHECKING:
    from rich.console import RenderableType

KIND = "benchmark"
_NOTE_WIDTH = 110


def log_benchmark(report: BenchmarkReport, *, run_name: str | None = None) -> str:
    """Log a benchmark to a run of its own in the active experiment.

    Parameters
    ----------
    report : BenchmarkReport
        From `mlflow_degrade.runtime.cost.measure_cost`.
    run_name : str, optional
        By default it names the models.

    Returns
    -------
    str
        Id of the run.

    Notes
    -----
    ``benchmark.json`` has every single time, ``benchmark.png`` the figure, the run's note the
    tables. Each model's metrics are on a child run, so that they compare in the UI:
    ``latency/<shape>/…``, ``throughput/<shape>/…``, ``memory/…``, ``size/bytes``,
    ``energy/<shape>/…`` and, of candidates, ``speed_ratio/<shape>/…`` and
    ``size/compression_ratio``.
    """
    import mlflow

    from ..report.benchmark import benchmark_figure, benchmark_view
    from ..report.candidates import save_figure

    name = run_name or "benchmark of " + ", ".join(model.label for model in report.models)
    with tracked_run(name, tags={KIND_TAG: KIND}) as run:
        mlflow.log_params(
            {
                "device": report.device,
                "processor": report.processor,
                "threads": report.threads,
                "rounds": report.rounds,
                "shapes": ", ".join(shape.name for shape in report.shapes),
            }
        )
        if report.roof is not None:
            log_finite_metrics(
                {
                    "roof/bytes_per_second": report.roof.bytes_per_second,
                    "roof/flops_per_second": report.roof.flops_per_second,
                }
            )
        mlflow.log_dict(report.as_dict(), "benchmark.json")
        with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
            picture = Path(scratch) / "benchmark.png"
            save_figure(benchmark_figure(report), picture)
            mlflow.log_artifact(str(picture))
        mlflow.set_tag("mlflow.note.content", f"```\n{_plain(benchmark_view(report))}```")
        for model in report.models:
            with tracked_run(model.label, nested=True, tags={KIND_TAG: KIND}):
                figures = {name: value for name, (value, _) in model.figures().items()}
                ratios = {} if model is report.baseline else report.ratio_metrics(model.label)
                log_finite_metrics({**figures, **ratios})
    return str(run.info.run_id)


def _plain(view: RenderableType) -> str:
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    Console(file=text, width=_NOTE_WIDTH, highlight=False).print(view)
    return text.getvalue()
