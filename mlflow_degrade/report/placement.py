"""Where a model's nodes run, on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .. import _numbers as numbers
from ..runtime.placement import Placement
from .terminal import heading, table

_OPERATORS = 8


def placement_view(
    placement: Placement, model: str, *, operators: int = _OPERATORS
) -> RenderableType:
    """A row for each execution provider, and the operators that were not taken by the first.

    Parameters
    ----------
    placement : Placement
        From `mlflow_degrade.runtime.placement.find_placement`.
    model : str
        What the model is called.
    operators : int
        How many operators of a provider to name, the most frequent first.

    Returns
    -------
    renderable
        For `rich.console.Console.print`.
    """
    shown = table("provider", ("nodes", "right"), ("multiplications", "right"), "operators")
    for provider, found in placement.nodes.items():
        share = placement.share(provider)
        names = [f"{op} {numbers.count(n)}" for op, n in list(found.items())[:operators]]
        more = len(found) - len(names)
        shown.add_row(
            Text(provider),
            numbers.count(placement.count(provider)),
            "" if share is None else numbers.share(share),
            Text(", ".join(names) + (f" and {more} more" if more else "")),
        )
    return Group(
        heading(f"Placement of {model}"),
        shown,
        Text(f"\n{placement.sentence()}."),
        Text(
            f"Multiplications: in products of matrices, for one text of {placement.tokens} "
            "tokens; attention that is one node is not counted.",
            style="dim",
        ),
    )
