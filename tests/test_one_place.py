"""A fact is written once: adding a rule, a reader, a scheme, a parameter or a tag is one edit."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

import mlflow_degrade
from mlflow_degrade.cli.options import options_of, read
from mlflow_degrade.optimize.schemes import SCHEMES
from mlflow_degrade.stats._combination_rules import RULE_NAMES
from mlflow_degrade.workflows.quantize import QuantizeOptions

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


def _spelled_in(names: set[str]) -> dict[str, set[str]]:
    """Name to the files of the package whose code has it as a string."""
    found: dict[str, set[str]] = {}
    for path in _PACKAGE.rglob("*.py"):
        for name in names & set(_texts(path)):
            found.setdefault(name, set()).add(path.relative_to(_PACKAGE).as_posix())
    return found


def test_a_scheme_is_an_entry_of_one_table() -> None:
    found = _spelled_in(set(SCHEMES) - {"fp16", "bf16", "fp32"})  # those are dtypes as well
    # Elsewhere schemes stand as defaults, and as what a message recommends.
    known = {"int8-weight-only", "int8-dynamic", "int4-weight-only"}
    assert {name for name, files in found.items() if files != {"optimize/schemes.py"}} <= known


def test_a_provider_is_spelled_in_one_file() -> None:
    known = {"CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"}
    assert set().union(*_spelled_in(known).values()) == {"engine/providers.py"}


def test_a_tag_is_spelled_in_one_file() -> None:
    tags = {
        text
        for path in _PACKAGE.rglob("*.py")
        for text in _texts(path)
        if re.fullmatch(r"degrade\.(?!json$)[a-z_]+", text)
    }
    twice = {name: files for name, files in _spelled_in(tags).items() if len(files) > 1}
    assert len(tags) > 20
    assert twice == {}


def test_a_parameter_of_a_recipe_is_a_field_and_its_description() -> None:
    class More(QuantizeOptions):
        """The options of a job, and one more.

        Attributes
        ----------
        patience : int
            Minutes to wait.
        """

        patience: int = 7

    @click.command()
    @options_of(More)
    def command(**given: str) -> None:
        click.echo(read(More, given).patience)

    found = CliRunner().invoke(command, ["--patience", "9"])
    assert found.output == "9\n"
    assert "Minutes to wait.  [default: 7]" in CliRunner().invoke(command, ["--help"]).output
    assert CliRunner().invoke(command, []).output == "7\n"
