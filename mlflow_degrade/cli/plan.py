"""``mlflow-degrade plan``: how many samples, and what a suite can detect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import InputError
from ..decision.planning import PLANNED_RULES
from ..stats._combination_rules import DEFAULT_RULE
from .output import OUTPUT, json_option, require_plot_name, whole_file, write_json
from .references import read_noise, read_sides, reader_options

if TYPE_CHECKING:
    from ..decision.noise import Floor

_DROPS_PP = (0.3, 0.5, 1.0, 2.0, 3.0)
_FLIP_RATES = (0.02, 0.05, 0.1)
_PLOTS = (".png", ".svg", ".pdf")

_HELP = """Say how many samples a drop needs, and what a number of samples can detect.

How much the answers of a quantized model change decides: give the flip rate, or two runs of one
model (BASELINE and RERUN) to measure it. A candidate changes more answers than a rerun does, so a
rerun gives the least number of samples. --noise takes what mlflow-degrade noise --json wrote, and
plans with the upper bound of its flip rate, and the drop on top of that; a BASELINE beside it is
checked to be the model and the samples that were run again.

\b
Examples:
  mlflow-degrade plan
  mlflow-degrade plan --flip-rate 0.05 --drop-pp 0.5
  mlflow-degrade plan --flip-rate 0.03 --samples 1319 --samples 14042
  mlflow-degrade plan fp32.csv fp32_again.csv --drop-pp 1 --plot plan.png
  mlflow-degrade plan --noise noise.json --drop-pp 0.5
  mlflow-degrade plan --flip-rate 0.05 --drop-pp 0.5 --json

