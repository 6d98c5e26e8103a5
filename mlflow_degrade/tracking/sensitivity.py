"""Sensitivity of layers in MLflow."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from ..optimize.sensitivity_report import SensitivityReport


def log_sensitivity(report: SensitivityReport) -> None:
    """Log a table of sensitivities to the active run.

    Parameters
    ----------
    report : SensitivityReport
        From `mlflow_degrade.optimize.sensitivity.measure_sensitivity`, or what a model directory
        keeps.

    Notes
    -----
    ``sensitivity/report.json`` has everything, ``sensitivity/layers.json`` is a table that MLflow
    shows, ``sensitivity.png`` the bars.
    """
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
