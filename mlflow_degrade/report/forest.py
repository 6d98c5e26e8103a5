"""Geometry of the forest plot: which rows share an axis, where it ends, what sticks out.

Percentage points share one panel; every other metric has a panel of its own, because changes in
different units cannot be compared by length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..decision.results import Decision, IntervalRecord, TaskResult
from .content import ordered_tasks, total_name

# An axis may be this much longer than what matters most before long intervals are cut.
_GENEROSITY = 2.5
_TICKS_WANTED = 5


@dataclass(frozen=True)
class ForestRow:
    """One change with its interval, in the panel's unit."""

    name: str
    delta: float
    low: float
    high: float
    # Largest drop accepted, positive; None where the policy names none in this unit.
    margin: float | None
    kind: str  # ``"total"``, ``"guilty"``, ``"gating"`` or ``"advisory"``.


@dataclass(frozen=True)
class ForestPanel:
    """Rows on one axis."""

    unit: str  # ``"pp"``, or the metric's name.
    rows: tuple[ForestRow, ...]
    left: float
    right: float  # Ends of the axis; intervals beyond them are cut and get an arrow.
    # The policy's margin in this unit, for the line; None where it names none.
    margin: float | None
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Position on the axis between 0 and 1, clipped to it."""
        return min(1.0, max(0.0, (value - self.left) / (self.right - self.left)))

    def label(self, tick: float) -> str:
        """Text of a tick."""
        if tick == 0:
            return "0"
        return f"{tick:+.10g}".replace("-", "\N{MINUS SIGN}")


def forest_panels(decision: Decision) -> list[ForestPanel]:
    """Panels of a decision's forest plot, percentage points first."""
    # The total stands in the first row of the panel all gating tasks belong to, if there is one.
    groups: dict[str, list[ForestRow]] = {}
    if decision.aggregate.proportion:
        groups["pp"] = []
    for task in ordered_tasks(decision):
        unit = "pp" if task.proportion else task.metric
        groups.setdefault(unit, []).append(_row(task, 100.0 if unit == "pp" else 1.0))
    units = {"pp" if t.proportion else t.metric for t in decision.tasks if t.tier == "gating"}
    if len(units) == 1:
        unit = units.pop()
        groups[unit].insert(0, _total(decision, 100.0 if unit == "pp" else 1.0))
    order = sorted(groups, key=lambda unit: (unit != "pp", unit))
    return [_panel(unit, groups[unit], _margin(decision, unit)) for unit in order]


def _margin(decision: Decision, unit: str) -> float | None:
    margin = decision.policy.margin_of(proportion=unit == "pp")
    return 100 * margin if unit == "pp" and margin is not None else margin


def _row(task: TaskResult, factor: float) -> ForestRow:
    kind = "guilty" if task.guilty else task.tier
    interval = task.interval
    return ForestRow(
        task.task,
        factor * task.delta,
        *_ends(interval, factor),
        None if task.margin is None else factor * task.margin,
        kind,
    )


def _total(decision: Decision, factor: float) -> ForestRow:
    total = decision.aggregate
    return ForestRow(
        total_name(decision),
        factor * total.delta,
        *_ends(total.interval, factor),
        factor * decision.power.margin,
        "total",
    )


def _ends(interval: IntervalRecord, factor: float) -> tuple[float, float]:
    low, high = interval.low, interval.high
    return (-math.inf if low is None else factor * low, math.inf if high is None else factor * high)


def _panel(unit: str, rows: list[ForestRow], margin: float | None) -> ForestPanel:
    # Changes and the margin must be seen whole; an interval of a small task may be cut rather
    # than squeeze all others into a line.
    widths = [row.high - row.low for row in rows if math.isfinite(row.high - row.low)]
    scale = (max(widths, default=0.0) / 2 if margin is None else margin) or 1.0
    left = min(-1.25 * scale, *(1.15 * row.delta for row in rows))
    right = max(0.6 * scale, *(1.15 * row.delta for row in rows))
    reach = _GENEROSITY * max(-left, right)
    left = max(-reach, min(left, *(1.05 * row.low for row in rows)))
    right = min(reach, max(right, *(1.05 * row.high for row in rows)))
    step = _step((right - left) / _TICKS_WANTED)
    first, last = math.ceil(left / step), math.floor(right / step)
    ticks = tuple(k * step for k in range(first, last + 1))
    return ForestPanel(unit, tuple(rows), left, right, margin, ticks)


def _step(rough: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) next above."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))
