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
    mcnemar,
    mcnemar_log10_p_worse,
    mcnemar_p_worse,
)
from mlflow_degrade.stats.noninferiority import NonInferiorityResult, noninferiority
from mlflow_degrade.stats.power import (
    SampleSize,
    guard_mde,
    mde,
    power_approximate,
    power_mcnemar,
    sample_size,
    sample_size_noninferiority,
)

__all__ = [
    "clopper_pearson",
    "guard_mde",
    "Interval",
    "mcnemar",
    "mcnemar_log10_p_worse",
    "mcnemar_p_worse",
    "McNemarResult",
    "mde",
    "melded",
    "newcombe",
    "noninferiority",
    "NonInferiorityResult",
    "paired_interval",
    "power_approximate",
    "power_mcnemar",
    "sample_size",
    "sample_size_noninferiority",
    "SampleSize",
    "tango",
    "upper_proportion",
]
