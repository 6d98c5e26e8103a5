"""What baseline and candidate cost to run, side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from ..bench.results import LEVEL
from ..core import numbers
from ..optimize.parity.decoder import Parity
from ..optimize.pass_table import PassResult
from .terminal import heading, table

# What the passes of a recipe did to a model, on the terminal and as a note.

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


RATIO = "×"
"""Unit of a candidate's figures that relate it to the baseline, such as ``speed_ratio/decode``."""

_SPEED = "speed_ratio/"

#: Per side, "baseline" and "candidate": metric name to (value, unit).
CostFigures = Mapping[str, Mapping[str, tuple[float, str]]]

# By the first part of a metric's name: what a lower and what a higher value means to people, and
# whether higher is better.
_WORDS: Mapping[str, tuple[str, str, bool]] = {
    "size": ("smaller", "larger", False),
    "latency": ("faster", "slower", False),
    "time": ("faster", "slower", False),
    "throughput": ("slower", "faster", True),
    "memory": ("less", "more", False),
    "energy": ("less", "more", False),
}
_ORDER = tuple(_WORDS)
_BRIEF = {
    "size": "size/bytes",
    "prefill": "throughput/prefill_tokens_per_second",
    "decode": "throughput/decode_tokens_per_second",
    "encode": "throughput/encode_tokens_per_second",
    "memory": "memory/loaded_bytes",
}
_UNIT_IN_NAME = re.compile(r"(^|_)(bytes|ms|seconds|s|([a-z]+_)?per_(second|s))$")
# Timings on a shared machine repeat to about this; smaller changes are not worth a colour.
_SAME = 0.02


@dataclass(frozen=True)
class CostRow:
    """One measured quantity of both sides."""

    name: str  # In words, e.g. ``throughput: prefill``.
    baseline: str
    candidate: str  # Value with unit; an en dash where it was not measured.
    # In words, e.g. ``2.03× smaller`` or, by ratios within rounds, ``2.1× faster [1.9, 2.5]``;
    # empty where there is nothing to compare.
    relation: str
    # Whether the candidate is better; None when equal within 2%, when the interval contains 1, or
    # unknown.
    better: bool | None


def cost_rows(cost: CostFigures | None) -> list[CostRow]:
    """Rows of the cost table: size, latency, throughput, memory, energy, then the rest."""
    if not cost:
        return []
    left, right = cost.get("baseline", {}), cost.get("candidate", {})
    ratios = _ratios(right)
    names = [name for name in dict.fromkeys([*left, *right]) if name not in ratios]
    names.sort(key=_rank)  # stable: within a group the caller's order stays
    return [_row(name, left.get(name), right.get(name), ratios) for name in names]


def costs_in_brief(cost: CostFigures | None) -> dict[str, str]:
    """Size, speed and memory in a few words each, e.g. ``265 MB, 2.03× smaller``."""
    right = {} if not cost else cost.get("candidate", {})
    found = {}
    for word, name in _BRIEF.items():
        if name in right:
            row = _row(
                name, (cost or {}).get("baseline", {}).get(name), right[name], _ratios(right)
            )
            found[word] = f"{row.candidate}, {row.relation}" if row.relation else row.candidate
    if (simulated := right.get("size/simulated_bytes")) is not None:
        found["size"] = f"{_shown(simulated)}, calculated"
    return found


def interval_note(cost: CostFigures | None) -> str:
    """What brackets in the cost table mean; empty where there are none."""
    if not cost or not any(name.endswith("_ci_low") for name in cost.get("candidate", {})):
        return ""
    return (
        "Throughput is related by the median of the ratios of speeds within rounds that ran both "
        f"models, with its {100 * LEVEL:g}% interval (no colour: it contains 1); the quotient of "
        "the two columns may differ."
    )


def slower_phases(cost: CostFigures | None) -> list[str]:
    """A sentence for each phase in which the candidate is slower than the baseline for certain."""
    figures = {} if not cost else cost.get("candidate", {})
    found = []
    for name, (value, unit) in figures.items():
        low, high = (figures.get(f"{name}_ci_{end}", (math.nan, ""))[0] for end in ("low", "high"))
        if name.startswith(_SPEED) and unit == RATIO and high < 1:
            phase = name.removeprefix(_SPEED)
            ratio = f"{value:.2f}× [{low:.2f}, {high:.2f}]"
            found.append(f"Slower in {phase}: {ratio} the baseline's speed.")
    return found


