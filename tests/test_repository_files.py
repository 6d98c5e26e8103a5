"""The files around the package agree with it: workflows, nox, citation, templates, contributing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
_SESSIONS = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.M))


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_call_what_exists_and_get_no_more_than_they_need(path: Path) -> None:
    workflow = _yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        called = job.get("uses")
        assert called is None or (ROOT / called).is_file()
        if called is None and "id-token" not in job.get("permissions", {}):
            assert "timeout-minutes" in job
    for step in _steps(workflow):
        command = step.get("run", "")
        assert "${{" not in command, "values from outside reach a script as variables only"
        for words in re.findall(r"^nox -s (.+)$", command, re.M):
            assert set(words.partition(" -- ")[0].split()) <= _SESSIONS
        for script in re.findall(r"(?:^|\s)(\.ci/\S+|scripts/\S+)", command):
            assert (ROOT / script).is_file()


def test_every_python_that_is_claimed_is_tested() -> None:
    (tests,) = (_yaml(path) for path in WORKFLOWS if path.stem == "test")
    prefix = "Programming Language :: Python :: 3."
    claimed = {c.removeprefix(prefix) for c in PROJECT["project"]["classifiers"] if prefix in c}
    assert {f"3.{minor}" for minor in claimed} == set(
        tests["jobs"]["fast"]["strategy"]["matrix"]["python"]
    )


def test_only_the_release_may_publish_and_it_has_no_token() -> None:
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        assert ("id-token: write" in text) == (path.stem == "release")
        assert "secrets." not in text
    release = _yaml(ROOT / ".github" / "workflows" / "release.yml")
    assert release["jobs"]["publish"]["environment"] == "pypi"
    assert release["jobs"]["publish"]["needs"] == "build"


def test_commands_that_are_recommended_exist() -> None:
    hooks = _yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    entries = [hook["entry"] for hook in hooks]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    template = (ROOT / ".github" / "pull_request_template.md").read_text(encoding="utf-8")
    for shown in re.findall(r"nox -s (\w+)", "\n".join([*entries, text, template])):
        assert shown in _SESSIONS, shown
    (listed,) = re.findall(r"# the commands: (.+)$", text, re.M)
    assert set(listed.split(", ")) <= _SESSIONS


def test_paths_in_the_contributing_guide_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    quoted = re.findall(
        r"`((?:mlflow_degrade|tests|docs|scripts|recipes|benchmarks|\.ci)/[^`]*)`", text
    )
    assert len(quoted) > 12
    for path in quoted:
        assert (ROOT / path.split()[0]).exists(), path
    for script in re.findall(r"python ((?:scripts|benchmarks)/\S+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = _yaml(ROOT / "CITATION.cff")
    assert str(citation["version"]) == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    statistics = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert f"*{paper['title']}*, arXiv {paper['identifiers'][0]['value'][6:]}" in statistics


def test_the_change_log_keeps_its_headings() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M)[0] == "Unreleased"
    first = text.split("\n## ")[1]
    known = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    found = re.findall(r"^### (.+)$", first, re.M)
    assert found == [name for name in known if name in found]
    assert len(first.split()) < 900, "it should be read in three minutes"


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem
)
def test_issue_forms_are_complete(path: Path) -> None:
    form = _yaml(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(part["attributes"]["label"] for part in form["body"])


def test_the_table_of_exit_codes_is_that_of_the_command() -> None:
    from mlflow_degrade import cli
    from mlflow_degrade.decision.results import Verdict

    page = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\d, ]+) \| (.+) \|$", page, re.M))
    for verdict in Verdict:
        assert verdict.value in rows[str(verdict.exit_code)]
    assert "invalid input" in rows[str(cli.INVALID_INPUT)]
    assert "an error in" in rows[str(cli.INTERNAL_ERROR)]
    assert f"{cli.INTERRUPTED}, {cli.TERMINATED}" in rows


def test_the_page_on_plugins_shows_the_groups_of_the_example() -> None:
    from mlflow_degrade.optimize.schemes import SCHEME_PLUGINS
    from mlflow_degrade.samples.readers import READER_PLUGINS
    from mlflow_degrade.stats._combination_rules import RULE_PLUGINS

    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    example = tomllib.loads((ROOT / "examples/plugin/pyproject.toml").read_text(encoding="utf-8"))
    points = example["project"]["entry-points"]
    assert tomllib.loads(shown)["project"]["entry-points"] == points
    assert set(points) == {p.group for p in (SCHEME_PLUGINS, READER_PLUGINS, RULE_PLUGINS)}
