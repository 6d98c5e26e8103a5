"""Several candidates of one baseline: a table, and speed or size against the change in quality."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core import numbers
from ..core.errors import InputError, UnknownNameError
from ..decision.results import Decision, Verdict
from .content import SIGNS
from .cost import gain, in_words
from .terminal import heading, table

#: What a plot has on its horizontal axis where nothing else is asked for, in this order.
PREFERRED = ("throughput/decode", "throughput/prefill", "throughput/encode", "size")

_COLOURS = {Verdict.PASS: "#1a7f37", Verdict.FAIL: "#b42318", Verdict.INCONCLUSIVE: "#8a5a00"}
_MARKERS = {Verdict.PASS: "o", Verdict.FAIL: "X", Verdict.INCONCLUSIVE: "s"}
_STYLES = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
_RED, _SOFT = "#b42318", "#59636e"
# The table shows so many of the measured quantities; the JSON has them all.
_COLUMNS = {
    "size": "smaller",
    "throughput/prefill": "prefill",
    "throughput/decode": "decode",
    "throughput/encode": "encode",
    "memory/loaded": "memory",
}
_NAME_LENGTH = 60
_DPI = 150


@dataclass(frozen=True)
class Candidate:
    """One decision on a candidate."""

    run_id: str
    run_name: str  # The run that holds the evidence.
    experiment_id: str
    started: int  # Milliseconds since 1970.
    decision: Decision  # As it was logged.
    # Candidate's cost divided by the baseline's, e.g. ``{"size": 0.49}``; measured together.
    relative: Mapping[str, float]

    @property
    def name(self) -> str:
        """What the candidate is called, or its run where it has no name."""
        return self.decision.candidate.get("model") or self.run_name

    @property
    def baseline(self) -> str:
        """What the baseline is called."""
        return self.decision.baseline.get("model") or "baseline"

    @property
    def baseline_samples(self) -> str:
        """Digest of the baseline's scores: the same model asked the same questions."""
        return str(self.decision.baseline.get("samples_digest"))


def choose_axis(candidates: Sequence[Candidate], asked: str | None = None) -> str:
    """Which measured quantity the candidates are compared by."""
    measured = sorted({name for candidate in candidates for name in candidate.relative})
    if not measured:
        raise InputError(
            "no cost was measured together with these decisions, so there is nothing to draw them "
            "against: the recipes measure it."
        )
    if asked is None:
        return next((name for name in PREFERRED if name in measured), measured[0])
    if asked in measured:
        return asked
    fitting = [name for name in measured if name.endswith(f"/{asked}")]
    if not fitting:
        raise UnknownNameError("cost", asked, measured)
    if len(fitting) > 1:
        raise InputError(f"cost {asked!r} fits {', '.join(fitting)}: give the whole name.")
    return fitting[0]


def pareto(candidates: Sequence[Candidate], axis: str) -> list[bool]:
    """Whether no other candidate is at least as good in both quality and cost."""
    points = [
        (c.decision.aggregate.delta, gain(axis, c.relative[axis])) if axis in c.relative else None
        for c in candidates
    ]
    known = [point for point in points if point is not None]
    return [point is not None and not any(_beats(o, point) for o in known) for point in points]


def candidates_view(candidates: Sequence[Candidate]) -> RenderableType:
    """The candidates as a table for the terminal, newest first."""
    columns = [name for name in _COLUMNS if any(name in c.relative for c in candidates)]
    unit = " pp" if candidates[0].decision.aggregate.proportion else ""
    shown = table(
        "candidate",
        "verdict",
        (f"change{unit} [interval]", "right"),
        *((_COLUMNS[name], "right") for name in columns),
        "run",
    )
    for column in shown.columns[1], shown.columns[-1]:
        column.no_wrap = True
    for candidate in candidates:
        verdict = candidate.decision.verdict
        shown.add_row(
            Text(candidate.name),
            Text(f"{SIGNS[verdict]} {verdict.value}", style=_STYLES[verdict]),
            _change(candidate.decision),
            *(_gain(candidate, name) for name in columns),
            candidate.run_id[:8],
        )
    n = numbers.count(candidates[0].decision.aggregate.n)
    parts: list[RenderableType] = [
        heading(f"Candidates against {candidates[0].baseline} on {n} samples"),
        shown,
    ]
    margins = sorted({c.decision.power.margin for c in candidates})
    said = ", ".join(numbers.change(m, proportion=bool(unit), signed=False) for m in margins)
    remarks = [f"Margin {said}."]
    if columns:
        remarks.append("Costs: times better than the baseline, below 1× is worse.")
    if len(candidates) > 1:
        remarks.append(selection_caveat(len(candidates)))
    parts.append(Text("\n" + " ".join(remarks), style="dim"))
    return Group(*parts)


