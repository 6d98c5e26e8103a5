"""The table of mutations fits the package, and a mutation that nothing asks about survives."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import mutations


def test_every_text_is_there_once_and_every_test_is_found() -> None:
    root = Path(__file__).parents[1]
    files = mutations.sources(root)
    for mutation in mutations.MUTATIONS:
        mutations.file_with(files, mutation.old)
        assert mutation.new != mutation.old
        for pattern in mutation.tests.split():
            assert mutations.files_of(root, pattern)
    assert len(mutations.MUTATIONS) >= 30


def test_a_text_that_is_gone_or_there_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow_degrade").mkdir()
    (tmp_path / "mlflow_degrade" / "a.py").write_text("x = 1\ny = 1\n")
    files = mutations.sources(tmp_path)
    assert mutations.file_with(files, "x = 1").name == "a.py"
    for text in ("= 1", "z"):
        with pytest.raises(click.ClickException, match="change the table"):
            mutations.file_with(files, text)


def test_what_a_test_notices_is_killed_and_the_rest_survives(tmp_path: Path) -> None:
    (tmp_path / "mlflow_degrade").mkdir()
    module = tmp_path / "mlflow_degrade" / "__init__.py"
    module.write_text("def f(x):\n    return x + 1\n\n\ndef g(x):\n    return x + 2\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_f.py").write_text(
        "from mlflow_degrade import f\n\n\ndef test_f():\n    assert f(1) == 2\n"
    )
    noticed = mutations.Mutation("x", "return x + 1", "return x", "test_f.py")
    missed = mutations.Mutation("x", "return x + 2", "return x", "test_f.py")
    assert mutations.killed(tmp_path, noticed) == (True, "tests/test_f.py::test_f")
    assert mutations.killed(tmp_path, missed) == (False, "")
    assert "x + 1" in module.read_text()
