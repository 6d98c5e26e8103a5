"""Markdown: the note on MLflow's run page, and the report as an artifact.

Both are read by several dialects (MLflow renders notes with showdown's GitHub flavour, where a line
break is a break and ``@name`` a link; artifacts with GitHub-flavoured Markdown). Names
are escaped for both, and texts of samples stand in code blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..core import numbers
from ..decision.likelihoods import LikelihoodFindings
from ..decision.results import Decision
from ..samples.pairing import PairedScores
from . import content, findings, likelihoods, tables
from .content import Provenance
from .cost import CostFigures, cost_rows, costs_in_brief, interval_note, slower_phases
from .findings import SubgroupFindings
from .next_steps import lines_to_serve, next_steps
from .recommendations import remedies
from .samples import FlippedSample, caption, is_address, worst_flips

if TYPE_CHECKING:
    from ..decision.noise import NoiseFindings

# MLflow's limit for a tag is 8,000 characters; 5,000 is what people still scroll through.
_NOTE_LENGTH = 4_990
# The note shows so many reasons, remedies and costs, each cut to so many characters.
_BRIEF = 5
_BRIEF_LENGTH = 280
_NAME_LENGTH = 60
_SAMPLES_SHOWN = 12
_CARD_TABLE = 2_500
VERSION = "<version>"
"""In a `model_card`, the number that a version gets."""
_NOTE_ROWS = 16
_NOTE_ALIGN = "lrrrrrrl"
_LEFT_OUT = "\n\n… and {} more tasks in `report.html`."

_TASKS_LEGEND = (
    "Δ is candidate − baseline, positive is better. "
    "Worse/better counts samples. Scores: baseline → candidate."
)
_NUMBERS_LEGEND = (
    "Adjusted p: Westfall–Young step-down over the gating tasks; at most alpha if guilty. "
    "Detectable: the smallest drop these samples would reveal with the policy's power. p (margin): "
    "small values rule out a drop of the margin in brackets. Unscored samples: baseline "
    "only/candidate only/both."
)


def summary_note(
    decision: Decision,
    *,
    cost: CostFigures | None = None,
    provenance: Provenance | None = None,
    subgroups: SubgroupFindings | None = None,
    noise: NoiseFindings | None = None,
) -> str:
    """The note on the run page: what was decided, why, and what would have to change."""
    before = [f"{content.SIGNS[decision.verdict]} **{decision.verdict.value}**: {_plain(decision)}"]
    before += _bullets(_brief(decision.reasons))
    after = [
        *_bullets(content.judge_sentences(decision)),
        " ".join(map(_text, content.glossary(decision))),
    ]
    after += [content.power_sentence(decision, noise), *_answers(decision)]
    changes = remedies(decision, (provenance or {}).get("scheme"))
    if changes:
        after += ["**What would have to change**", *_bullets(_brief(changes))]
    priced = [row for row in cost_rows(cost) if row.relation][:_BRIEF]
    if priced:
        listed = "; ".join(f"{row.name} {row.candidate} ({row.relation})" for row in priced)
        after.append(_text(" ".join([f"Cost: {listed}.", *slower_phases(cost)])))
    if subgroups is not None and any(feature.found for feature in subgroups.features):
        sentence = _cut(findings.summary(subgroups, decision), _BRIEF_LENGTH)
        after.append(f"{_text(sentence)} ({content.NO_VERDICT})")
    registered = content.registration(provenance)
    if registered:
        after.append(_text(registered))
    after += _next(decision, provenance)
    after.append("Everything else is in `report.html` and `evidence/decision.json`.")
    room = _NOTE_LENGTH - len("\n\n".join([*before, "", *after]))
    note = "\n\n".join([*before, _fitting_table(decision, room), *after]) + "\n"
    return _cut(note, _NOTE_LENGTH)


def model_card(
    decision: Decision,
    name: str,
    *,
    made_by: str = "",
    cost: CostFigures | None = None,
    report: str = "",
    engine_files: str | None = None,
) -> str:
    """The description of a registered version; `VERSION` stands for its number.

    `report` is the address of the full report in MLflow's pages; `engine_files` says where files of
    another engine are in the model.
    """
    version = f"models:/{name}/{VERSION}"
    parts = [f"{content.SIGNS[decision.verdict]} **{decision.verdict.value}**: {_plain(decision)}"]
    baseline, candidate = content.sides(decision)
    parts.append(f"{_text(made_by or candidate)}, against {_text(baseline)}.")
    parts.append(_fitting_table(decision, _CARD_TABLE))
    if priced := costs_in_brief(cost):
        parts.append(_text("; ".join(f"{word}: {said}" for word, said in priced.items())) + ".")
    load, serve = lines_to_serve(version, engine_files)
    lines = f"{load}    # load\n{serve}    # serve\n"
    lines += f"mlflow-degrade verify {version}    # does the verdict hold for these files?"
    parts.append(_fence(lines))
    if report:
        parts.append(f"[Why, which tasks, which samples: the report]({report})")
    return "\n\n".join(parts) + "\n"


def report(
    decision: Decision,
    paired: PairedScores,
    *,
    cost: CostFigures | None = None,
    provenance: Provenance | None = None,
    subgroups: SubgroupFindings | None = None,
    likelihood: LikelihoodFindings | None = None,
    noise: NoiseFindings | None = None,
) -> str:
    """The full report as one Markdown file without images."""
    baseline, candidate = content.sides(decision)
    parts = [
        f"# {content.SIGNS[decision.verdict]} {decision.verdict.value}: {_text(candidate)} against "
        f"{_text(baseline)}",
        f"**{_plain(decision)}**",
        *_bullets(decision.reasons),
    ]
    changes = remedies(decision, (provenance or {}).get("scheme"))
    if changes:
        parts += ["## What would have to change", *_bullets(changes)]
    registered = content.registration(provenance)
    if registered:
        parts.append(_text(registered))
    if steps := _next(decision, provenance):
        parts += ["## Next", *steps]
    parts += _requirements(decision)
    parts += ["## Tasks", _tasks_table(decision), _TASKS_LEGEND]
    if judged := content.judge_sentences(decision):
        parts += ["## Judge and labels", *_bullets(judged)]
    parts += _bullets(content.glossary(decision))
    parts += ["## Power", content.power_sentence(decision, noise), *_answers(decision)]
    if noise is not None and noise.beyond is not None:
        parts += [f"## {content.BEYOND_NOISE}", *_bullets(noise.beyond.sentences())]
        parts.append(content.NO_VERDICT)
    if subgroups is not None:
        parts += _subgroups(subgroups, decision)
    if likelihood is not None:
        parts += _likelihoods(likelihood)
    parts += ["## All numbers", _numbers_table(decision), _NUMBERS_LEGEND]
    priced = cost_rows(cost)
    if priced:
        rows = [(row.name, row.baseline, row.candidate, row.relation) for row in priced]
        parts += ["## Cost", _table(("", "baseline", "candidate", "candidate is"), rows, "lrrl")]
        parts += filter(None, [" ".join(slower_phases(cost)), interval_note(cost)])
    samples = worst_flips(decision, paired, _SAMPLES_SHOWN)
    parts += ["## Flipped samples", caption(decision, len(samples)), *_samples(samples)]
    notes = tables.notes(decision)
    if notes:
        parts += ["## Notes", *_bullets(notes)]
    parts += ["## Policy", _fence(tables.policy_text(decision), "yaml")]
    facts = [(_text(name), _code(value)) for name, value in
             tables.provenance_rows(decision, provenance)]  # fmt: skip
    parts += ["## Provenance", _table(("", ""), facts, "ll")]
    return "\n\n".join(parts) + "\n"


def _next(decision: Decision, provenance: Provenance | None) -> list[str]:
    """What to do now: sentences, each with its line as a block to copy."""
    steps = next_steps(decision, provenance)
    return [part for step in steps for part in (f"**{_text(step.sentence)}**", _fence(step.line))]


def pull_request_summary(decision: Decision, noise: NoiseFindings | None = None) -> str:
    """What a reviewer reads: verdict, reasons, the tasks, and what would have to change."""
    baseline, candidate = content.sides(decision)
    parts = [
        f"### {content.SIGNS[decision.verdict]} {decision.verdict.value}: {_text(candidate)} "
        f"against {_text(baseline)}",
        f"**{_plain(decision)}**",
        *_bullets(_brief(decision.reasons)),
        *_requirements(decision, "####"),
        _tasks_table(decision),
        content.power_sentence(decision, noise),
    ]
    changes = remedies(decision)
    if changes:
        parts += ["**What would have to change**", *_bullets(_brief(changes))]
    parts.append(
        f"<details><summary>What the columns mean</summary>\n\n{_TASKS_LEGEND}\n\n</details>"
    )
    return "\n\n".join(parts) + "\n"


def _requirements(decision: Decision, level: str = "##") -> list[str]:
    if not decision.requirements:
        return []
    rows = [tuple(map(_text, row)) for row in tables.requirement_rows(decision)]
    note = tables.requirements_note(decision)
    return [f"{level} {tables.REQUIREMENTS}", _table(tables.REQUIREMENT_HEAD, rows, "lrrrl"),
            *([note] if note else [])]  # fmt: skip


def _answers(decision: Decision) -> list[str]:
    sentence = content.answers_sentence(decision)
    return [] if sentence is None else [_text(sentence)]


def _plain(decision: Decision) -> str:
    return _text(_cut(content.headline(decision), _BRIEF_LENGTH))


def _fitting_table(decision: Decision, room: int) -> str:
    """The table of the note with as many tasks as there is room for."""
    head = _spaced("task", "n", "baseline", "candidate", f"Δ{_unit(decision)} [interval]",
                   "worse / better", "p", "")  # fmt: skip
    rows = [
        _spaced(_text(_cut(row.name, _NAME_LENGTH)), row.n, row.baseline, row.candidate,
                f"{_change(decision, row)} {_together(row.interval)}",
                _together(f"{row.regressions} / {row.improvements}"), row.p,
                f"**{row.standing}**" if row.standing == "guilty" else row.standing)
        for row in _rows(decision)
    ]  # fmt: skip
    room -= len(_table(head, [], _NOTE_ALIGN)) + len(_LEFT_OUT) + 1
    shown = []
    for row in rows[:_NOTE_ROWS]:
        room -= len(_line(row)) + 1
        if room < 0:
            break
        shown.append(row)
    text = _table(head, shown, _NOTE_ALIGN)
    left_out = len(rows) - len(shown)
    return text + _LEFT_OUT.format(left_out) if left_out else text


def _spaced(first: str, *others: str) -> tuple[str, ...]:
    # Tables in notes have no space between their cells, and a plain blank would be stripped.
    return first, *(f"&nbsp;&nbsp;{cell}" if cell else "" for cell in others)


def _together(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _tasks_table(decision: Decision) -> str:
    # MLflow gives all columns of a table the same width: few columns, or nobody can read it.
    level = numbers.level(decision.policy.shown_confidence)
    head = ("task", f"Δ{_unit(decision)}", f"{level} interval", "p", "worse/better", "scores")
    rows = [
        (f"{_text(row.name)} **(guilty)**" if row.standing == "guilty" else
         f"{_text(row.name)} ({row.standing})" if row.standing else _text(row.name),
         _change(decision, row), row.interval, row.p,
         f"{row.regressions} / {row.improvements} of {row.n}",
         f"{row.baseline} → {row.candidate}" if row.baseline != "–" else "")
        for row in _rows(decision)
    ]  # fmt: skip
    return _table(head, rows, "lrrrrr")


def _numbers_table(decision: Decision) -> str:
    head = ("task", "metric, test", "adjusted p", "detectable", "p (margin)",
            "unscored", "answers changed")  # fmt: skip
    total, rule = tables.total_row(decision), decision.aggregate
    rows = [(_text(total.name), f"{rule.aggregation} ({_text(rule.method)})", total.p_adjusted,
             total.mde, f"{total.noninferiority_p} ({total.margin})", "",
             total.answers)]  # fmt: skip
    for task in content.ordered_tasks(decision):
        row = tables.task_row(decision, task)
        rows.append((_text(row.name), _text(f"{row.metric}, {task.test}"), row.p_adjusted, row.mde,
                     f"{row.noninferiority_p} ({row.margin})", "/".join(map(str, task.unscored)),
                     row.answers))  # fmt: skip
    return _table(head, rows, "llrrrrr")


def _subgroups(found: SubgroupFindings, decision: Decision) -> list[str]:
    head = ("feature", "worst where", "samples", "worse/better", "change there, pp (elsewhere)",
            "corrected p")  # fmt: skip
    rows = [
        (f"**{_text(row.feature)}**" if row.found else _text(row.feature), _text(row.where),
         row.samples, row.flips, row.change, row.p)
        for row in findings.finding_rows(found)
    ]  # fmt: skip
    return ["## Where the change sits", _text(findings.summary(found, decision)),
            _table(head, rows, "llrrrr"), f"{findings.CAVEAT} {_text(findings.coverage(found))}",
            ]  # fmt: skip


def _likelihoods(found: LikelihoodFindings) -> list[str]:
    parts = [f"## {likelihoods.TITLE}"]
    if listed := likelihoods.rows(found):
        rows = [(_text(row.task), *row.cells[1:]) for row in listed]
        parts += [_text(likelihoods.summary(found)), _table(likelihoods.HEAD, rows, "lrrrrr")]
        parts += [*_bullets(likelihoods.GLOSSARY), likelihoods.CAVEAT]
    if said := likelihoods.missing(found):
        parts.append(_text(said))
    return parts if len(parts) > 1 else []


def _samples(samples: Sequence[FlippedSample]) -> list[str]:
    parts = []
    for number, sample in enumerate(samples, 1):
        parts.append(f"### {number}. {_text(sample.task)}, sample {_text(sample.doc_id)}")
        if sample.prompt is not None:
            parts += ["Prompt", _fence(sample.prompt)]
        if sample.target is not None:
            parts += ["Target", _fence(sample.target)]
        for side, answer, standing, trace in (
            ("Baseline", sample.baseline, sample.baseline_score, sample.baseline_trace),
            ("Candidate", sample.candidate, sample.candidate_score, sample.candidate_trace),
        ):
            where = "" if trace is None else f" · {_trace(trace)}"
            missing = ": answer not logged" if answer is None else ""
            parts.append(f"{side} ({standing}){where}{missing}")
            if answer is not None:
                parts.append(_fence(answer))
    return parts


def _trace(trace: str) -> str:
    return f"[trace](<{trace}>)" if is_address(trace) else _code(trace)


def _rows(decision: Decision) -> list[tables.TaskRow]:
    tasks = [tables.task_row(decision, task) for task in content.ordered_tasks(decision)]
    return [tables.total_row(decision), *tasks]


def _unit(decision: Decision) -> str:
    """The unit of all changes, for the head of their column; else each has its own."""
    unit = content.unit_of(*decision.tasks)
    return f" {_text(unit)}" if unit else ""


def _change(decision: Decision, row: tables.TaskRow) -> str:
    return row.delta if _unit(decision) else f"{row.delta} {_text(row.unit)}".rstrip()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in align]
    lines = [head, rule, *rows]
    return "\n".join(map(_line, lines))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _brief(items: Sequence[str]) -> list[str]:
    shown = [_cut(item, _BRIEF_LENGTH) for item in items[:_BRIEF]]
    if len(items) > _BRIEF:
        shown.append(f"… and {len(items) - _BRIEF} more")
    return shown


def _bullets(items: Iterable[str]) -> list[str]:
    listed = "\n".join(f"- {_text(item)}" for item in items)
    return [listed] if listed else []


def _text(text: str) -> str:
    """Text that may quote names, as one line in which nothing is markup."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_>\[\]|@~])", r"\\\1", line)


def _code(text: str) -> str:
    """A name as a code span, safe inside a table."""
    line = " ".join(text.split()).replace("|", "\N{BROKEN BAR}")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _fence(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
