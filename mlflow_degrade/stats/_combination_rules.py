"""The aggregation rules, one table.

A rule is added by writing its statistic and one entry in the table; policies, commands, documents
and reports take names and properties from here. Other distributions add theirs by entry points of
the group ``mlflow_degrade.rules``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..core.display import shown
from ..core.plugins import Plugins
from . import _drawn_rules, _exact_rules
from ._exact_rules import RuleOutcome
from ._joint_permutation import JointFlips
from ._null_distributions import Nulls
from ._validation import IntArray, check_choice


@shown
@dataclass(frozen=True, slots=True)
class AggregationRule:
    """One way to make one decision of several benchmarks.

    Parameters
    ----------
    name : str
        As in a policy's `aggregation`.
    statistic : str
        Its formula; d_k = b_k − c_k, m_k = b_k + c_k, p_k the benchmark's own p-value.
    sees, blind : str
        The damage it is best at, and what it overlooks.
    source : str
        Who proposed it.
    valid : str
        What its null law rests on beyond independent items and, for graded scores, symmetry.
    weights : {"items", "tasks"} or None
        For a weighted sum of the differences: what counts the same. None for the others.
    every_task : bool
        Whether it speaks of every single task: it rejects for the worst of them alone, and "no
        worse than the margin" has to hold for each.
    common_lattice : bool
        Whether `exact` needs laws with a common step.
    exact : callable
        From the laws and, for weights by task, the numbers of items.
    drawn : callable or None
        From joint flips and the level near which to be precise; None for sums, which stay exact.
    pooled_share : float or None
        Part of alpha at which the pooled p-value alone is sure to make it reject; None if it does
        not look at it.
    one_finds : bool
        Whether the power against the same drop everywhere is that of one benchmark finding it, not
        that of their sum.
    sequential : {"sum", "mean", "product", "sum or mean"}
        What it is made of where one may stop at any item: the e-process of the weighted sum of all
        differences, or those of the benchmarks, averaged or, where they share no item, multiplied.
    """

    name: str
    statistic: str
    sees: str
    blind: str
    source: str
    valid: str
    exact: Callable[[Nulls, IntArray | None], RuleOutcome]
    drawn: Callable[[JointFlips, float | None], RuleOutcome] | None = None
    weights: Literal["items", "tasks"] | None = None
    every_task: bool = False
    common_lattice: bool = False
    pooled_share: float | None = None
    one_finds: bool = False
    sequential: Literal["sum", "mean", "product", "sum or mean"] = "mean"

    @property
    def needs_sizes(self) -> bool:
        """Whether it needs the number of items, not only the flips."""
        return self.weights == "tasks"


_NOTHING_MORE = "nothing more"
_DISJOINT = "exact where benchmarks share no items, else joint flips"
_TABLE = (
    AggregationRule(
        name="combined",
        statistic="min(p_pooled, p_min_p) by their joint law",
        sees="an even drop *and* one damaged benchmark",
        blind="little; a small price on either",
        source="this project",
        valid=_DISJOINT,
        exact=_exact_rules.combined,
        drawn=_drawn_rules.combined,
        common_lattice=True,
        pooled_share=0.5,
        sequential="sum or mean",
    ),
    AggregationRule(
        name="pooled",
        statistic="Σ d_k, i.e. McNemar on Σb, Σc",
        sees="an even drop",
        blind="a drop in a small benchmark",
        source="McNemar 1947",
        valid=_NOTHING_MORE,
        exact=_exact_rules.pooled,
        weights="items",
        common_lattice=True,
        pooled_share=1.0,
        sequential="sum",
    ),
    AggregationRule(
        name="macro",
        statistic="Σ d_k/n_k",
        sees="a drop, each benchmark counting the same",
        blind="everything, if one small benchmark is noisy",
        source="–",
        valid=_NOTHING_MORE,
        exact=_exact_rules.macro,
        weights="tasks",
        sequential="sum",
    ),
    AggregationRule(
        name="max_drop",
        statistic="max_k d_k/√m_k",
        sees="one damaged benchmark",
        blind="an even, small drop",
        source="Kübler et al. 2026",
        valid=_DISJOINT,
        exact=_exact_rules.max_drop,
        drawn=_drawn_rules.max_drop,
        every_task=True,
        one_finds=True,
    ),
    AggregationRule(
        name="min_p",
        statistic="min_k p_k, as 1 − Π(1 − F_k(p_min))",
        sees="one damaged benchmark, any size",
        blind="an even, small drop",
        source="Tippett 1931",
        valid=_DISJOINT,
        exact=_exact_rules.min_p,
        drawn=_drawn_rules.min_p,
        every_task=True,
        one_finds=True,
    ),
    AggregationRule(
        name="fisher",
        statistic="−2 Σ ln p_k",
        sees="some damaged, some slightly",
        blind="little in particular",
        source="Fisher 1925",
        valid=_DISJOINT,
        exact=_exact_rules.fisher,
        drawn=_drawn_rules.fisher,
        one_finds=True,
        sequential="product",
    ),
    AggregationRule(
        name="stouffer",
        statistic="Σ √m_k Φ⁻¹(1 − mid-p_k)",
        sees="an even drop",
        blind="like pooled",
        source="Stouffer 1949",
        valid=_DISJOINT,
        exact=_exact_rules.stouffer,
        drawn=_drawn_rules.stouffer,
        sequential="sum",
    ),
)
RULES: dict[str, AggregationRule] = {rule.name: rule for rule in _TABLE}
RULE_NAMES: tuple[str, ...] = tuple(RULES)
#: The first of the table.
DEFAULT_RULE = RULE_NAMES[0]


def _unfit(rule: AggregationRule) -> str:
    """What a rule of another distribution must say, because it is not known here."""
    if rule.drawn is None and rule.weights is None:
        # Where tasks share documents, a rule without `drawn` is taken for a weighted sum.
        return "it has neither weights nor drawn, so that tasks which share items have no law"
    if rule.weights is None and rule.pooled_share is None and not rule.one_finds:
        return "none of weights, pooled_share and one_finds says what its power is"
    return ""


#: Rules of other distributions.
RULE_PLUGINS = Plugins(
    "mlflow_degrade.rules", "aggregation rule", AggregationRule, RULES.__contains__, _unfit
)


def rule_names() -> tuple[str, ...]:
    """Names of all rules, those of other distributions last."""
    return (*RULE_NAMES, *RULE_PLUGINS.names)


def rule_named(name: str) -> AggregationRule:
    """Look a rule up."""
    check_choice("method", name, rule_names())
    return RULES[name] if name in RULES else RULE_PLUGINS.load(name)


def pooled_level(rule: AggregationRule, nulls: Nulls | None, alpha: float) -> float:
    """Level at which a rule rejects for the pooled p-value alone."""
    if rule.pooled_share in (None, 1.0):
        return alpha
    surely = alpha * (rule.pooled_share or 1.0)
    if nulls is None or nulls.common_step is None:
        return surely
    return _exact_rules.combined_level(nulls, alpha, surely)
