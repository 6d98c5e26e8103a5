"""What is said: verdict, power, what would have to change."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_cases as cases
from rich.console import Console

from mlflow_degrade import GatePolicy, decide, pair
from mlflow_degrade.report import content, html, markdown, tables
from mlflow_degrade.report.content import glossary
from mlflow_degrade.report.cost import cost_rows, interval_note, slower_phases
from mlflow_degrade.report.html import report as html_report
from mlflow_degrade.report.markdown import report as markdown_report
from mlflow_degrade.report.next_steps import Command, next_lines, next_steps, samples_per_task
from mlflow_degrade.report.plots import forest_panels
from mlflow_degrade.report.recommendations import remedies
from mlflow_degrade.report.samples import shorten, worst_flips
from mlflow_degrade.report.terminal import decision_view


def _decide(counts: cases.Counts, **policy: Any) -> Any:
    return decide(cases.paired_counts(counts), GatePolicy.from_mapping(policy))


def test_headlines() -> None:
    assert "a drop of 2.00 pp or more is ruled out" in content.headline(cases.case("PASS")[0])
    powerful = _decide({"qa": (104, 82, 1500, 2200)})
    assert powerful.aggregate.noninferiority_p > 0.05
    assert "power to see a drop of 2.00 pp" in content.headline(powerful)
    assert "worse than the baseline: −10.64 pp" in content.headline(cases.case("FAIL")[0])
    assert "do not settle" in content.headline(cases.case("INCONCLUSIVE")[0])
    warned = _decide(cases.TOO_FEW, on_underpowered="warn")
    assert "gone unseen" in content.headline(warned)
    tolerable = _decide({"qa": (160, 100, 15_000, 20_000)}, rule="non_inferiority", margin_pp=1)
    assert "ruled out, although" in content.headline(tolerable)
    own = {"small": {"margin_pp": 1}}
    alone = _decide(
        {"big": (5, 40, 4000, 5000), "small": (12, 1, 80, 100)}, tasks=own, aggregation="pooled"
    )
    assert alone.aggregate.p_worse > 0.05
    assert content.headline(alone) == "The candidate is worse than the baseline on small."


def test_power_in_words() -> None:
    passed, _ = cases.case("PASS")
    sentence = content.power_sentence(passed)
    assert "1,100 samples could have seen a drop of 1.24 pp" in sentence
    assert "within the margin" in sentence
    assert "2.5% of the scores changed" in sentence
    assert "more than the margin" in content.power_sentence(cases.case("INCONCLUSIVE")[0])


def test_a_drop_nothing_bounds() -> None:
    decision, _ = cases.case("INCONCLUSIVE")
    power = decision.power.model_copy(update={"mde": None, "samples_needed": None})
    blind = decision.model_copy(update={"power": power})
    assert "No drop would be found" in content.power_sentence(blind)
    assert tables.total_row(blind).mde == "unbounded"
    assert "cannot be told" in remedies(blind)[0]


def test_what_would_have_to_change() -> None:
    assert remedies(cases.case("PASS")[0]) == []
    failed = " ".join(remedies(cases.case("FAIL")[0], "int4-weight-only"))
    assert "starter_numbers" in failed
    assert "int8-weight-only instead of int4-weight-only" in failed
    assert "More samples are unlikely" in failed
    vague = " ".join(remedies(cases.case("INCONCLUSIVE")[0]))
    assert "Evaluate about 2,688 samples instead of 12" in vague
    small = _decide({"qa": (160, 100, 15_000, 20_000)})
    assert "non_inferiority" in " ".join(remedies(small, "fp16"))
    assert "more bits" in " ".join(remedies(small, "fp16"))


def test_other_reasons_to_wait() -> None:
    decision = _decide(
        {"qa": (5, 105, 1800, 2000), "rare": (0, 0, 30, 40)},
        min_samples=3000,
        implausible_gain_pp=3,
        tasks={"rare": {"margin_pp": 1, "min_samples": 50}},
    )
    said = " ".join(remedies(decision))
    assert "at least 3,000 samples" in said
    assert "at least 50 samples of rare" in said
    assert "samples of rare (now 40), which has a margin of its own" in said
    assert "leak" in said


def test_lost_answers_are_named() -> None:
    base = cases.scores({"qa": [1] * 2000}, "a")
    frame = cases.scores({"qa": [1] * 2000}, "b").to_pandas()
    frame["score"] = frame["score"].astype("Float64")
    frame.loc[:19, "score"] = pd.NA
    cand = type(base).from_pandas(frame, model_digest="b")
    said = remedies(decide(pair(base, cand), GatePolicy()))
    assert any("20 samples without a score" in line for line in said)


def test_close_to_the_margin_under_non_inferiority() -> None:
    decision = _decide({"qa": (52, 38, 3900, 5000)}, rule="non_inferiority", margin_pp=0.57)
    assert decision.verdict.value == "INCONCLUSIVE"
    said = " ".join(remedies(decision, "int8-dynamic"))
    assert "close to the margin" in said
    assert "try a gentler scheme" in said


def test_guilty_tasks_come_first_and_advisory_ones_last() -> None:
    decision, _ = cases.sixty_tasks()
    order = content.ordered_tasks(decision)
    assert {task.task for task in order[:3]} == set(decision.guilty)
    assert {task.tier for task in order[-10:]} == {"advisory"}
    assert content.total_name(decision) == "all 50 gating tasks"


def test_outcomes_add_up() -> None:
    decision, paired = cases.case("FAIL")
    found = tables.outcomes(decision)
    assert found == tables.Outcomes("719", "166", "49", "166")
    assert sum(int(x) for x in vars(found).values()) == paired.n


def _perplexity() -> Any:
    rng = np.random.default_rng(3)
    base = rng.lognormal(2.5, 0.4, 400)
    left = {"wiki": base, "books": rng.lognormal(-1.5, 0.2, 300)}
    right = {task: x * rng.lognormal(0.001, 0.01, x.size) for task, x in left.items()}
    common: dict[str, Any] = {"metric": "word_perplexity", "higher_is_better": False}
    return pair(cases.scores(left, "a", **common), cases.scores(right, "b", **common))


def test_graded_metrics_get_no_percentage_points() -> None:
    paired = _perplexity()
    decision = decide(paired, GatePolicy(margin=0.2))
    # Perplexities below 1 do not exist, but other losses do: the name decides, not the size.
    assert not any(task.proportion for task in decision.tasks)
    row = tables.task_row(decision, decision.tasks[1])
    assert "%" not in row.baseline
    assert (row.unit, row.metric) == ("word_perplexity", "word_perplexity")
    assert "pp" not in (row.margin + row.mde).replace("word_perplexity", "")
    assert " pp" not in content.power_sentence(decision)
    assert "margin of 0.2 word_perplexity;" in content.power_sentence(decision)
    # Wherever the change is shown, its unit is.
    total = tables.total_row(decision)
    shown = f"{total.delta} word_perplexity"
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(decision_view(decision))
    text = console.export_text()
    assert shown in text
    assert re.search(r"^wiki +word_perplexity ", text, re.MULTILINE)
    assert "Δ word\\_perplexity" in markdown_report(decision, paired)
    assert shown in html_report(decision, paired)
    assert tables.outcomes(decision) is None
    assert [panel.unit for panel in forest_panels(decision)] == ["word_perplexity"]


def test_units_have_a_panel_each_and_the_total_is_in_its_own() -> None:
    accuracy = decide(cases.paired_counts(cases.PASSING), GatePolicy())
    graded = decide(_perplexity(), GatePolicy(margin=0.2))
    advisory = [task.model_copy(update={"tier": "advisory"}) for task in graded.tasks]
    mixed = accuracy.model_copy(update={"tasks": (*accuracy.tasks, *advisory)})
    panels = forest_panels(mixed)
    assert [panel.unit for panel in panels] == ["pp", "word_perplexity"]
    assert panels[0].rows[0].kind == "total"
    # The policy's margin is in percentage points and says nothing about perplexities.
    assert (panels[0].margin, panels[1].margin) == (2.0, None)
    assert not any(row.kind == "total" for row in panels[1].rows)


def test_f1_is_a_proportion() -> None:
    rng = np.random.default_rng(5)
    base = {"squad": rng.random(300)}
    cand = {"squad": np.clip(base["squad"] + rng.normal(0, 0.01, 300), 0, 1)}
    paired = pair(cases.scores(base, "a", metric="f1"), cases.scores(cand, "b", metric="f1"))
    decision = decide(paired, GatePolicy())
    assert not decision.tasks[0].binary
    assert tables.task_row(decision, decision.tasks[0]).baseline.endswith("%")


def test_axes_show_what_matters() -> None:
    decision = _decide({"big": (20, 20, 3000, 5000), "tiny": (1, 1, 3, 6)})
    (panel,) = forest_panels(decision)
    tiny = next(row for row in panel.rows if row.name == "tiny")
    assert panel.margin is not None
    assert tiny.low < panel.left < -panel.margin < 0 < panel.right < tiny.high
    assert panel.place(tiny.low) == 0
    assert 0.0 in panel.ticks
    assert 3 <= len(panel.ticks) <= 9


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_axes_hold_all_changes(verdict: str) -> None:
    for panel in forest_panels(cases.case(verdict)[0]):
        for row in panel.rows:
            assert panel.left < row.delta < panel.right


def test_samples_of_guilty_tasks_first() -> None:
    decision, paired = cases.sixty_tasks()
    shown = worst_flips(decision, paired, 12)
    assert {sample.task for sample in shown} == set(decision.guilty)
    assert len(shown) == 12
    decision, paired = cases.case("PASS")
    shown = worst_flips(decision, paired, 4)
    assert len({sample.task for sample in shown}) == 4
    first = shown[0]
    assert (first.baseline_score, first.candidate_score) == ("right", "wrong")
    assert first.target == first.baseline
    assert "something else" in (first.candidate or "")


def test_worst_graded_samples() -> None:
    paired = _perplexity()
    decision = decide(paired, GatePolicy(margin=0.2))
    shown = worst_flips(decision, paired, 20)
    assert shown
    for task in (task for task in paired.tasks if task.name in {s.task for s in shown}):
        # The direction is the metric's: a higher perplexity is worse.
        first = next(sample for sample in shown if sample.task == task.name)
        drop = [float(x.split()[1]) for x in (first.baseline_score, first.candidate_score)]
        assert drop[0] - drop[1] == pytest.approx(task.difference.min(), abs=0.02)


def test_long_texts_keep_their_end() -> None:
    text = "few-shot example. " * 400 + "Question: which? Answer:"
    short = shorten(text, 900)
    assert short.endswith("Question: which? Answer:")
    assert len(short) < 950
    assert "characters left out" in short


def test_costs_in_words() -> None:
    rows = {row.name: row for row in cost_rows(cases.COST)}
    assert next(iter(rows)) == "size"
    assert rows["size"].relation == "2.03× smaller"
    assert rows["latency: p50"].relation == "2.16× faster"
    slower = rows["throughput: prefill"]
    assert (slower.relation, slower.better) == ("1.16× slower", False)
    assert rows["memory: peak RSS"].relation == "about the same"


@pytest.mark.parametrize(
    ("ratio", "relation", "better"),
    [
        ((2.1, 1.9, 2.5), "2.10× faster [1.90, 2.50]", True),
        # 1 / 0.8, 1 / 0.9 and 1 / 0.5.
        ((0.8, 0.5, 0.9), "1.25× slower [1.11, 2.00]", False),
        ((1.1, 0.9, 1.2), "1.10× faster [0.90, 1.20]", None),
        ((1.01, 1.005, 1.3), "about the same [1.00, 1.30]", True),
    ],
)
def test_speed_is_related_by_the_rounds_where_they_are_known(
    ratio: tuple[float, float, float], relation: str, better: bool | None
) -> None:
    ends = ("", "_ci_low", "_ci_high")
    known = {
        f"speed_ratio/decode{end}": (value, "×") for end, value in zip(ends, ratio, strict=True)
    }
    given = {**cases.COST, "candidate": {**cases.COST["candidate"], **known}}
    rows = {row.name: row for row in cost_rows(given)}
    assert len(rows) == len(cost_rows(cases.COST))
    assert (rows["throughput: decode"].relation, rows["throughput: decode"].better) == (
        relation,
        better,
    )
    assert rows["throughput: prefill"].relation == "1.16× slower"
    assert "95% interval" in interval_note(given)
    assert interval_note(cases.COST) == ""


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ((0.67, 0.61, 0.72), ["Slower in prefill: 0.67× [0.61, 0.72] the baseline's speed."]),
        ((0.9, 0.8, 1.0), []),
        ((1.3, 1.2, 1.4), []),
    ],
)
def test_a_phase_is_called_slower_only_when_the_interval_says_so(
    ratio: tuple[float, float, float], said: list[str]
) -> None:
    ends = ("", "_ci_low", "_ci_high")
    known = {
        f"speed_ratio/prefill{end}": (value, "×") for end, value in zip(ends, ratio, strict=True)
    }
    assert slower_phases({**cases.COST, "candidate": {**cases.COST["candidate"], **known}}) == said
    without_interval = {"speed_ratio/prefill": (ratio[0], "×")}
    assert slower_phases({"candidate": without_interval}) == []
    assert slower_phases(cases.COST) == slower_phases(None) == []


def test_costs_that_cannot_be_compared() -> None:
    given = {
        "baseline": {"size/bytes": (1e9, "bytes"), "energy/joules": (0.0, "J")},
        "candidate": {"energy/joules": (3.0, "J"), "cuda/nodes": (4.0, ""), "x/y": (1e999, "s")},
    }
    rows = {row.name: row for row in cost_rows(given)}
    assert rows["size"].candidate == "–"
    assert rows["energy: joules"].relation == ""
    assert rows["x: y"].candidate == "–"
    assert cost_rows(None) == []


def test_registration_is_only_told_when_known() -> None:
    assert content.registration(None) is None
    assert content.registration({"scheme": "fp16"}) is None
    assert content.registration({"registered": None}) == "Nothing was registered."
    assert content.registration({"registered": "m/3"}) == "Registered as m/3."


def test_provenance_lists_everything() -> None:
    decision, _ = cases.case("PASS")
    rows = dict(tables.provenance_rows(decision, {"suite": {"starter": "v2"}, "seed": 7}))
    assert rows["suite starter"] == "v2"
    assert rows["seed"] == "7"
    assert rows["candidate model digest"].startswith("sha256:")
    assert rows["decision digest"] == decision.digest()
    assert "numpy version" in rows


def test_every_verdict_ends_in_an_exact_command_with_the_same_words_everywhere() -> None:
    recipe = Command("mlflow run recipes/quantize", (), {"scheme": "int4-weight-only", "limit": 20})
    facts: dict[str, Any] = {"command": recipe, "scheme": "int4-weight-only", "registered": None}
    said = {
        "FAIL": "mlflow run recipes/quantize -P limit=20 -P scheme=int8-weight-only",
        "INCONCLUSIVE": "mlflow run recipes/quantize -P scheme=int4-weight-only -P limit=",
        "PASS": "mlflow run recipes/quantize -P scheme=int4-weight-only -P limit=20 "
        "-P register_as=NAME",
    }
    for verdict, line in said.items():
        decision, paired = cases.case(verdict)
        steps = next_steps(decision, facts)
        assert steps[-1].line.startswith(line)
        for text in (
            markdown.summary_note(decision, provenance=facts),
            markdown.report(decision, paired, provenance=facts),
            html.report(decision, paired, provenance=facts),
            "\n".join(next_lines(decision, facts)),
        ):
            for step in steps:
                assert step.line in text.replace("&#39;", "'").replace("&#34;", '"')


def test_within_a_search_no_command_is_named_that_it_does_not_take() -> None:
    facts = {"command": Command("mlflow-degrade search", (), {"minutes": 5}), "scheme": "int4-x"}
    lines = {
        verdict: [step.line for step in next_steps(cases.case(verdict)[0], facts)][-1]
        for verdict in ("FAIL", "INCONCLUSIVE", "PASS")
    }
    assert lines == {
        "FAIL": "mlflow-degrade candidates",
        "INCONCLUSIVE": "mlflow-degrade candidates",
        "PASS": "mlflow-degrade search --minutes 5 --register-as NAME",
    }


def test_the_limit_that_is_named_is_per_task_and_enough() -> None:
    decision, _ = cases.case("INCONCLUSIVE")
    needed, tasks = decision.power.samples_needed, len(decision.tasks)
    limit = samples_per_task(decision)
    assert needed is None or (limit - 100) * tasks < needed <= limit * tasks
    (step,) = next_steps(
        decision, {"command": Command("mlflow-degrade gate", (), {"alias": "a b"})}
    )
    names = ",".join(task.task for task in decision.tasks)
    assert step.line == f"mlflow-degrade gate --alias 'a b' --tasks {names} --limit {limit}"
    assert "limit is per task" in step.sentence


def test_a_pass_names_load_alias_and_gate() -> None:
    decision, _ = cases.case("PASS")
    lines = [step.line for step in next_steps(decision, {"registered": "models:/chat/3"})]
    assert lines == [
        'model = mlflow.pyfunc.load_model("models:/chat/3")',
        "mlflow models serve -m models:/chat/3 --env-manager local",
        'mlflow.MlflowClient().set_registered_model_alias("chat", "champion", "3")',
        "mlflow-degrade gate --candidate models:/chat/3 --baseline models:/chat@champion "
        "--alias champion",
    ]


def test_words_are_explained_once_where_they_stand() -> None:
    for verdict in ("PASS", "FAIL", "INCONCLUSIVE"):
        decision, paired = cases.case(verdict)
        said = glossary(decision)
        assert any(line.startswith("guilty:") for line in said) == bool(decision.guilty)
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(decision_view(decision, paired))
        for text in (
            console.export_text(),
            markdown.summary_note(decision).replace("\\", ""),
            markdown.report(decision, paired).replace("\\", ""),
            html.report(decision, paired),
        ):
            for line in said:
                assert text.count(line) == 1
            assert text.count("allowing for the number of tasks") == bool(decision.guilty)
