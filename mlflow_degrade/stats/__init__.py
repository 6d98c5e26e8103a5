"""Statistics of paired comparisons: numbers in, frozen results out, no input or output.

Only NumPy and SciPy are used. Everything is in proportions (0.01 is one percentage point); d is
always candidate minus baseline, oriented so that more is better.
"""

from __future__ import annotations

from mlflow_degrade.stats.aggregate import AggregateResult, aggregate, aggregate_counts
from mlflow_degrade.stats.aggregate_intervals import aggregate_interval
from mlflow_degrade.stats.benchmark import Benchmark
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
from mlflow_degrade.stats.multiplicity import (
    CombinedP,
    benjamini_hochberg,
    combine_fisher,
    combine_stouffer,
    holm,
    simes,
)
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
from mlflow_degrade.stats.stepdown import StepDownResult, step_down
from mlflow_degrade.stats.units import FlipUnits, flip_units

__all__ = [
    "aggregate",
    "aggregate_counts",
    "aggregate_interval",
    "AggregateResult",
    "Benchmark",
    "benjamini_hochberg",
    "clopper_pearson",
    "combine_fisher",
    "combine_stouffer",
    "CombinedP",
    "critical_regressions",
    "flip_units",
    "FlipUnits",
    "GradedNonInferiorityResult",
    "guard_mde",
    "guard_mde_graded",
    "holm",
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
    "simes",
    "step_down",
    "StepDownResult",
    "tango",
    "upper_proportion",
]
