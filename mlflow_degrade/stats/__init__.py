"""Statistics of paired comparisons: numbers in, frozen results out, no input or output.

Only NumPy and SciPy are used. Everything is in proportions (0.01 is one percentage point); d is
always candidate minus baseline, oriented so that more is better.
"""

from __future__ import annotations

from dataclasses import is_dataclass

from ..core.display import shown
from ._aggregate import AggregateResult, aggregate, aggregate_counts, aggregate_interval
from ._benchmark import Benchmark
from ._combination_rules import AggregationRule
from ._confidence_sequence import ConfidenceSequence, confidence_sequence
from ._evalues import (
    beta_mixture_log_e,
    betting_log_e,
    combine_log_e,
    degradation_log_e,
    noninferiority_bets,
)
from ._exact_rules import RuleOutcome
from ._exchangeable_units import FlipUnits, flip_units
from ._intervals import (
    Interval,
    clopper_pearson,
    melded,
    newcombe,
    paired_interval,
    tango,
    upper_proportion,
)
from ._kernels import Feature
from ._ledger import RetryLedger, attempt_alpha, sample_inflation, spent
from ._mcnemar import (
    McNemarResult,
    critical_regressions,
    discordant_counts,
    mcnemar,
    mcnemar_log10_p_worse,
    mcnemar_p_worse,
)
from ._means import mean_interval
from ._multiplicity import (
    CombinedP,
    benjamini_hochberg,
    combine_fisher,
    combine_stouffer,
    holm,
    simes,
)
from ._noninferiority import NonInferiorityResult, noninferiority
from ._noninferiority_means import GradedNonInferiorityResult, noninferiority_graded
from ._power import guard_mde, guard_mde_graded, mde, mde_graded, power_approximate, power_mcnemar
from ._ppi import (
    CorrectedDifference,
    PredictionPoweredDifference,
    corrected_difference,
    prediction_powered_difference,
)
from ._regions import Region
from ._sample_size import SampleSize, sample_size, sample_size_noninferiority
from ._sequential import (
    DegradationMonitor,
    NonInferiorityMonitor,
    SequentialResult,
    random_order,
    sequential_degradation,
    sequential_noninferiority,
)
from ._signflip import SignFlipResult, signflip
from ._stepdown import StepDownResult, step_down
from ._subgroup import FeatureResult, SubgroupResult, kcm_test
from ._variance import (
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
    "AggregationRule",
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
    "corrected_difference",
    "CorrectedDifference",
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
    "RuleOutcome",
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

for _name in __all__:
    if isinstance(_found := globals()[_name], type) and is_dataclass(_found):
        shown(_found)
