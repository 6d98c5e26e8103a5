"""A search for the cheapest model that passes: its trials, the front, and what was confirmed."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from ..core import numbers
from ..decision.selection import Damage, Likelihood
from ..optimize.search_space import Value
from .candidates import save_figure
from .terminal import heading, table

Outcome = Literal["measured", "pruned", "goal missed", "failed", "interrupted"]
"""How a trial ended: only what was measured can get onto the front."""

_COLOURS: Mapping[str, str] = {
    "registered": "#1a7f37",
    "front": "#1f4e9c",
    "measured": "#9aa4af",
    "pruned": "#b42318",
}
_MARKERS: Mapping[str, str] = {"registered": "*", "front": "D", "measured": "o", "pruned": "x"}
_MEANS: Mapping[str, str] = {
    "registered": "passed",
    "front": "Pareto front",
    "measured": "dominated",
    "pruned": "given up early",
}
_RED, _SOFT = "#b42318", "#59636e"
_NAMED = 12


@dataclass(frozen=True)
class Trial:
    """One candidate of a search, as it was tried."""

    number: int
    name: str
    digest: str  # Of its recipe.
    params: Mapping[str, Value]
    outcome: Outcome
    reason: str = ""  # Why it ended as it did, where it was not measured.
    run_id: str = ""
    seconds: float = 0.0
    phase: str = ""  # What its speed is of: decode, encode or prefill.
    speed: float | None = None  # How many times as fast as the baseline.
    speed_low: float | None = None
    speed_high: float | None = None
    size: float | None = None  # Its bytes divided by the baseline's.
    damage: Damage | None = None
    likelihood: Likelihood | None = None

    @property
    def objectives(self) -> tuple[float, float, float] | None:
        """Time, size and damage, each the less the better; None of what was not measured."""
        if self.speed is None or self.size is None or self.damage is None:
            return None
        return (1.0 / self.speed, self.size, self.damage.drop)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "params": dict(self.params)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """What `as_dict` gave."""
        given = dict(values)
        for name, kind in (("damage", Damage), ("likelihood", Likelihood)):
            if given.get(name) is not None:
                given[name] = kind(**given[name])
        return cls(**given)


@dataclass(frozen=True)
class Confirmation:
    """What became of a candidate on the samples that nothing was chosen on."""

    name: str
    digest: str
    outcome: str  # A verdict, or why none was asked for.
    reason: str = ""
    run_id: str = ""
    attempt: int | None = None
    change: str = ""
    registered: str | None = None
    speed: float | None = None  # Measured anew, as what follows.
    speed_low: float | None = None
    speed_high: float | None = None
    size: float | None = None

    @property
    def passed(self) -> bool:
        """Whether its verdict is PASS."""
        return self.outcome == "PASS"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SearchFindings:
    """All that a search has to tell."""

    model: str
    space: str
    candidates: int  # Of the space, where they are feasible.
    trials: tuple[Trial, ...]
    front: tuple[str, ...]  # Digests of the trials on it, the cheapest first.
    confirmations: tuple[Confirmation, ...]
    margin: float
    proportion: bool
    samples: tuple[int, int]  # Documents of the selection and of the confirmation.
    goals: str = ""  # In words.
    refused: Mapping[str, str] = field(default_factory=dict)
    next_steps: tuple[str, ...] = ()

    @property
    def winner(self) -> Confirmation | None:
        """The candidate that passed, if any did."""
        return next((found for found in self.confirmations if found.passed), None)

    def kind(self, trial: Trial) -> str:
        """What the plots show a trial as."""
        winner = self.winner
        if winner is not None and trial.digest == winner.digest:
            return "registered"
        if trial.digest in self.front:
            return "front"
        return trial.outcome if trial.outcome in _COLOURS else "pruned"

    @property
    def headline(self) -> str:
        """The outcome in a sentence."""
        winner = self.winner
        if winner is not None:
            return (
                f"{winner.name} passes: {in_short(winner)}, {winner.change} on samples of its own"
            )
        if any(found.attempt is not None for found in self.confirmations):
            return "No candidate passed."
        if not self.front:
            return "No candidate came onto the front: none was measured whole."
        return "No candidate was likely enough to pass for an attempt to be spent on it."

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **asdict(self),
            "trials": [trial.as_dict() for trial in self.trials],
            "confirmations": [found.as_dict() for found in self.confirmations],
        }

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.as_dict(), indent=2, default=str) + "\n"


def in_short(of: Trial | Confirmation) -> str:
    """Speed and size against the baseline in a few words."""
    said = []
    if of.speed is not None:
        ends = "" if of.speed_low is None else f" [{of.speed_low:.2f}, {of.speed_high:.2f}]"
        said.append(f"{of.speed:.2f}x{ends} as fast")
    return ", ".join([*said, *([] if of.size is None else [f"{1 / of.size:.2f}x smaller"])])


_HEAD = ("candidate", "faster", "smaller", "change", "samples", "what became of it")


def _rows(findings: SearchFindings) -> list[tuple[str, ...]]:
    """A row for each trial: the front first, the cheapest of it at the top."""
    place = {digest: number for number, digest in enumerate(findings.front)}
    confirmed = {found.digest: found for found in findings.confirmations}
    ordered = sorted(
        findings.trials, key=lambda t: (place.get(t.digest, len(place)), t.damage is None, t.number)
    )
    return [
        (
            trial.name,
            "–" if trial.speed is None else f"{trial.speed:.2f}x",
            "–" if trial.size is None else f"{1 / trial.size:.2f}x",
            _shown_change(trial, findings),
            "–" if trial.damage is None else numbers.count(trial.damage.n),
            _became(trial, trial.digest in place, confirmed.get(trial.digest)),
        )
        for trial in ordered
    ]


def _shown_change(trial: Trial, findings: SearchFindings) -> str:
    if trial.damage is None:
        return "–"
    change = numbers.change(-trial.damage.drop, proportion=findings.proportion)
    return f"{change} ± {_plain_number(trial.damage.error, findings)}"


def _plain_number(value: float, findings: SearchFindings) -> str:
    return numbers.change(value, proportion=findings.proportion, signed=False).removesuffix(" pp")


def _became(trial: Trial, on_front: bool, confirmed: Confirmation | None) -> str:
    if confirmed is not None:
        said = confirmed.outcome
        if confirmed.attempt is not None:
            said += f" (attempt {confirmed.attempt}, {confirmed.change}"
            said += f"; measured anew: {in_short(confirmed)})" if confirmed.passed else ")"
        if confirmed.registered:
            said += f", {confirmed.registered}"
        return said + (f": {confirmed.reason}" if confirmed.reason else "")
    if on_front:
        return "on the front, not tried"
    if trial.outcome == "measured":
        return "dominated"
    return trial.outcome + (f": {trial.reason}" if trial.reason else "")


def _about(findings: SearchFindings) -> list[str]:
    chosen, confirmed = findings.samples
    margin = numbers.change(findings.margin, proportion=findings.proportion, signed=False)
    said = [
        f"{len(findings.trials)} of {findings.candidates} candidates of space {findings.space!r} "
        f"were tried on {numbers.count(chosen)} documents. The front is tried, cheapest first, on "
        f"{numbers.count(confirmed)} others, each at a level that pays for those before it; margin "
        f"{margin}.",
        "Faster and smaller are measured in turn with the baseline; changes are estimates on "
        "the samples that were asked, ± one standard error, and no verdict.",
    ]
    if findings.goals:
        said.append(f"Goals: {findings.goals}.")
    if findings.refused:
        said.append(f"Not feasible here: {', '.join(findings.refused)}.")
    return said


def search_view(findings: SearchFindings) -> RenderableType:
    """The outcome on the terminal."""
    align = ("", "right", "right", "right", "right", "")
    shown = table(
        _HEAD[0], *((name, a) if a else name for name, a in zip(_HEAD[1:], align[1:], strict=True))
    )
    shown.columns[0].no_wrap = True
    for name, *cells in _rows(findings):
        shown.add_row(Text(name), *map(Text, cells))
    about = "\n".join(_about(findings))
    return Group(heading(findings.headline), shown, Text(f"\n{about}", style="dim"))


def search_markdown(findings: SearchFindings, *, plots: bool = False) -> str:
    """The outcome as Markdown: the note of the run, and with plots the report."""
    lines = [f"**{findings.headline}**", "", *_about(findings), ""]
    lines += [f"| {' | '.join(_HEAD)} |", "|:--|--:|--:|--:|--:|:--|"]
    rows = _rows(findings)
    shown = rows if plots else rows[:_NAMED]
    lines += [f"| `{name}` | {' | '.join(_cell(c) for c in cells)} |" for name, *cells in shown]
    if len(shown) < len(rows):
        lines += ["", f"… and {len(rows) - len(shown)} more in `report.html`."]
    if plots:
        lines += ["", "![Pareto front](plots/pareto.png)", "", "![All trials](plots/parallel.png)"]
    if findings.next_steps:
        lines += ["", "Next:", "", "```", *findings.next_steps, "```"]
    return "\n".join(lines) + "\n"


def search_html(findings: SearchFindings) -> str:
    """The outcome as one HTML file: no script, no network."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mlflow_degrade", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = []
    for title, figure in search_figures(findings).items():
        held = io.BytesIO()
        figure.savefig(held, format="png", dpi=110, metadata={"Software": None})
        pictures.append((title, base64.b64encode(held.getvalue()).decode()))
    return environment.get_template("search.html.j2").render(
        findings=findings,
        head=_HEAD,
        rows=_rows(findings),
        about=_about(findings),
        pictures=pictures,
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def save_search_plots(findings: SearchFindings, folder: str | os.PathLike[str]) -> None:
    """Write the plots as PNG and SVG."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, figure in search_figures(findings).items():
        for kind in ("png", "svg"):
            save_figure(figure, target / f"{name}.{kind}")


def search_figures(findings: SearchFindings) -> dict[str, Any]:
    """Plots by their names; none where nothing was measured."""
    if not any(trial.objectives for trial in findings.trials):
        return {}
    return {"pareto": pareto_plot(findings), "parallel": parallel_plot(findings)}


def pareto_plot(findings: SearchFindings) -> Any:
    """Speed and size of every trial against the change on the selection."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    factor, unit = (100.0, "pp") if findings.proportion else (1.0, "")
    phase = next((trial.phase for trial in findings.trials if trial.phase), "speed")
    titles = (f"{phase}, times as fast", "times smaller")
    shown = [trial for trial in findings.trials if trial.objectives]
    for panel, title, of in zip(panels, titles, (_speed, _smaller), strict=True):
        for kind in _COLOURS:
            some = [trial for trial in shown if findings.kind(trial) == kind]
            if not some:
                continue
            x = [of(trial) for trial in some]
            y = [_change(trial, findings) for trial in some]
            error = [factor * trial.damage.error for trial in some if trial.damage]
            panel.errorbar(
                x, y, yerr=error, fmt=_MARKERS[kind], color=_COLOURS[kind], elinewidth=0.8,
                markersize=11 if kind == "registered" else 6, label=_MEANS[kind],
                zorder=3 if kind in ("registered", "front") else 2,
            )  # fmt: skip
        panel.axhline(-factor * findings.margin, color=_RED, linewidth=1, linestyle="--")
        panel.axhline(0, color=_SOFT, linewidth=1)
        panel.axvline(1, color=_SOFT, linewidth=0.8, linestyle=":")
        panel.margins(x=0.12)
        panel.set_xlabel(title, fontsize=9)
        panel.tick_params(labelsize=9)
        panel.spines[["right", "top"]].set_visible(False)
        middle = sum(panel.get_xlim()) / 2
        named = sorted(_to_name(findings, shown), key=lambda trial: -_change(trial, findings))
        for number, trial in enumerate(named):  # the best above its mark, the next below, …
            right = of(trial) > middle  # a name to the right of it would leave the axes
            panel.annotate(
                trial.name, (of(trial), _change(trial, findings)),
                xytext=(-7 if right else 7, -14 if number % 2 else 9), textcoords="offset points",
                ha="right" if right else "left", fontsize=7, color=_SOFT, parse_math=False,
            )  # fmt: skip
    panels[0].set_ylabel(f"change on the selection, {unit}".rstrip(", "), fontsize=9)
    panels[1].legend(fontsize=8, frameon=False, loc="lower left")
    figure.suptitle(
        f"{findings.model}: up and right is better; dashed: margin, bars: one standard error",
        fontsize=10,
        parse_math=False,
    )
    return figure


def _speed(trial: Trial) -> float:
    return trial.speed or 0.0


def _smaller(trial: Trial) -> float:
    return 1.0 / trial.size if trial.size else 0.0


def _to_name(findings: SearchFindings, shown: Sequence[Trial]) -> list[Trial]:
    """Trials of which there is room for a name."""
    place = {digest: number for number, digest in enumerate(findings.front)}
    named = sorted((t for t in shown if t.digest in place), key=lambda t: place[t.digest])
    return named[:_NAMED]


def parallel_plot(findings: SearchFindings) -> Any:
    """A line for each trial through what was chosen and what came of it: above is better."""
    from matplotlib.figure import Figure

    shown = [trial for trial in findings.trials if trial.objectives]
    names = [name for name in _dimensions(shown) if len({t.params.get(name) for t in shown}) > 1]
    results: list[tuple[str, list[float]]] = [
        ("times as fast", [_speed(trial) for trial in shown]),
        ("times smaller", [_smaller(trial) for trial in shown]),
        ("change" + (", pp" if findings.proportion else ""), [_change(t, findings) for t in shown]),
    ]
    columns = [_choices(name, shown) for name in names] + [_range(*each) for each in results]
    figure = Figure(figsize=(2.2 + 1.7 * len(columns), 4.8), layout="constrained")
    panel = figure.subplots()
    for kind in reversed(list(_COLOURS)):
        for trial, *places in zip(shown, *(places for _, places, _ in columns), strict=True):
            if findings.kind(trial) == kind:
                panel.plot(
                    range(len(columns)), places, color=_COLOURS[kind], label=_MEANS[kind],
                    linewidth=2.4 if kind == "registered" else 1.3,
                    alpha=1.0 if kind == "registered" else 0.75,
                )  # fmt: skip
    for x, (title, _, ticks) in enumerate(columns):
        panel.axvline(x, color=_SOFT, linewidth=0.8)
        for place, text in ticks:
            panel.text(
                x, place, f" {text}", fontsize=8, va="center", parse_math=False,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
            )  # fmt: skip
        panel.text(x, 1.07, title, fontsize=9, ha="center", fontweight="bold", parse_math=False)
    panel.set_xlim(-0.15, len(columns) - 0.45)
    panel.set_ylim(-0.05, 1.12)
    panel.axis("off")
    unique = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        unique.values(), unique.keys(), fontsize=8, frameon=False, loc="outside lower center",
        ncols=len(unique),
    )  # fmt: skip
    return figure


_Column = tuple[str, list[float], list[tuple[float, str]]]


def _dimensions(trials: Iterable[Trial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def _choices(name: str, trials: Sequence[Trial]) -> _Column:
    """Places of values that are words, and the words."""
    said = [str(trial.params.get(name, "–")) for trial in trials]
    known = list(dict.fromkeys(said))
    known.sort(key=lambda t: (t != "–", not t.isdigit(), int(t) if t.isdigit() else 0))
    place = {text: _share(i, len(known) - 1) for i, text in enumerate(known)}
    return name, [place[text] for text in said], [(p, text) for text, p in place.items()]


def _range(title: str, values: Sequence[float]) -> _Column:
    """Places of numbers, and their ends."""
    low, high = min(values), max(values)
    ticks = sorted({low, (low + high) / 2, high})
    return (
        title,
        [_share(v - low, high - low) for v in values],
        [(_share(t - low, high - low), f"{t:.2f}".replace("-", "\N{MINUS SIGN}")) for t in ticks],
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.5


def _change(trial: Trial, findings: SearchFindings) -> float:
    change = -trial.damage.drop if trial.damage else 0.0
    return 100.0 * change if findings.proportion else change
