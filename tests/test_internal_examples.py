"""Examples of functions that no API page shows, run in the names of their module."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

_FILES = sorted(Path(__file__).with_name("examples").glob("*.txt"))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    names = vars(importlib.import_module(f"mlflow_degrade.{path.stem}")).copy()
    test = doctest.DocTestParser().get_doctest(
        path.read_text(encoding="utf-8"), names, path.stem, str(path), 0
    )
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
