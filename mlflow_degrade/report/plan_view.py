"""The tables of a plan on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from .. import _numbers as numbers
from ..planning import SuitePower, detectable_drop, needed_samples
from .terminal import heading, table


def measured_view(measured: Sequence[SuitePower]) -> RenderableType:
    """What two runs of one model show about a suite."""
    shown = table(
        "task",
        ("n", "right"),
        ("changed", "right"),
        ("flip rate", "right"),
        ("upper bound", "right"),
        ("detects a drop of", "right"),
    )
    for row in measured:
        shown.add_row(
            Text(row.name),
            numbers.count(row.n),
            numbers.count(row.changed),
            numbers.share(row.flip_rate),
            numbers.share(row.flip_rate_upper),
            _drop(row.detectable),
            style="bold" if row is measured[-1] and len(measured) > 1 else "",
        )
    return Group(heading("What this suite can detect, if the candidate flips as much"), shown)


def needed_view(
    wanted: Iterable[tuple[float, float]], *, alpha: float, power: float, aggregation: str
) -> RenderableType:
    """Samples for each (flip rate, drop)."""
    shown = table(
        ("flip rate", "right"),
        ("drop", "right"),
        ("to find it", "right"),
        ("PASS no_degradation", "right"),
        ("PASS non_inferiority", "right"),
    )
    before = None
    for flip_rate, drop in wanted:
        if before not in (None, flip_rate):
            shown.add_section()
        need = needed_samples(drop, flip_rate, alpha=alpha, power=power, aggregation=aggregation)
        shown.add_row(
            "" if flip_rate == before else numbers.share(flip_rate),
            _drop(drop),
            numbers.count(need.detect),
            numbers.count(need.pass_no_degradation),
            numbers.count(need.pass_non_inferiority),
        )
        before = flip_rate
    text = (
        f"One-sided alpha {alpha:g} ({aggregation}), power {power:g}. A PASS takes a model that is "
        "not worse; under no_degradation the gate bounds the flip rate from above, which takes "
        "more samples than finding the drop."
    )
    return Group(heading("Samples needed"), shown, Text(text))


def detectable_view(
    samples: Sequence[int],
    flip_rates: Sequence[float],
    *,
    alpha: float,
    power: float,
    aggregation: str,
) -> RenderableType:
    """Drops that numbers of samples detect, a column per flip rate."""
    columns = [(f"at {numbers.share(rate)} flips", "right") for rate in flip_rates]
    shown = table(("samples", "right"), *columns)
    for n in samples:
        found = (
            detectable_drop(n, rate, alpha=alpha, power=power, aggregation=aggregation)
            for rate in flip_rates
        )
        shown.add_row(numbers.count(n), *map(_drop, found))
    return Group(heading("Smallest drop found"), shown)


def _drop(value: float) -> str:
    if not math.isfinite(value):
        return "none"
    return numbers.change(value, proportion=True, signed=False)
