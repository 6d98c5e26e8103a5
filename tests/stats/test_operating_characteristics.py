"""The script behind docs/statistics.md runs, and the document says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_degrade import stats

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "operating_characteristics.py"
DOCUMENT = ROOT / "docs" / "statistics.md"

# Figures of other code on these designs, from before this script existed: rule, size at low,
# typical and high flip rates, power against 0.3 pp everywhere, power against 3 pp on n = 1319.
MEASURED = {
    "pooled": (0.046, 0.047, 0.049, 0.945, 0.764, 0.450, 0.478, 0.312, 0.181),
    "min_p": (0.046, 0.048, 0.049, 0.746, 0.487, 0.229, 0.997, 0.870, 0.754),
    "max_drop": (0.044, 0.047, 0.048, 0.714, 0.467, 0.218, 0.997, 0.867, 0.752),
}
# The power of combined with Bonferroni's bound, which its joint law improves on.
BONFERRONI = (0.905, 0.683, 0.365, 0.995, 0.824, 0.681)


def table(name: str) -> list[list[str]]:
    """Cells of a generated table of the document, without the header."""
    text = DOCUMENT.read_text(encoding="utf-8")
    body = re.search(rf"<!-- begin: {name} -->\n(.*?)<!-- end: {name} -->", text, flags=re.DOTALL)
    assert body, name
    rows = [line for line in body[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_every_section_runs_and_is_reproducible() -> None:
    out = run("--replications", "4")
    names = re.findall(r"^### (\w+)$", out, flags=re.MULTILINE)
    document = DOCUMENT.read_text(encoding="utf-8")
    assert names == ["aggregation", "planning", "dependence", "sequential", "noninferiority",
                     "subgroup", "categories", "retry", "judge"]  # fmt: skip
    for name in names:
        assert f"<!-- begin: {name} -->" in document
    again = run("--replications", "4", "--only", "judge", "aggregation")
    for block in again.split("\n\n### "):
        assert block.strip().removeprefix("### ") in out


@pytest.mark.slow
def test_writes_between_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin: planning -->\nold\n<!-- end: planning -->\nafter\n")
    run("--only", "planning", "--write", str(page))
    text = page.read_text()
    assert text.startswith("before\n<!-- begin: planning -->\n| flip rate |")
    assert text.endswith("\n<!-- end: planning -->\nafter\n")
    assert "13,737" in text
    assert "old" not in text


def test_the_tools_of_the_document_exist() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split("## Which tool for which question")[1].split("\n## ")[0]
    tools = {re.match(r"\w+", name)[0] for name in re.findall(r"`([^`]+)`", section)}
    assert len(tools) >= 15
    assert tools - set(stats.__all__) == {"interval"}  # a method of the results


def test_the_table_agrees_with_what_was_measured() -> None:
    rows = {cells[0].split(" ")[0].strip("*"): cells[1:] for cells in table("aggregation")}
    for rule, expected in MEASURED.items():
        found = [float(number) for cell in rows[rule] for number in cell.split(" / ")]
        # Three standard errors of 2,000 replications, and some for designs that differ in detail.
        assert found[:3] == pytest.approx(expected[:3], abs=0.015), rule
        assert found[3:] == pytest.approx(expected[3:], abs=0.05), rule


def test_combined_in_the_table_fills_its_level_and_beats_its_bound() -> None:
    row = next(cells for cells in table("aggregation") if "combined" in cells[0])
    found = [float(number) for cell in row[1:] for number in cell.split(" / ")]
    assert found[:3] == pytest.approx([0.05] * 3, abs=0.01)
    for power, bound in zip(found[3:], BONFERRONI, strict=True):
        assert bound - 0.01 <= power <= bound + 0.08


def test_no_generated_table_is_empty() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in re.findall(r"<!-- begin: (\w+) -->", text):
        assert table(name), name
