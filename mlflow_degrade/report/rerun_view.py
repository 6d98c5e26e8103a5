"""Two runs of one model on the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from ..core import numbers
from ..decision.rerun import Rerun
from ..decision.results import Verdict
from ..samples.origin import Origin
from ..samples.pairing import PairedTask
from . import content
from .terminal import _COLOURS, _bullets, _one_line, heading, table


def rerun_view(found: Rerun) -> RenderableType:
    """Everything about two runs of one model, from `mlflow_degrade.decision.rerun.compare_runs`."""
    title = f"{content.SIGNS[found.verdict]} {found.verdict.value}"
    head = Text.assemble((title, f"bold {_COLOURS[found.verdict]}"), ("  ", ""), _headline(found))
    shown = table(
        "task", ("n", "right"), ("flipped", "right"), ("worse/better", "right"),
        ("change", "right"), ("largest difference", "right"),
    )  # fmt: skip
    for task in found.paired.tasks:
        shown.add_row(Text(_one_line(task.name)), *_cells(task))
    parts: list[RenderableType] = [head, _bullets(found.reasons), Text(), shown, heading("Where")]
    names = ("first", "second")
    parts.append(_bullets([f"{n}: {_where(o)}" for n, o in zip(names, found.origins, strict=True)]))
    if found.notes:
        parts += [heading("Notes"), _bullets(found.notes)]
    return Group(*parts)


def _headline(found: Rerun) -> str:
    """How many answers change, and whether that means anything."""
    changed = found.worse + found.better
    if not changed and not found.largest_difference:
        flips = f"No score of {numbers.count(found.n)} samples changes"
    else:
        share = numbers.share(changed / found.n)
        flips = (
            f"{numbers.count(changed)} of {numbers.count(found.n)} samples ({share}) change: "
            f"{numbers.count(found.worse)} worse, {numbers.count(found.better)} better in the "
            "second run"
        )
    ending = {
        Verdict.PASS: "the model is as good in both.",
        Verdict.FAIL: "the two are not equally good.",
        Verdict.INCONCLUSIVE: "whether the model is as good in both, so few samples cannot tell.",
    }
    return f"{flips}; {ending[found.verdict]}"


def _cells(task: PairedTask) -> tuple[str, ...]:
    flips = task.regressions + task.improvements
    largest = float(np.abs(task.difference).max())
    return (
        numbers.count(task.n),
        numbers.share(flips / task.n),
        f"{task.regressions}/{task.improvements}",
        numbers.change(float(task.difference.mean()), proportion=task.proportion),
        f"{largest:.4g}",
    )


def _where(origin: Origin | None) -> str:
    return "not known" if origin is None else str(origin.processor)
