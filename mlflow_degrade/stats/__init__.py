"""Statistics of paired comparisons: numbers in, frozen results out, no input or output.

Only NumPy and SciPy are used. Everything is in proportions (0.01 is one percentage point); d is
always candidate minus baseline, oriented so that more is better.
"""

from __future__ import annotations

from mlflow_degrade.stats.intervals import (
    Interval,
    clopper_pearson,
    melded,
    newcombe,
    paired_interval,
    tango,
    upper_proportion,
)
from mlflow_degrade.stats.mcnemar import (
    McNemarResult,
    critical_regressions,
    mcnemar,
    mcnemar_log10_p_worse,
    mcnemar_p_worse,
)
from mlflow_degrade.stats.means import mean_interval
from mlflow_degrade.stats.noninferiority import NonInferiorityResult, noninferiority
from mlflow_degrade.stats.noninferiority_means import (
    GradedNonInferiorityResult,
    noninferiority_graded,
)
from mlflow_degrade.stats.power import (
    guard_mde,
    mde,
    power_approximate,
    power_mcnemar,
)
from mlflow_degrade.stats.power_means import guard_mde_graded, mde_graded
from mlflow_degrade.stats.sample_size import SampleSize, sample_size, sample_size_noninferiority
from mlflow_degrade.stats.signflip import SignFlipResult, signflip
from mlflow_degrade.stats.units import FlipUnits, flip_units

__all__ = [
    "clopper_pearson",
    "critical_regressions",
    "flip_units",
    "FlipUnits",
    "GradedNonInferiorityResult",
    "guard_mde",
    "guard_mde_graded",
    "Interval",
    "mcnemar",
    "mcnemar_log10_p_worse",
    "mcnemar_p_worse",
    "McNemarResult",
    "mde",
    "mde_graded",
    "mean_interval",
    "melded",
    "newcombe",
    "noninferiority",
    "noninferiority_graded",
    "NonInferiorityResult",
    "paired_interval",
    "power_approximate",
    "power_mcnemar",
    "sample_size",
    "sample_size_noninferiority",
    "SampleSize",
    "signflip",
    "SignFlipResult",
    "tango",
    "upper_proportion",
]
