"""The forest plot as figure and files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import report_cases as cases

from mlflow_degrade import GatePolicy, decide
from mlflow_degrade.report import plots


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_forest_shows_every_task(verdict: str) -> None:
    decision, _ = cases.case(verdict)
    figure = plots.forest_plot(decision)
    (axis,) = figure.axes
    shown = [label.get_text() for label in axis.get_yticklabels()]
    assert shown[0] == "all tasks"
    assert set(shown[1:]) == {task.task for task in decision.tasks}
    assert verdict in figure.get_suptitle()
    left, right = axis.get_xlim()
    assert left < -decision.policy.margin_pp < 0 < right


def test_sixty_tasks_grow_the_figure() -> None:
    small = plots.forest_plot(cases.case("PASS")[0]).get_size_inches()
    large = plots.forest_plot(cases.sixty_tasks()[0]).get_size_inches()
    assert large[0] == small[0]
    assert large[1] > 5 * small[1]


def test_names_are_not_mathematics() -> None:
    paired = cases.paired_counts({"$\\frac{1$ _x": (3, 5, 900, 1100)})
    plots.forest_plot(decide(paired, GatePolicy())).draw_without_rendering()


def test_files_are_reproducible(tmp_path: Path) -> None:
    decision, _ = cases.case("FAIL")
    written = [plots.save_plots(decision, tmp_path / name) for name in ("a", "b")]
    assert [path.name for path in written[0]] == ["forest.png", "forest.svg"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["forest.png", "forest.svg"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert written[0][0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in written[0][1].read_text(encoding="utf-8")


def test_plotting_is_imported_only_to_plot() -> None:
    code = (
        "import sys; from mlflow_degrade.report import plots, html, markdown;"
        "assert not {'matplotlib', 'jinja2', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
