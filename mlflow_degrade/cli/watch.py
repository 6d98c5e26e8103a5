"""``mlflow-degrade watch``: is what is served still the model that was approved?"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from ..core.errors import InputError
from ..engine.providers import DEVICE_HELP
from .output import json_option, write_json

if TYPE_CHECKING:
    from ..workflows.watch import Watched

_HELP = """Say from traces whether a served model is still the champion, and when to roll back.

Traces of an MLflow experiment are drawn by their ids, and champion and challenger read each served
text token by token. Where their likeliest tokens differ, the served one is either's: if the
champion wrote the text, it is the challenger's at most half the time. Evidence against that is kept
for a year, may be read after every trace, and raises a false alarm in that year with probability at
most --alpha. With --tolerance texts of a model that nobody named are found as well: those that
differ from the champion's likeliest tokens by more than this share. Nothing here says that an
answer is worse; see docs/watch.md.

Call it every hour or every week: each call goes on where the one before stopped, in one run beside
the traces. Of a trace it keeps digests and counts, never a text.

\b
Examples:
  mlflow-degrade watch --champion models:/chat/1 --challenger models:/chat/2 --traces production
  mlflow-degrade watch --champion models:/chat/1 --challenger models/int4 --traces production \\
      --tolerance 0.1 --rate 0.05 --since 2026-11-01
  mlflow-degrade watch --champion models:/chat/1 --challenger models:/chat/2 --traces production \\
      --filter "trace.name = 'chat'" --roll-back champion --json watch.json

Exit codes: 0 no alarm, 1 roll back, 2 too little to tell so far, 3 invalid input.
"""


def _moment(_: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """A time in ISO format as milliseconds."""
    if text is None:
        return None
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError as error:
        raise InputError(
            f"{option.opts[0]} {text!r} is no time: write 2026-11-01 or 2026-11-01T08:30."
        ) from error


@click.command(help=_HELP)
@click.option("--champion", required=True, metavar="MODEL",
              help="Approved: a model directory or models:/<name>/<version>.")  # fmt: skip
@click.option("--challenger", metavar="MODEL",
              help="What might be served instead, e.g. the next version.")  # fmt: skip
@click.option("--traces", required=True, metavar="EXPERIMENT",
              help="Experiment with the traces; the watch's run is put there.")  # fmt: skip
@click.option("--filter", "condition", metavar="TEXT",
              help="Which of its traces, as in mlflow.search_traces.")  # fmt: skip
@click.option("--since", "since_ms", callback=_moment, metavar="TIME",
              help="When a new watch begins.  [default: the version's making]")  # fmt: skip
@click.option("--alpha", type=float, default=0.05, show_default=True,
              help="Probability of any false alarm in a year.")  # fmt: skip
@click.option("--tolerance", type=float,
              help="Mean share of tokens that may differ, e.g. 0.1.")  # fmt: skip
@click.option("--rate", type=float, default=1.0, show_default=True,
              help="Share of the traces to score.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of which traces those are.")
@click.option("--tokens", type=int, default=64, show_default=True,
              help="Tokens of each text to read.")  # fmt: skip
@click.option("--limit", "most", type=click.IntRange(min=1),
              help="Traces to score in this call; the next one goes on.")  # fmt: skip
@click.option("--anew", is_flag=True, help="Begin another watch, e.g. after a roll-back.")
@click.option("--roll-back", metavar="ALIAS",
              help="On an alarm point this alias to the champion's version.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help=f"Where to score: {DEVICE_HELP}.")
@json_option("where the watch stands")
def watch(
    champion: str,
    challenger: str | None,
    traces: str,
    condition: str | None,
    since_ms: int | None,
    alpha: float,
    tolerance: float | None,
    rate: float,
    seed: int,
    tokens: int,
    most: int | None,
    anew: bool,
    roll_back: str | None,
    device: str,
    json_: str | None,
) -> None:
    from ..core.progress import progress_bar
    from ..decision.watch import WatchPolicy
    from ..workflows.watch import watch as go_on

    policy = WatchPolicy(alpha=alpha, tolerance=tolerance, rate=rate, seed=seed, tokens=tokens)
    with progress_bar("Reading served texts", sys.stderr.isatty()) as advance:
        done = go_on(
            champion,
            challenger,
            policy,
            experiment=traces,
            condition=condition,
            since_ms=since_ms,
            most=most,
            anew=anew,
            device=device,
            roll_back=roll_back,
            advance=advance,
        )
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    for line in outcome_lines(done):
        click.echo(line, err=json_ == "-")
    write_json(done.as_dict(), json_)
    click.get_current_context().exit(done.verdict.exit_code)


def outcome_lines(done: Watched) -> Sequence[str]:
    """Where the watch stands, and what to do now."""
    from ..decision.watch import DRIFT

    state, champion = done.watch, done.champion
    tokens = sum(week.tokens for week in state.weeks)
    differing = sum(week.differing for week in state.weeks)
    counted = f"{state.traces:,} traces ({done.added:,} new)"
    share = (
        f", {differing / tokens:.1%} of their tokens differ from the champion's" if tokens else ""
    )
    lines = []
    if (alarm := state.alarm) is not None:
        when = datetime.fromtimestamp(alarm.since_ms / 1000).strftime("%Y-%m-%d %H:%M")
        what = (
            f"texts differ from those of {champion.title} by more than the tolerance"
            if alarm.claim == DRIFT or done.challenger is None
            else f"texts are those of {done.challenger.title} rather than of {champion.title}"
        )
        lines.append(
            f"ROLL BACK: since about {when} {what} (evidence e^{alarm.log_e:.1f} after "
            f"{alarm.since_traces:,} traces; an alarm is e^{-math.log(state.policy.alpha):.1f})"
        )
        if done.moved is not None:
            lines.append(done.moved)
        elif champion.registered is not None:
            name, version = champion.registered
            lines.append("next: point the alias that is served back, and start the server again:")
            lines.append(
                '  python -c "import mlflow; mlflow.MlflowClient().set_registered_model_alias('
                f"'{name}', '<alias>', '{version}')\""
            )
        else:
            lines.append(f"next: serve {champion.reference} again, then")
        lines.append("  mlflow-degrade watch --anew …   (the same options) once it is served")
    elif state.could_alarm:
        lines.append(f"no alarm: {counted}{share}; evidence e^{state.log_e:.1f}")
    else:
        lines.append(
            f"too little to tell: {counted}{share}; no alarm could have been raised yet. Go on, "
            "with a larger --rate if that takes too long."
        )
    if done.left_out:
        reasons = ", ".join(f"{count:,} {why}" for why, count in done.left_out.items())
        lines.append(f"left out: {reasons}")
    return [*lines, f"run {done.run_id}"]
