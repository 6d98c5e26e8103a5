"""The documentation covers every public name, points at files that exist, and says what is so."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlflow_degrade
from mlflow_degrade import GatePolicy, stats

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# What a visitor of the repository reads first.
ENTRANCES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]

# The examples of the statistics have a test of their own, in tests/stats.
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in (ROOT / "mlflow_degrade").rglob("*.py")
    if path.parent.name != "stats" and ">>>" in path.read_text(encoding="utf-8")
)

_DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _names(page: Path) -> list[str]:
    return _DIRECTIVE.findall(page.read_text(encoding="utf-8"))


def _resolve(path: str) -> Any:
    """The object behind a directive: modules first, as far as they go, then their members."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


def _home(package: Any, name: str) -> str:
    found = getattr(package, name)
    return f"{found.__module__}.{found.__qualname__}"


@pytest.mark.parametrize("package", [mlflow_degrade, stats], ids=lambda p: p.__name__)
def test_every_public_name_is_on_exactly_one_page(package: Any) -> None:
    places = Counter(name for page in PAGES for name in set(_names(page)))
    # The page of errors shows the whole module.
    shown = {"mlflow_degrade.core.errors.DegradeError": "mlflow_degrade.core.errors"}
    for name in package.__all__:
        home = _home(package, name)
        assert places[shown.get(home, home)] == 1, home


def test_directives_name_documented_objects_once() -> None:
    for page in PAGES:
        names = _names(page)
        assert len(names) == len(set(names)), page
        for name in names:
            assert _resolve(name).__doc__, name


def _nav_files(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(target, list):
                yield from _nav_files(target)
            else:
                yield target


def test_navigation_has_every_page_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = sorted(_nav_files(config["nav"]))
    assert listed == [page.relative_to(DOCS).as_posix() for page in PAGES]
    for name in config["extra_css"]:
        assert (DOCS / name).is_file(), name
    assert config["theme"]["font"] is False  # fonts would come from the network


def _anchors(page: Path) -> set[str]:
    """Anchors of a page: its headings as Python-Markdown names them, and its API entries."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set(_names(page))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found


@pytest.mark.parametrize("page", [*ENTRANCES, *PAGES], ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            known = _anchors(target)
            # An entry's members have anchors as well: module.Class.method.
            assert anchor in known or anchor.rpartition(".")[0] in known, link


def test_the_page_on_policies_is_generated() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_policy_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_policy_that_is_shown_is_valid() -> None:
    text = (DOCS / "policy.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    policy = GatePolicy.from_mapping(yaml.safe_load(first))
    assert policy.task("mmlu_anatomy").metric == "acc"
    assert policy.task("ifeval").tier == "advisory"
    assert policy.task("gsm8k").has_margin
    asked = GatePolicy.from_mapping(yaml.safe_load(second))
    assert asked.cost is not None
    assert asked.cost.goals == {"decode_speedup": 1.3, "prefill_speedup": 1.0, "size_ratio": 0.5}
    assert (asked.floors, asked.relative_drop) == ({"gsm8k": 0.62}, 0.01)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_names_imported_on_the_pages_exist() -> None:
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module:
                    for alias in node.names:
                        assert _resolve(f"{node.module}.{alias.name}") is not None, page
