"""Cost benchmarks in MLflow: a run with a child for each model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.results import BenchmarkReport
from .evaluations import KIND_TAG, log_finite_metrics
from .runs import tracked_run

if TYPE_CHECKING:
    from rich.console import RenderableType
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ..bench.assistance import AssistanceReport
from ..bench.node_assignment import Placement
from ..decision.cost_evidence import CostEvidence
from ..engine.providers import CPU
from ..optimize.pass_table import PassResult
from ..optimize.passes.sensitivity_report import SensitivityReport
from ..optimize.source.model_directory import ModelDirectory
from ..report.cost import CostFigures, relative_cost

# Sensitivity of layers in MLflow.


def log_sensitivity(report: SensitivityReport) -> None:
    """Log a table of sensitivities to the active run."""
    # ``sensitivity/report.json`` has everything, ``sensitivity/layers.json`` is a table that
    # MLflow shows, ``sensitivity.png`` the bars.
    import mlflow
    import pandas as pd

    from ..report.candidates import save_figure
    from ..report.sensitivity import sensitivity_figure

    mlflow.log_dict(report.to_dict(), "sensitivity/report.json")
    rows = [asdict(row) for row in (*report.kinds, *report.ranked())]
    mlflow.log_table(pd.DataFrame(rows), "sensitivity/layers.json")
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        picture = Path(scratch) / "sensitivity.png"
        save_figure(sensitivity_figure(report), picture)
        mlflow.log_artifact(str(picture))


# Where a model's nodes run, in MLflow.


def log_placement(placement: Placement) -> None:
    """Log a placement to the active run."""
    # ``placement.json`` has everything; the metrics are ``placement/nodes_on_cpu``,
    # ``placement/nodes_fallen_back`` (those that were to run elsewhere) and
    # ``placement/memory_copies``.
    import mlflow

    mlflow.log_dict(placement.as_dict(), "placement.json")
    mlflow.log_metrics(
        {
            "placement/nodes_on_cpu": placement.count(CPU),
            "placement/nodes_fallen_back": sum(placement.fallen_back.values()),
            "placement/memory_copies": sum(placement.copies.values()),
        }
    )


# The passes of a recipe in MLflow.


def log_passes(results: Sequence[PassResult], cost: CostFigures | None = None) -> None:
    """Log what each pass left, and what the result costs to run, to the active run."""
    # ``graph/nodes``, ``size/bytes`` and ``parity/<figure>`` have a step for each pass, so that
    # the UI draws how they went; the latest is the model's. ``passes.json`` has all of them, the
    # run's note a table. Of the cost the candidate's metrics are logged, and ``relative/<what>``.
    import mlflow

    from ..report.cost import passes_note

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
    """Log what a scheme found out about a model, if it did, to the active run."""
    # Metrics ``weights/in_float`` and ``weights/quantized_share``, and ``weights.json``, which
    # names the largest matrices in float; the table that layers were chosen by.
    import mlflow

    if (found := made.weights) is not None:
        shares = {f"weights/{key}": found[key] for key in ("in_float", "quantized_share")}
        mlflow.log_metrics(shares)
        mlflow.log_dict(dict(found), "weights.json")
    if made.sensitivity is not None:
        log_sensitivity(made.sensitivity)


# Assisted generation in MLflow.


def log_assistance(report: AssistanceReport, *, run_name: str | None = None) -> str:
    """Log what assisted generation did to a run of its own in the active experiment."""
    # ``assistance.json`` has everything, the run's note what the terminal shows; metrics are
    # ``assistance/speedup``, ``…/acceptance``, ``…/tokens_per_pass``, ``…/same`` and, of drawn
    # texts, ``…/p`` and ``…/detectable``. The tag ``degrade.lossless`` says the verdict.
    import mlflow

    from ..report.assistance import assistance_view

    tags = {KIND_TAG: "assistance", "degrade.lossless": report.verdict.value}
    name = run_name or f"{report.model} with {report.assistant}"
    with tracked_run(name, tags=tags) as run:
        mlflow.log_params(
            {
                "model": report.model,
                "assistant": report.assistant,
                "processor": report.processor,
                "threads": report.threads,
                "prompts": report.prompts,
                "rounds": len(report.seconds_alone),
            }
        )
        log_finite_metrics({f"assistance/{k}": v for k, v in report.figures().items()})
        mlflow.log_dict(report.as_dict(), "assistance.json")
        mlflow.set_tag("mlflow.note.content", f"```\n{_plain(assistance_view(report))}```")
    return str(run.info.run_id)


KIND = "benchmark"
MEASURED_TAG = "degrade.measured_models"
"""Digests of the models that a run measured side by side, by which gates find it."""
BENCHMARK = "benchmark.json"
_NOTE_WIDTH = 110


def measured_tag(*rounds: CostEvidence) -> dict[str, str]:
    """What a run is found by that measured models side by side; empty where they have no digest."""
    digests = [d for each in rounds for d in (each.baseline_digest, each.candidate_digest) if d]
    return {MEASURED_TAG: " ".join(dict.fromkeys(digests))} if digests else {}


def log_benchmark(
    report: BenchmarkReport,
    *,
    run_name: str | None = None,
    digests: Mapping[str, str | None] | None = None,
) -> str:
    """Log a benchmark to a run of its own in the active experiment."""
    # ``benchmark.json`` has every single time, ``benchmark.png`` the figure, the run's note the
    # tables. Each model's metrics are on a child run, so that they compare in the UI:
    # ``latency/<shape>/…``, ``throughput/<shape>/…``, ``memory/…``, ``size/bytes``,
    # ``energy/<shape>/…`` and, of candidates, ``speed_ratio/<shape>/…`` and
    # ``size/compression_ratio``.
    import mlflow

    from ..report.bench import benchmark_figure, benchmark_view
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
        mlflow.log_dict(report.as_dict(digests), BENCHMARK)
        rounds = (report.evidence(model.label, digests or {}) for model in report.models[1:])
        mlflow.set_tags(measured_tag(*rounds))
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
