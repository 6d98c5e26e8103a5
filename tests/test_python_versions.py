"""The versions of Python that are named are one list, and what is required runs on all of them."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSIONS = [
    found[1]
    for line in PROJECT["project"]["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
]
EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_one_list_of_versions() -> None:
    lowest = VERSIONS[0]
    assert PROJECT["project"]["requires-python"] == f">={lowest}"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + lowest.replace(".", "")
    assert PROJECT["tool"]["mypy"]["python_version"] == lowest
    others = f"{', '.join(VERSIONS[:-1])} and {VERSIONS[-1]}"
    for page in ("README.md", "docs/index.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert f"Python {lowest} or newer; tested on {others}." in text


@pytest.mark.parametrize("text", [*EXTRAS["cpu"][1:], *EXTRAS["models"]])
def test_what_an_extra_requires_runs_on_each(text: str) -> None:
    requirement = Requirement(text)
    try:
        installed = metadata(requirement.name)
    except PackageNotFoundError:
        pytest.skip(f"{requirement.name} is not installed: its other build may be")
    assert requirement.specifier.contains(installed["Version"])
    needs = SpecifierSet(installed["Requires-Python"] or "")
    assert [version for version in VERSIONS if not needs.contains(f"{version}.0")] == []


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_smaller_build_of_torch_is_the_one_required(page: str) -> None:
    (torch,) = [text for text in EXTRAS["models"] if text.startswith("torch")]
    commands = re.findall(r"pip install (torch\S*) --index-url", (ROOT / page).read_text("utf-8"))
    assert commands == [torch]
