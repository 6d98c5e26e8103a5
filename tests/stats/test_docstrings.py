"""The examples in the docstrings give what they say; public names are documented and sorted."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from mlflow_degrade import stats

MODULES = sorted(module.name for module in pkgutil.iter_modules(stats.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"mlflow_degrade.stats.{name}")
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_public_names() -> None:
    assert stats.__all__ == sorted(set(stats.__all__), key=str.casefold)
    for name in stats.__all__:
        documentation = inspect.getdoc(getattr(stats, name))
        assert documentation, name
        assert "Parameters\n" in documentation, name


def test_only_numpy_and_scipy_are_loaded() -> None:
    code = (
        "import sys, mlflow_degrade.stats;"
        "heavy = {'pandas', 'pyarrow', 'mlflow', 'torch', 'statsmodels', 'scipy.stats'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
