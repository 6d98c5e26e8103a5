"""What the passes of a recipe did to a model, on the terminal and as a note."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..core import numbers
from ..optimize.parity.decoder import Parity
from ..optimize.pass_table import PassResult
from .cost import CostFigures, cost_rows, interval_note, slower_phases
from .terminal import heading, table

# Of decoders, then of encoders and classifiers: a figure of parity, its title, how it is written.
_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("mean_kl", "mean KL, nats", lambda x: f"{x:.2g}"),
    ("top1_agreement", "same top token", numbers.share),
    ("mean_cosine", "mean cosine", lambda x: f"{x:.5f}"),
    ("min_cosine", "least cosine", lambda x: f"{x:.5f}"),
    ("max_abs_difference", "largest difference", lambda x: f"{x:.2g}"),
)


def pass_rows(results: Sequence[PassResult]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table of passes."""
    shown = [figure for figure in _FIGURES if hasattr(results[0].parity, figure[0])]
    titles = ["pass", "nodes", "size", "in float", *(title for _, title, _ in shown)]
    rows = []
    for result in results:
        size = numbers.quantity(result.size_bytes, "bytes")
        if result.simulated_bytes is not None:
            size += f" ({numbers.quantity(result.simulated_bytes, 'bytes')} simulated)"
        cells = [write(getattr(result.parity, name)) for name, _, write in shown]
        kept = "100.0%" if result.in_float is None else numbers.share(result.in_float)
        rows.append([result.name, numbers.count(result.nodes), size, kept, *cells])
    return titles, rows


def passes_view(results: Sequence[PassResult], cost: CostFigures | None = None) -> RenderableType:
    """Every pass with its nodes, size and parity, and what the result costs to run."""
    (first, *others), rows = pass_rows(results)
    shown = table(first, *((title, "right") for title in others))
    for name, *cells in rows:
        shown.add_row(Text(name), *cells)
    parts: list[RenderableType] = [shown, Text(), Text(parity_note(results), style="dim")]
    if priced := cost_rows(cost):
        columns = (results[0].name, results[-1].name)
        measured = table("measured", *((name, "right") for name in columns), "change")
        for row in priced:
            colour = "" if row.better is None else "green" if row.better else "red"
            measured.add_row(row.name, row.baseline, row.candidate, Text(row.relation, colour))
        parts += [heading("Cost, side by side"), measured]
        parts += [Text(f"\n{sentence}") for sentence in slower_phases(cost)]
        if note := interval_note(cost):
            parts.append(Text(f"\n{note}", style="dim"))
    return Group(*parts)


def passes_note(results: Sequence[PassResult], cost: CostFigures | None = None) -> str:
    """The same as Markdown, for the run's page in MLflow; of the cost only what changed."""
    titles, rows = pass_rows(results)
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    lines += [f"| {' | '.join([f'`{name}`', *cells])} |" for name, *cells in rows]
    lines += ["", parity_note(results), ""]
    lines += [f"- {row.name}: {row.relation}" for row in cost_rows(cost) if row.relation]
    lines += [f"- {sentence}" for sentence in slower_phases(cost)]
    return "\n".join(lines) + "\n"


def parity_note(results: Sequence[PassResult]) -> str:
    """What the figures of parity are relative to."""
    parity = results[0].parity
    if isinstance(parity, Parity):
        on = f"{parity.n_positions} positions"
    else:
        on = f"{parity.n_texts} texts"
    return f"Compared with the model before any pass, on {on}. A distance is no verdict."
