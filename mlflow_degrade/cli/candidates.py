"""``mlflow-degrade candidates``: what was decided on the candidates of one baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..core.errors import InputError
from .output import OUTPUT, json_option, require_plot_name, write_json, write_plot

if TYPE_CHECKING:
    from ..report.candidates import Candidate


_HELP = """List the decisions in MLflow that share one baseline: verdict, change and cost.

RUNs are those of recipes, gates or the evaluator; without any, all logged decisions are searched
and those on the baseline of the newest one are shown. Costs were measured side by side with the
baseline. Nothing is written to MLflow.

\b
Examples:
  mlflow-degrade candidates
  mlflow-degrade candidates --experiment quantization --plot candidates.png
  mlflow-degrade candidates 1f3c9ab2… 77d0e4c1… --against size --plot size.svg
  mlflow-degrade candidates --json - | jq '.candidates[] | select(.verdict == "PASS")'

Exit codes: 0 something was found, 3 nothing, or invalid input.
"""


@click.command(help=_HELP)
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    metavar="NAME",
    help="Where to search. Repeatable.",
)
@click.option(
    "--baseline",
    metavar="TEXT",
    help="Baseline to show: its name, or how one of its digests begins.",
)
@click.option("--plot", type=OUTPUT, metavar="FILE", help="Draw change against cost, .png or .svg.")
@click.option(
    "--against", metavar="COST", help="What to draw against, e.g. decode, prefill or size."
)
@json_option("the list")
def candidates(
    runs: Sequence[str],
    experiments: Sequence[str],
    baseline: str | None,
    plot: str | None,
    against: str | None,
    json_: str | None,
) -> None:
    from ..registry.candidates import find_candidates
    from ..report.candidates import candidates_figure, candidates_view, choose_axis, records
    from ..report.terminal import console
    from ..tracking.connection import require_tracking_server

    require_plot_name(plot)
    if against is not None and plot is None:
        raise InputError("--against says what --plot draws: give --plot as well.")
    require_tracking_server(create=False)
    groups, notes = find_candidates(runs, experiments=experiments)
    group = _choose(groups, baseline, named=bool(runs))
    axis = None if plot is None else choose_axis(group, against)
    console(stderr=json_ == "-").print(candidates_view(group))
    others = sum(map(len, groups)) - len(group)
    if others:
        names = ", ".join(_title(other) for other in groups if other is not group)
        notes.append(f"{others} more on other baselines or samples; --baseline shows them: {names}")
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if plot is not None and axis is not None:
        write_plot(candidates_figure(group, axis), plot)
    write_json(records(group), json_)


def _choose(groups: list[list[Candidate]], wanted: str | None, *, named: bool) -> list[Candidate]:
    """The group that is asked for; by default the one with the newest decision."""
    if wanted is not None:
        groups = [group for group in groups if _fits(group[0], wanted)]
        if not groups:
            raise InputError(f"baseline {wanted!r}: no decision found has it.")
    if named and len(groups) > 1:
        listed = "".join(f"\n  {_title(g)}: {', '.join(c.run_id for c in g)}" for g in groups)
        raise InputError(f"these runs do not share one baseline on the same samples:{listed}")
    return groups[0]


def _fits(candidate: Candidate, wanted: str) -> bool:
    facts = candidate.decision.baseline
    digests = [str(facts.get(name)) for name in ("samples_digest", "model_digest")]
    bare = wanted.removeprefix("sha256:")
    return wanted == candidate.baseline or any(
        len(bare) >= 6 and digest.removeprefix("sha256:").startswith(bare) for digest in digests
    )


def _title(group: list[Candidate]) -> str:
    digest = group[0].baseline_samples.removeprefix("sha256:")[:12]
    return f"{group[0].baseline} ({digest}, {len(group)})"
