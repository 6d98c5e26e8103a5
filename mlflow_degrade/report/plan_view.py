"""The tables of a plan on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core import numbers
from ..core.numbers import share
from ..decision.noise import Floor
from ..decision.planning import NeededSamples, SuitePower, detectable_drop
from ..stats._combination_rules import DEFAULT_RULE
from .terminal import heading, table

# What numbers of samples can detect, as a figure.

_POINTS = 60
_SMALLEST, _LARGEST = 100, 200_000


def detectable_drops(
    flip_rates: Sequence[float],
    *,
    samples: Sequence[int] = (),
    drops: Sequence[float] = (),
    alpha: float = 0.05,
    power: float = 0.8,
    aggregation: str = DEFAULT_RULE,
) -> Any:
    """Detectable drop against the number of samples, one line per flip rate."""
    from matplotlib.figure import Figure

    largest = max([_LARGEST, *(4 * n for n in samples)])
    ratio = (largest / _SMALLEST) ** (1 / (_POINTS - 1))
    counts = [round(_SMALLEST * ratio**i) for i in range(_POINTS)]
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axis = figure.subplots()
    for flip_rate in flip_rates:
        found = [
            detectable_drop(n, flip_rate, alpha=alpha, power=power, aggregation=aggregation)
            for n in counts
        ]
        shown = [(n, 100 * d) for n, d in zip(counts, found, strict=True) if math.isfinite(d)]
        axis.plot(*zip(*shown, strict=True), label=f"{share(flip_rate)} of the answers change")
    for n in samples:
        axis.axvline(n, color="#9aa4af", linewidth=1, linestyle="--")
    for drop in drops:
        axis.axhline(100 * drop, color="#9aa4af", linewidth=1, linestyle=":")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("samples")
    axis.set_ylabel("smallest drop found, pp")
    axis.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    axis.yaxis.set_major_formatter(lambda pp, _: f"{pp:g}")
    axis.grid(True, which="major", color="#e5e8eb", linewidth=0.8)
    axis.legend(frameon=False)
    axis.set_title(
        f"One-sided alpha {alpha:g} ({aggregation}), power {power:g}", fontsize=10, loc="left"
    )
    return figure


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


def noise_view(floor: Floor) -> RenderableType:
    """What reruns of a baseline show, and what is planned with."""
    return Text(
        f"A rerun of the baseline flips {numbers.share(floor.rate)} of {numbers.count(floor.n)} "
        f"samples [{numbers.share(floor.low)}, {numbers.share(floor.high)}] "
        f"({', '.join(floor.reruns)}). Planned with its one-sided upper bound, "
        f"{numbers.share(floor.upper)}, and the flips that make the drop on top: a candidate that "
        "is a rerun but for the drop. Others flip more, so these are the fewest samples."
    )


def needed_view(
    wanted: Iterable[NeededSamples], *, alpha: float, power: float, aggregation: str
) -> RenderableType:
    """Samples for each flip rate and drop."""
    shown = table(
        ("flip rate", "right"),
        ("drop", "right"),
        ("to find it", "right"),
        ("PASS no_degradation", "right"),
        ("PASS non_inferiority", "right"),
    )
    before = None
    for need in wanted:
        if before not in (None, need.flip_rate):
            shown.add_section()
        shown.add_row(
            "" if need.flip_rate == before else numbers.share(need.flip_rate),
            _drop(need.drop),
            numbers.count(need.detect),
            numbers.count(need.pass_no_degradation),
            numbers.count(need.pass_non_inferiority),
        )
        before = need.flip_rate
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