def gain(name: str, ratio: float) -> float:
    """A ratio candidate/baseline turned so that above 1 is better: times faster, times smaller."""
    known = _WORDS.get(_group(name))
    return ratio if known is None or known[2] else 1 / ratio


def in_words(name: str) -> str:
    """A name of `relative_cost` for people, e.g. ``decode throughput``."""
    group, _, rest = name.removeprefix("relative/").partition("/")
    return f"{rest.replace('_', ' ')} {group}".strip()


def relative_cost(cost: CostFigures | None) -> dict[str, float]:
    """The candidate's cost divided by the baseline's, for what was measured on both sides."""
    if not cost:
        return {}
    left, right = cost.get("baseline", {}), cost.get("candidate", {})
    found = {}
    for name, (value, unit) in left.items():
        other = right.get(name)
        if other is None or other[1] != unit or not (0 < value < math.inf and other[0] > 0):
            continue
        group, _, rest = name.partition("/")
        rest = _without_unit(rest)
        found["relative/" + "/".join(part for part in (group, rest) if part)] = other[0] / value
    return found


def _ratios(figures: Mapping[str, tuple[float, str]]) -> dict[str, float]:
    return {name: value for name, (value, unit) in figures.items() if unit == RATIO}


def _row(
    name: str,
    baseline: tuple[float, str] | None,
    candidate: tuple[float, str] | None,
    ratios: Mapping[str, float],
) -> CostRow:
    relation, better = "", None
    group, _, rest = name.partition("/")
    speed = f"{_SPEED}{_without_unit(rest)}"
    if group == "throughput" and f"{speed}_ci_low" in ratios:
        ends = ratios[f"{speed}_ci_low"], ratios[f"{speed}_ci_high"]
        relation, better = _speed(ratios[speed], *ends)
    elif baseline and candidate and baseline[1] == candidate[1]:
        relation, better = _relate(name, baseline[0], candidate[0])
    unit = (baseline or candidate or (0.0, ""))[1]
    return CostRow(_in_words(name, unit), _shown(baseline), _shown(candidate), relation, better)


def _relate(name: str, baseline: float, candidate: float) -> tuple[str, bool | None]:
    if not (0 < baseline < math.inf and 0 < candidate < math.inf):
        return "", None
    ratio = candidate / baseline
    if abs(ratio - 1) < _SAME:
        return "about the same", None
    if _group(name) not in _WORDS:
        return numbers.times(ratio), None
    lower, higher, higher_is_better = _WORDS[_group(name)]
    factor = numbers.times(max(ratio, 1 / ratio))
    return f"{factor} {higher if ratio > 1 else lower}", (ratio > 1) == higher_is_better


def _speed(estimate: float, low: float, high: float) -> tuple[str, bool | None]:
    """A ratio of speeds in words, all three numbers turned so that they mean what the word says."""
    word, ends = "faster", (low, high)
    if estimate < 1:
        word, estimate, ends = "slower", 1 / estimate, (1 / high, 1 / low)
    said = "about the same" if estimate - 1 < _SAME else f"{numbers.times(estimate)} {word}"
    return f"{said} [{ends[0]:.2f}, {ends[1]:.2f}]", None if low <= 1 <= high else low > 1


def _shown(measured: tuple[float, str] | None) -> str:
    if measured is None or not math.isfinite(measured[0]):
        return "–"
    return numbers.quantity(*measured)


def _without_unit(rest: str) -> str:
    """A metric's name without its unit, also one in the middle, as in ``first_token_ms_p50``."""
    return _UNIT_IN_NAME.sub("", rest).replace("_ms_", "_").strip("_")


def _group(name: str) -> str:
    return name.partition("/")[0]


def _rank(name: str) -> int:
    group = _group(name)
    return _ORDER.index(group) if group in _ORDER else len(_ORDER)


def _in_words(name: str, unit: str) -> str:
    group, _, rest = name.partition("/")
    if unit:  # it stands beside the value already
        rest = _without_unit(rest)
    detail = rest.replace("_", " ").replace("rss", "RSS")
    return f"{group}: {detail}" if detail else group
