"""A decision on the terminal: verdict, tables, flipped samples."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..core import numbers
from ..decision.likelihoods import LikelihoodFindings
from ..decision.results import Decision, Verdict
from ..samples.pairing import PairedScores
from . import content, findings, likelihoods, tables
from .findings import SubgroupFindings
from .recommendations import remedies
from .samples import FlippedSample, caption, shorten, worst_flips

if TYPE_CHECKING:
    from ..decision.noise import NoiseFindings

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
_TEXT_LENGTH = 240
# Columns of the table of tasks that are left out, in this order, where it is too wide.
_DISPENSABLE = (
    ("metric",),
    ("p_adjusted",),
    ("baseline", "candidate"),
    ("flips",),
    ("interval",),
    ("n",),
)
_LONGEST_NAME = 40
# Without a terminal there is no width to keep to, and narrow columns cannot be read.
_WIDTH_WITHOUT_TERMINAL = 110


def console(*, stderr: bool = False) -> Console:
    """A console that is wide enough for the tables where its width is unknown."""
    found = Console(stderr=stderr, highlight=False)
    if found.is_terminal:
        return found
    # Who says COLUMNS knows the width; rich then takes it.
    width = None if os.environ.get("COLUMNS", "").isdigit() else _WIDTH_WITHOUT_TERMINAL
    return Console(file=cast(TextIO, _Trimmed(stderr)), highlight=False, width=width)


class _Trimmed:
    """A standard stream without the blanks that tables end their lines with."""

    def __init__(self, stderr: bool) -> None:
        self._stderr = stderr

    def _stream(self) -> TextIO:
        # Looked up at each use, as rich does: who redirects a stream replaces it.
        return sys.stderr if self._stderr else sys.stdout

    def write(self, text: str) -> int:
        self._stream().write(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


def as_text(shown: RenderableType, *, width: int = 100) -> str:
    """What a console would show, as plain lines."""
    text = io.StringIO()
    Console(file=text, highlight=False, width=width, color_system=None).print(shown)
    return re.sub(r"[ \t]+$", "", text.getvalue(), flags=re.MULTILINE)


def decision_view(
    decision: Decision,
    paired: PairedScores | None = None,
    *,
    samples: int = 3,
    scheme: str | None = None,
    noise: NoiseFindings | None = None,
) -> RenderableType:
    """Everything about a decision that fits a terminal."""
    parts: list[RenderableType] = [_verdict(decision), _TaskTable(decision)]
    parts.append(Text("\n" + "\n".join(content.glossary(decision)), style="dim"))
    if decision.requirements:
        parts += [heading(tables.REQUIREMENTS), _requirements(decision)]
        if note := tables.requirements_note(decision):
            parts.append(Text(f"\n{note}", style="dim"))
    sentences = [
        content.metrics_sentence(decision),
        *content.judge_sentences(decision),
        content.power_sentence(decision, noise),
    ]
    parts.append(Text("\n" + "\n".join(filter(None, sentences))))
    answers = content.answers_sentence(decision)
    if answers is not None:
        parts.append(Text(answers))
    if noise is not None and noise.beyond is not None:
        parts += [heading(content.BEYOND_NOISE), _bullets(noise.beyond.sentences())]
        parts.append(Text(content.NO_VERDICT, style="dim"))
    if (where := content.processor_sentence(decision)) is not None:
        parts.append(Text(where, style="dim"))
    changes = remedies(decision, scheme)
    if changes:
        parts += [heading("What would have to change"), _bullets(changes)]
    if paired is not None and samples > 0:
        flips = worst_flips(decision, paired, samples)
        parts += [heading("Flipped samples"), Text(caption(decision, len(flips)))]
        parts += [_sample(flip) for flip in flips]
    notes = tables.notes(decision)
    if notes:
        parts += [heading("Notes"), _bullets(notes)]
    return Group(*parts)


def subgroup_view(found: SubgroupFindings, decision: Decision) -> RenderableType:
    """Whether damage hides behind the mean, and in which region of which feature."""
    shown = table(
        "feature",
        "worst where",
        ("worse/better", "right"),
        ("pp there (elsewhere)", "right"),
        ("corrected p", "right"),
    )
    for row in findings.finding_rows(found):
        shown.add_row(
            Text(_one_line(row.feature)),
            Text(_one_line(row.where)),
            row.flips.replace(" ", ""),
            row.change,
            row.p,
            style="red" if row.found else "",
        )
    return Group(
        heading("Where the change sits"),
        Text(findings.summary(found, decision)),
        Text(),
        shown,
        Text(f"\n{findings.CAVEAT} {findings.coverage(found)}", style="dim"),
    )


def likelihood_view(found: LikelihoodFindings) -> RenderableType:
    """How log-likelihoods changed, or why that is not known."""
    parts: list[RenderableType] = []
    if listed := likelihoods.rows(found):
        shown = table("task", *((name, "right") for name in likelihoods.HEAD[1:]))
        for row in listed:
            name = Text(_one_line(row.task))
            shown.add_row(name, *row.cells[1:], style="red" if row.worse else "")
        explained = "\n".join((*likelihoods.GLOSSARY, likelihoods.CAVEAT))
        parts += [heading(likelihoods.TITLE), Text(likelihoods.summary(found)), Text(), shown]
        parts.append(Text(f"\n{explained}", style="dim"))
    if said := likelihoods.missing(found):
        parts.append(Text(f"\n{said}", style="dim"))
    return Group(*parts)


def _verdict(decision: Decision) -> RenderableType:
    colour = _COLOURS[decision.verdict]
    baseline, candidate = content.sides(decision)
    lines = [
        Text(content.headline(decision), style="bold"),
        *(Text(f"• {reason}") for reason in decision.reasons),
    ]
    title = f"{content.SIGNS[decision.verdict]} {decision.verdict.value}"
    return Panel(
        Group(*lines),
        title=Text(title, style=f"bold {colour}"),
        title_align="left",
        subtitle=Text(f"{candidate} against {baseline}", style="dim"),
        subtitle_align="right",
        border_style=colour,
        box=box.ROUNDED,
    )


def _requirements(decision: Decision) -> RenderableType:
    first, *others = tables.REQUIREMENT_HEAD
    shown = table(first, *((name, "right") for name in others[:-1]), others[-1])
    colours = {"met": "green", "missed": "red", "undecided": "yellow"}
    for *cells, status in tables.requirement_rows(decision):
        shown.add_row(*map(Text, cells), Text(status, colours[status]))
    return shown


class _TaskTable:
    """The tasks and their total; narrow terminals get fewer columns, never cut numbers."""

    def __init__(self, decision: Decision) -> None:
        rows = [(tables.task_row(decision, task), task) for task in content.ordered_tasks(decision)]
        self._names = [(_one_line(r.name), f" ({r.standing})" * bool(r.standing)) for r, _ in rows]
        self._cells = [_cells(row) for row, _ in rows]
        self._styles = [
            "red" if task.guilty else "dim" if task.tier == "advisory" else "" for _, task in rows
        ]
        self._names.append((content.total_name(decision), f" ({decision.aggregate.aggregation})"))
        self._cells.append(_cells(tables.total_row(decision)))
        self._titles = {
            "metric": "metric", "n": "n",
            "baseline": "baseline", "candidate": "candidate", "change": "change",
            "interval": f"{numbers.level(decision.policy.shown_confidence)} interval",
            "flips": "worse/better", "p": "p", "p_adjusted": "adjusted p",
        }  # fmt: skip

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        widths = {
            name: max(len(title), *(len(cells[name]) for cells in self._cells))
            for name, title in self._titles.items()
        }
        longest = max(len(name) + len(mark) for name, mark in self._names)
        for dispensable in _DISPENSABLE:
            if min(_LONGEST_NAME, longest) + _taken(widths) <= options.max_width:
                break
            for name in dispensable:
                del widths[name]
        shown = table("task", *((self._titles[name], "right") for name in widths))
        # The name gives way to the numbers, and to what is said of the task.
        room = max(1, min(longest, options.max_width - _taken(widths)))
        names = [_fit(name, room - len(mark)) + mark for name, mark in self._names]
        shown.columns[0].no_wrap, shown.columns[0].width = True, room
        *tasks, total = zip(names, self._cells, [*self._styles, "bold"], strict=True)
        for name, cells, style in tasks:
            shown.add_row(Text(name), *(cells[c] for c in widths), style=style)
        shown.add_section()
        name, cells, style = total
        shown.add_row(Text(name), *(cells[column] for column in widths), style=style)
        yield shown


def _fit(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(0, length - 1)] + "…"


def _taken(widths: Mapping[str, int]) -> int:
    """What columns take, with the blanks and the line between them."""
    return sum(width + 3 for width in widths.values())


def _cells(row: tables.TaskRow) -> dict[str, str]:
    return {
        "metric": row.metric,
        "n": row.n,
        "baseline": row.baseline,
        "candidate": row.candidate,
        "change": f"{row.delta} {row.unit}".rstrip(),
        "interval": row.interval,
        "flips": f"{row.regressions}/{row.improvements}",
        "p": row.p,
        "p_adjusted": row.p_adjusted,
    }


def _sample(flip: FlippedSample) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    turn = f"{flip.baseline_score} → {flip.candidate_score}"
    grid.add_row(Text(_one_line(flip.task)), Text(f"{_one_line(flip.doc_id)}: {turn}"))
    texts = (
        ("prompt", flip.prompt),
        ("expected", flip.target),
        ("baseline", flip.baseline),
        ("candidate", flip.candidate),
    )
    logged = [(name, text) for name, text in texts if text is not None]
    for name, text in logged:
        grid.add_row(name, Text(_one_line(text)))
    return Padding(grid, (0, 0, 1 if logged else 0, 2))


def _one_line(text: str) -> str:
    # What a model wrote must not move the cursor or recolour the terminal.
    plain = "".join(c if c.isprintable() else " " for c in text)
    return shorten(" ".join(plain.split()), _TEXT_LENGTH)


def table(*columns: str | tuple[str, str]) -> Table:
    """A plain table; a column is a name, or a name and its alignment."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        name, justify = column if isinstance(column, tuple) else (column, "left")
        shown.add_column(
            name,
            justify="right" if justify == "right" else "left",
            no_wrap=justify == "right",
            overflow="fold",
        )
    return shown


def heading(text: str) -> Text:
    """The title of a section."""
    return Text(f"\n{text}", style="bold")


def _bullets(items: Sequence[str]) -> Group:
    return Group(*(Text(f"• {item}") for item in items))
