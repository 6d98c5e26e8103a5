"""A fact is written once: a rule is spelled in one file of the package, a reader is one file."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow_degrade
from mlflow_degrade.stats._combination_rules import RULE_NAMES

_PACKAGE = Path(mlflow_degrade.__file__).parent


def _texts(path: Path) -> Iterator[str]:
    """Strings in a file's code; docstrings are none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


def test_a_rule_is_spelled_in_one_file() -> None:
    names, found = set(RULE_NAMES), {}
    for path in _PACKAGE.rglob("*.py"):
        if spelled := names & set(_texts(path)):
            found[path.relative_to(_PACKAGE).as_posix()] = spelled
    assert found.pop("stats/_combination_rules.py") == names
    # No rules of several benchmarks: one process for all items, a combination of p-values alone,
    # and scikit-learn's average.
    assert found == {
        "stats/_sequential.py": {"pooled"},
        "stats/_stepdown.py": {"stouffer"},
        "evaluation/encoder_tasks.py": {"macro"},
    }


def test_a_reader_is_added_by_one_file(tmp_path: Path) -> None:
    copy = shutil.copytree(
        _PACKAGE, tmp_path / "mlflow_degrade", ignore=shutil.ignore_patterns("__pycache__")
    )
    (copy / "samples" / "readers" / "tallies.py").write_text(
        "from ._reader import record_reader\n"
        "def _records(path, text):\n"
        "    for i, mark in enumerate(text):\n"
        "        yield dict(task='t', doc_id=str(i), metric='acc', score=float(mark == '+'))\n"
        "def _found(path):\n"
        "    return path.suffix == '.tally' and path.read_text()\n"
        "READER = record_reader('tally', 'a line of + and -', _found, _records)\n"
    )
    (tmp_path / "x.tally").write_text("++-+")
    code = (
        "from mlflow_degrade.readers import read_samples\n"
        "print(read_samples('x.tally').means())\n"
        "print(read_samples('x.tally', format='tally', model='m').model)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["{('t', 'acc', 'none'): 0.75}", "m"], done.stderr
