"""Two runs of one model on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from ..core import numbers
from ..decision.noise import UNNAMED, NoiseRecord
from ..decision.rerun import Rerun, overall
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


def reruns_view(found: Mapping[str, Rerun]) -> RenderableType:
    """One model and its reruns, by what each did otherwise: how much they change, and how."""
    names = tuple(found)
    verdict = overall([each.verdict for each in found.values()])
    title = f"{content.SIGNS[verdict]} {verdict.value}"
    shown = table(
        "rerun", ("n", "right"), ("flipped", "right"), ("worse/better", "right"),
        ("change", "right"), ("largest difference", "right"), ("p", "right"), "",
    )  # fmt: skip
    for name in names:
        each = found[name]
        total, counted = each.forward.aggregate, each.worse + each.better
        shown.add_row(
            Text(name),
            numbers.count(each.n),
            f"{numbers.share(counted / each.n)} {_interval(each)}",
            f"{each.worse}/{each.better}",
            numbers.change(total.delta, proportion=total.proportion),
            f"{each.largest_difference:.4g}",
            numbers.p_value(each.p_value, threshold=each.alpha),
            each.verdict.value,
        )
    reasons = [f"{name}: {reason}" for name in names for reason in found[name].reasons]
    head = Text.assemble((title, f"bold {_COLOURS[verdict]}"), "  the model against its reruns")
    return Group(head, Text(), shown, Text(), _bullets(reasons))


def floor_view(record: NoiseRecord) -> RenderableType:
    """The noise floor in one sentence, with what it is good for."""
    floor = record.floor()
    reruns = len(floor.reruns)
    over = f"{reruns} reruns" if reruns > 1 else "one rerun"
    return Text(
        f"\nNoise floor: {numbers.share(floor.rate)} of {numbers.count(floor.n)} samples flip "
        f"[{numbers.share(floor.low)}, {numbers.share(floor.high)}], over {over}. Planning takes "
        f"{numbers.share(floor.upper)}."
    )


def _interval(found: Rerun) -> str:
    floor = NoiseRecord.of({UNNAMED: found}).floor()
    return f"[{numbers.share(floor.low)}, {numbers.share(floor.high)}]"


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
