"""What numbers of samples can detect, as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .._numbers import share
from ..planning import detectable_drop
from ..stats.rules import DEFAULT_RULE

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
    """Detectable drop against the number of samples, one line per flip rate.

    Parameters
    ----------
    flip_rates : sequence of float
    samples : sequence of int
        Numbers of samples to mark.
    drops : sequence of float
        Drops to mark, proportions.
    alpha, power, aggregation
        As for `mlflow_degrade.planning.detectable_drop`.

    Returns
    -------
    matplotlib.figure.Figure
    """
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
