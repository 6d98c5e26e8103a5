"""Statistics of paired comparisons: numbers in, frozen results out, no input or output.

Only NumPy and SciPy are used. Everything is in proportions (0.01 is one percentage point); d is
always candidate minus baseline, oriented so that more is better.
"""

from __future__ import annotations

from mlflow_degrade.stats.aggregate import AggregateResult, aggregate, aggregate_counts
from mlflow_degrade.stats.aggregate_intervals import aggregate_interval
from mlflow_degrade.stats.benchmark import Benchmark
from mlflow_degrade.stats.confidence_sequence import ConfidenceSequence, confidence_sequence
from mlflow_degrade.stats.counting import discordant_counts
from mlflow_degrade.stats.evalues import (
    beta_mixture_log_e,
    betting_log_e,
    combine_log_e,
    degradation_log_e,
    noninferiority_bets,
)
from mlflow_degrade.stats.intervals import (
    Interval,
    clopper_pearson,
    melded,
    newcombe,
    paired_interval,
    tango,
    upper_proportion,
)
from mlflow_degrade.stats.kernels import Feature
from mlflow_degrade.stats.ledger import RetryLedger, attempt_alpha, sample_inflation, spent
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
from mlflow_degrade.stats.power import guard_mde, mde, power_approximate, power_mcnemar
from mlflow_degrade.stats.power_means import guard_mde_graded, mde_graded
from mlflow_degrade.stats.ppi import PredictionPoweredDifference, prediction_powered_difference
from mlflow_degrade.stats.regions import Region
from mlflow_degrade.stats.sample_size import SampleSize, sample_size, sample_size_noninferiority
from mlflow_degrade.stats.sequential import (
    DegradationMonitor,
    NonInferiorityMonitor,
    SequentialResult,
    random_order,
    sequential_degradation,
    sequential_noninferiority,
)
from mlflow_degrade.stats.signflip import SignFlipResult, signflip
from mlflow_degrade.stats.stepdown import StepDownResult, step_down
from mlflow_degrade.stats.subgroup import FeatureResult, SubgroupResult, kcm_test
from mlflow_degrade.stats.units import FlipUnits, flip_units
from mlflow_degrade.stats.variance import (
    ClusteredDifference,
    NoiseFloor,
    RepeatedDifference,
    clustered_difference,
    noise_floor,
    repeated_difference,
)

__all__ = [
    "aggregate",
    "aggregate_counts",
    "aggregate_interval",
    "AggregateResult",
    "attempt_alpha",
    "Benchmark",
    "benjamini_hochberg",
    "beta_mixture_log_e",
    "betting_log_e",
    "clopper_pearson",
    "clustered_difference",
    "ClusteredDifference",
    "combine_fisher",
    "combine_log_e",
    "combine_stouffer",
    "CombinedP",
    "confidence_sequence",
    "ConfidenceSequence",
    "critical_regressions",
    "degradation_log_e",
    "DegradationMonitor",
    "discordant_counts",
    "Feature",
    "FeatureResult",
    "flip_units",
    "FlipUnits",
    "GradedNonInferiorityResult",
    "guard_mde",
    "guard_mde_graded",
    "holm",
    "Interval",
    "kcm_test",
    "mcnemar",
    "mcnemar_log10_p_worse",
    "mcnemar_p_worse",
    "McNemarResult",
    "mde",
    "mde_graded",
    "mean_interval",
    "melded",
    "newcombe",
    "noise_floor",
    "NoiseFloor",
    "noninferiority",
    "noninferiority_bets",
    "noninferiority_graded",
    "NonInferiorityMonitor",
    "NonInferiorityResult",
    "paired_interval",
    "power_approximate",
    "power_mcnemar",
    "prediction_powered_difference",
    "PredictionPoweredDifference",
    "random_order",
    "Region",
    "repeated_difference",
    "RepeatedDifference",
    "RetryLedger",
    "sample_inflation",
    "sample_size",
    "sample_size_noninferiority",
    "SampleSize",
    "sequential_degradation",
    "sequential_noninferiority",
    "SequentialResult",
    "signflip",
    "SignFlipResult",
    "simes",
    "spent",
    "step_down",
    "StepDownResult",
    "SubgroupResult",
    "tango",
    "upper_proportion",
]