In JSON, rates and drops are shares (0.005 is half a percentage point).
"""


@click.command(help=_HELP)
@click.argument("baseline", required=False)
@click.argument("rerun", required=False)
@click.option(
    "--flip-rate",
    "flip_rates",
    type=float,
    multiple=True,
    help="Share of the answers that change, e.g. 0.05. Repeatable.",
)
@click.option("--noise", metavar="FILE|RUN", help="Reruns: noise.json, or runs:/<run id>.")
@click.option(
    "--drop-pp",
    "drops_pp",
    type=float,
    multiple=True,
    help="Drop to detect or to rule out, in percentage points. Repeatable.",
)
@click.option("--samples", type=int, multiple=True, help="Numbers of samples to judge. Repeatable.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="One-sided level.")
@click.option("--power", type=float, default=0.8, show_default=True, help="Wanted power.")
@click.option(
    "--aggregation",
    type=click.Choice(PLANNED_RULES),
    default=DEFAULT_RULE,
    show_default=True,
    help="How the gate combines tasks; combined tests the pool at half of alpha at least.",
)
@click.option("--metric", help="Metric to read from the two runs.")
@click.option("--plot", type=OUTPUT, metavar="FILE", help="Draw it, .png, .svg or .pdf.")
@json_option("the numbers")
@reader_options
def plan(
    baseline: str | None,
    rerun: str | None,
    flip_rates: Sequence[float],
    noise: str | None,
    drops_pp: Sequence[float],
    samples: Sequence[int],
    metric: str | None,
    plot: str | None,
    json_: str | None,
    format_: str | None,
    options: Sequence[str],
    baseline_options: Sequence[str],
    candidate_options: Sequence[str],
    average: str | None,
    **rule: Any,
) -> None:
    from ..decision.planning import detectable_drop, needed_samples
    from ..report import plan_view
    from ..report.terminal import console

    require_plot_name(plot, _PLOTS)
    if noise is not None and (flip_rates or rerun is not None):
        raise InputError(
            "--noise says how many answers change, and so does "
            f"{'--flip-rate' if flip_rates else 'a RERUN'}: give one of the two."
        )
    if noise is None and (baseline is None) != (rerun is None):
        raise InputError("one log alone shows no change: give two runs of the same model.")
    out = console(stderr=json_ == "-")
    rates, counts = list(flip_rates), list(samples)
    record: dict[str, Any] = {**rule, "measured": []}
    noise_rate = None
    if noise is not None:
        found = _noise(noise, baseline, metric, format_, (options, baseline_options), average)
        out.print(plan_view.noise_view(found))
        record["noise"] = asdict(found)
        noise_rate, counts = found.upper, counts or [found.n]
    elif baseline is not None and rerun is not None:
        measured = _measure(
            (baseline, rerun),
            metric,
            format_,
            (options, baseline_options, candidate_options),
            average,
            rule,
        )
        out.print(plan_view.measured_view(measured))
        record["measured"] = [asdict(row) for row in measured]
        # The upper bound, as for the power guard: few flips among few samples prove little.
        rates = rates or [measured[-1].flip_rate_upper]
        counts = counts or [measured[-1].n]
    drops = [pp / 100 for pp in drops_pp or _DROPS_PP]
    if noise_rate is not None:
        # What a rerun flips goes both ways. A drop comes on top of that.
        rates = [min(1.0, noise_rate + drop) for drop in drops]
        possible = list(zip(rates, drops, strict=True))
    else:
        rates = rates or list(_FLIP_RATES)
        possible = [(r, d) for r in rates for d in drops if drops_pp or d <= r]
    needed = [needed_samples(drop, rate, **rule) for rate, drop in possible]
    out.print(plan_view.needed_view(needed, **rule))
    record["needed"] = [asdict(row) for row in needed]
    if counts:
        out.print(plan_view.detectable_view(counts, rates, **rule))
    record["detectable"] = [
        {"n": n, "flip_rate": rate, "drop": _finite(detectable_drop(n, rate, **rule))}
        for n in counts
        for rate in rates
    ]
    for row in record["measured"]:
        row["detectable"] = _finite(row["detectable"])
    write_json(record, json_)
    if plot is not None:
        _draw(plot, rates, counts, [d for d in drops if drops_pp], rule)
        click.echo(f"plot: {plot}", err=True)


def _finite(drop: float) -> float | None:
    """A drop for JSON, which has no infinity: none where no drop is found."""
    return drop if math.isfinite(drop) else None


def _measure(
    references: Sequence[str],
    metric: str | None,
    format_: str | None,
    options: Sequence[Sequence[str]],
    average: str | None,
    rule: dict[str, Any],
) -> Any:
    from ..decision.planning import suite_power
    from ..samples.pairing import pair

    sides = read_sides(references, format_, *options, average=average, allow_same=False)
    return suite_power(pair(*sides, metric=metric, allow=["same-model"]), **rule)


def _noise(
    reference: str,
    baseline: str | None,
    metric: str | None,
    format_: str | None,
    options: Sequence[Sequence[str]],
    average: str | None,
) -> Floor:
    """How much reruns change, checked against the baseline where one is named."""
    from ..samples.pairing import pair

    record = read_noise(reference)
    graded = [
        n for n, asked in record.questions.items() if asked.gating and not asked.right_or_wrong
    ]
    if graded:
        raise InputError(
            f"{reference}: the scores of {graded} are not single right-or-wrong outcomes, so they "
            "have no flip rate to plan with. Measure the noise with another metric."
        )
    if baseline is not None:
        sides = read_sides(
            (baseline, baseline), format_, *options, average=average, allow_same=True
        )
        paired = pair(*sides, metric=metric, allow=["same-model"])
        record.require_fit(sides[0], [t for t in paired.tasks if t.name in record.tasks])
    return record.floor()


def _draw(
    path: str, rates: list[float], samples: list[int], drops: list[float], rule: dict[str, Any]
) -> None:
    from ..report.plan_view import detectable_drops

    figure = detectable_drops(rates, samples=samples, drops=drops, **rule)
    with whole_file(path) as scratch:
        figure.savefig(scratch, dpi=150)