def selection_caveat(count: int) -> str:
    """What picking among candidates that were judged on the same samples does to their numbers."""
    return (
        f"{count} candidates were judged on the same samples: the one that looks best among them "
        "looks better than it is. Confirm it on samples that none of them has seen."
    )


def records(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The same as a JSON-ready mapping; changes are proportions, costs are candidate/baseline."""
    first = candidates[0].decision
    front: dict[str, list[bool]] = {}
    for name in sorted({name for candidate in candidates for name in candidate.relative}):
        front[name] = pareto(candidates, name)
    return {
        "baseline": first.baseline,
        "n": first.aggregate.n,
        "proportion": first.aggregate.proportion,
        "candidates": [
            {
                "run_id": c.run_id,
                "run_name": c.run_name,
                "experiment_id": c.experiment_id,
                "candidate": c.decision.candidate,
                "verdict": c.decision.verdict.value,
                "reasons": list(c.decision.reasons),
                "delta": c.decision.aggregate.delta,
                "interval": c.decision.aggregate.interval.model_dump(mode="json"),
                "margin": c.decision.power.margin,
                "policy_digest": c.decision.policy.digest(),
                "relative": dict(c.relative),
                "pareto_front": [name for name, on in front.items() if on[index]],
            }
            for index, c in enumerate(candidates)
        ],
    }


def candidates_figure(candidates: Sequence[Candidate], axis: str) -> Any:
    """Change in quality with its interval against speed or size; right and up is better."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    shown = [candidate for candidate in candidates if axis in candidate.relative]
    factor = 100.0 if shown[0].decision.aggregate.proportion else 1.0
    # Names stand below, one a line: beside the points they would cover each other.
    figure = Figure(figsize=(8, 4.6 + 0.2 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for number, candidate in enumerate(shown, 1):
        total, verdict = candidate.decision.aggregate, candidate.decision.verdict
        x, y = gain(axis, candidate.relative[axis]), factor * total.delta
        colour = _COLOURS[verdict]
        if total.interval.low is not None and total.interval.high is not None:
            ends = [factor * total.interval.low, factor * total.interval.high]
            axes.plot([x, x], ends, color=colour, linewidth=2, zorder=3)
        label = f"{number}  {_cut(candidate.name)}: {verdict.value}, {_change(candidate.decision)}"
        axes.plot(
            x, y, _MARKERS[verdict], color=colour, markersize=8, markeredgecolor="white", zorder=4,
            label=label, linestyle="none",
        )  # fmt: skip
        axes.annotate(
            str(number), (x, y), xytext=(8, 3), textcoords="offset points",
            fontsize=10, fontweight="bold", color=colour, zorder=5,
        )  # fmt: skip
    axes.axhline(0, color=_SOFT, linewidth=1)
    axes.plot(1, 0, "D", color="#1f2328", markersize=8, zorder=4)
    axes.annotate(
        "baseline", (1, 0), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8
    )
    low, high = axes.get_ylim()
    margins = {factor * candidate.decision.power.margin for candidate in shown}
    low = min(low, -1.3 * max(margins))
    if len(margins) == 1:
        axes.axhspan(low, -max(margins), color=_RED, alpha=0.07, linewidth=0)
    for margin in margins:
        axes.axhline(-margin, color=_RED, linewidth=1, linestyle="--")
    axes.set_ylim(low, max(high, 0.3 * max(margins)))
    axes.margins(x=0.15)
    unit = "pp" if factor == 100 else "metric's unit"
    confidence = numbers.level(shown[0].decision.policy.shown_confidence)
    axes.set_ylabel(f"candidate − baseline, {unit}; {confidence} intervals", fontsize=9)
    axes.set_xlabel(f"{in_words(axis)}: times better than the baseline", fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.tick_params(labelsize=9)
    axes.spines[["right", "top"]].set_visible(False)
    n = numbers.count(shown[0].decision.aggregate.n)
    title = f"Candidates against {_cut(shown[0].baseline)}, {n} samples; dashed: margin"
    axes.set_title(title, fontsize=10, parse_math=False)
    legend = figure.legend(loc="outside lower left", fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG or SVG, by the name; the same figure gives the same bytes."""
    import matplotlib as mpl

    kind = os.fspath(path).rpartition(".")[2].lower()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "mlflow-degrade"}):
        figure.savefig(path, format=kind, dpi=_DPI, metadata=metadata)


def _beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
    return other != point and other[0] >= point[0] and other[1] >= point[1]


def _change(decision: Decision) -> str:
    total = decision.aggregate
    share = total.proportion
    change = numbers.points(total.delta) if share else numbers.change(total.delta, proportion=False)
    return f"{change} {numbers.interval(total.interval.low, total.interval.high, proportion=share)}"


def _gain(candidate: Candidate, name: str) -> str:
    known = candidate.relative.get(name)
    return "–" if known is None else numbers.times(gain(name, known))


def _cut(text: str) -> str:
    return text if len(text) <= _NAME_LENGTH else text[: _NAME_LENGTH - 1] + "…"
