"""A cost benchmark on the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..bench.node_assignment import Placement
from ..bench.results import (
    LEVEL,
    PERCENTILES,
    PHASES,
    BenchmarkReport,
    ModelCost,
    PhaseTimes,
    Ratio,
    Shape,
    SpeedRatio,
    most_tokens,
)
from ..core import numbers
from ..decision.cost_evidence import Phase
from .terminal import heading, table

# Where a model's nodes run, on the terminal.

_OPERATORS = 8


def placement_view(
    placement: Placement, model: str, *, operators: int = _OPERATORS
) -> RenderableType:
    """A row for each execution provider, and the operators that were not taken by the first."""
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


_TITLES = {
    "prefill": "Prefill: reading the prompts until the first token is known",
    "decode": "Decode: each token after the first",
    "encode": "Encode: reading the texts until their vectors are known",
}
_COLOURS = ("#44546a", "#2f6fb4", "#c4761b", "#3d8b57", "#8a4f9e", "#b42318")
_BAR = 0.8
_NAME_LENGTH = 40


def benchmark_view(report: BenchmarkReport) -> RenderableType:
    """Everything about a benchmark that fits a terminal."""
    parts: list[RenderableType] = [_sizes(report)]
    for phase in PHASES:
        if any(times.phase == phase for model in report.models for times in model.times):
            parts += [heading(_TITLES[phase]), _phase(report, phase)]
    parts += [Text(), *(Text(sentence, style="dim") for sentence in _remarks(report))]
    return Group(*parts)


def speed_sentence(speed: SpeedRatio) -> str:
    """A ratio in words."""
    return f"{speed.label} {speed.phase}: {_ratio(speed.ratio)} as fast as the baseline"


def _sizes(report: BenchmarkReport) -> RenderableType:
    names = ["files", "smaller", "memory, loaded", "running, above"]
    on_gpu = any(model.memory.device_loaded_bytes is not None for model in report.models)
    names += ["GPU, loaded", "running, above"] * on_gpu
    shown = table("model", *((name, "right") for name in names))
    for model in report.models:
        memory = model.memory
        taken = [memory.loaded_bytes, memory.peak_above_loaded_bytes]
        if on_gpu:
            taken += [memory.device_loaded_bytes, memory.device_peak_above_loaded_bytes]
        shown.add_row(
            Text(_cut(model.label)),
            numbers.quantity(model.size_bytes, "bytes"),
            "" if model is report.baseline else numbers.times(report.compression(model)),
            *map(_bytes, taken),
        )
    return shown


def _phase(report: BenchmarkReport, phase: Phase) -> RenderableType:
    read = "text" if phase == "encode" else "prompt"
    names = ["batch", read, *(f"p{p} ms" for p in PERCENTILES), "tokens/s"]
    names += ["of roof"] * (report.roof is not None) + ["J/token"] * bool(report.energy)
    names += [f"× baseline [{100 * LEVEL:g}%]"] * (len(report.models) > 1)
    shown = table("model", *((name, "right") for name in names))
    speeds = {(s.label, s.shape): s.ratio for s in report.ratios() if s.phase == phase}
    for shape in report.shapes:
        for model in report.models:
            times = model.of(phase, shape)
            if times is not None:
                ratio = speeds.get((model.label, shape))
                cells = _cells(report, model, times)
                cells += [""] * (len(report.models) > 1 and ratio is None)
                shown.add_row(Text(_cut(model.label)), *cells, *([_ratio(ratio)] if ratio else []))
        shown.add_section()
    return shown


def _cells(report: BenchmarkReport, model: ModelCost, times: PhaseTimes) -> list[str]:
    cells = [f"{times.shape.batch_size}", numbers.count(times.shape.length)]
    cells += [numbers.quantity(times.latency_ms(percent), "") for percent in PERCENTILES]
    cells.append(numbers.quantity(times.tokens_per_second, ""))
    utilization = report.utilization(model, times)
    if utilization is not None:
        cells.append(f"{100 * utilization:.0f}%")
    if report.energy:
        cells.append(numbers.quantity(sum(times.joules_per_token.values()), ""))
    return cells


def _remarks(report: BenchmarkReport) -> list[str]:
    """How it was measured, and what was not."""
    where = f"{report.processor}, {report.threads} thread(s)"
    most = most_tokens(report.shapes)
    found = [
        f"{report.rounds} interleaved rounds on {report.device}: {where}.",
        _percentiles(report),
        "Memory: each model alone in a process; running, above: how much more at "
        f"batch {most.batch_size}, {numbers.count(most.length)} tokens.",
    ]
    if len(report.models) > 1:
        found.append("× baseline: median of the ratios of speeds within rounds; above 1 is faster.")
    if report.roof is not None:
        found.append(
            f"Roof: {report.roof.bytes_per_second / 1e9:.1f} GB/s read and "
            f"{report.roof.flops_per_second / 1e9:.0f} GFLOP/s in float32, both measured here."
        )
    if report.energy:
        found.append(f"Energy of whole processors and GPUs, by {', '.join(report.energy)}.")
    missing = [f"not measured: {reason}" for reason in report.not_measured]
    by_reason: dict[str, list[str]] = {}
    for model in report.models:
        for reason in model.not_measured:
            by_reason.setdefault(reason, []).append(model.label)
    for reason, labels in by_reason.items():
        of = "" if len(labels) == len(report.models) else f" ({', '.join(labels)})"
        missing.append(f"not measured: {reason}{of}")
    return found + missing


def _percentiles(report: BenchmarkReport) -> str:
    """Of how many calls they are."""
    calls = {times.phase: len(times.calls) for model in report.models for times in model.times}
    listed = ", and of ".join(
        f"{calls[phase]} calls of {phase}" for phase in PHASES if phase in calls
    )
    return f"Percentiles of {listed}."


def benchmark_figure(report: BenchmarkReport) -> Any:
    """Tokens per second of every model on every shape, with the ratios to the baseline."""
    from matplotlib.figure import Figure

    phases = [p for p in PHASES if any(m.of(p, s) for m in report.models for s in report.shapes)]
    bars = len(report.models) * len(report.shapes)
    figure = Figure(figsize=(11, 1.7 + 0.3 * bars + 0.2 * len(report.shapes)), layout="constrained")
    panels = figure.subplots(1, len(phases), squeeze=False, sharey=True)[0]
    for axes, phase in zip(panels, phases, strict=True):
        _draw(axes, report, phase)
    panels[0].set_yticks(
        range(len(report.shapes)),
        [f"batch {s.batch_size}\n{numbers.count(s.length)} tokens" for s in report.shapes],
    )
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_fontsize(9)
    return figure


def _draw(axes: Any, report: BenchmarkReport, phase: Phase) -> None:
    speeds = {(s.label, s.shape): s.ratio for s in report.ratios() if s.phase == phase}
    height = _BAR / len(report.models)
    for number, model in enumerate(report.models):
        drawn = _measured(model, phase, report.shapes)
        # The middle bar of a group stands at the group's tick.
        offset = (number - (len(report.models) - 1) / 2) * height
        places = [report.shapes.index(times.shape) + offset for times in drawn]
        values = [times.tokens_per_second for times in drawn]
        colour = _COLOURS[number % len(_COLOURS)]
        bars = axes.barh(places, values, 0.9 * height, color=colour, label=_cut(model.label))
        ratios = [speeds.get((model.label, times.shape)) for times in drawn]
        texts = [
            numbers.quantity(value, "") + (f"   {_ratio(ratio)}" if ratio else "")
            for value, ratio in zip(values, ratios, strict=True)
        ]
        axes.bar_label(bars, texts, padding=4, fontsize=8)
    # Room for what stands behind the longest bar.
    axes.set_xlim(0, 1.75 * axes.dataLim.x1)
    of = f"; × baseline, {100 * LEVEL:g}% intervals" if speeds else ""
    axes.set_title(f"{phase}, tokens per second{of}", fontsize=10, loc="left")
    axes.margins(y=0.02)
    axes.tick_params(labelsize=9, left=False)
    axes.spines[["right", "top", "left"]].set_visible(False)


def _measured(model: ModelCost, phase: Phase, shapes: Sequence[Shape]) -> list[PhaseTimes]:
    return [times for shape in shapes if (times := model.of(phase, shape)) is not None]


def _ratio(ratio: Ratio) -> str:
    text = numbers.times(ratio.estimate)
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _bytes(value: int | None) -> str:
    return "–" if value is None else numbers.quantity(value, "bytes")


def _cut(text: str) -> str:
    return text if len(text) <= _NAME_LENGTH else "…" + text[1 - _NAME_LENGTH :]
