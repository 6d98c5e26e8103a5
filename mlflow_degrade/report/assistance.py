"""What assisted generation did, on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ..bench.assistance import MIN_ROUNDS, AssistanceReport
from ..core import numbers
from ..decision.results import Verdict
from .content import SIGNS
from .terminal import heading, table

_NONE = "–"


def assistance_view(report: AssistanceReport) -> RenderableType:
    """The verdict and a table of what it is made of."""
    verdict = report.verdict
    claim = {
        Verdict.PASS: "shown to be lossless",
        Verdict.FAIL: "not lossless",
        Verdict.INCONCLUSIVE: "not shown to be lossless",
    }[verdict]
    speedup = report.speedup
    shown = table(
        "of one round",
        *((name, "right") for name in ("tokens", "passes", "tokens a pass", "proposed", "kept")),
        ("faster", "right"),
    )
    counts = report.counts
    per_pass, kept = report.tokens_per_pass, report.acceptance
    shown.add_row(
        Text(report.assistant),
        numbers.count(counts["tokens"]),
        numbers.count(counts["passes"]),
        _NONE if per_pass is None else f"{per_pass:.2f}",
        numbers.count(counts["proposed"]),
        _NONE if kept is None else numbers.share(kept),
        numbers.times(speedup.estimate),
    )
    spread = f"at least {MIN_ROUNDS} rounds have an interval"
    if speedup.low is not None and speedup.high is not None:
        spread = f"95% interval {numbers.times(speedup.low)} to {numbers.times(speedup.high)}"
    remark = (
        f"Faster: seconds alone over seconds assisted, one prompt at a time, prompts included; "
        f"median of {len(report.seconds_alone)} rounds that do both, {spread}. "
        f"{report.processor}, {report.threads} threads."
    )
    return Group(
        heading(f"{SIGNS[verdict]} {verdict.value}: {report.model} with {report.assistant}"),
        Text(f"{claim}: {report.reason}.\n"),
        shown,
        Text(f"\n{remark}", style="dim"),
    )
