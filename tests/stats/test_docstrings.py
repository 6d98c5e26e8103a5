"""The examples in the docstrings give what they say; public names are documented and sorted."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

from mlflow_degrade import stats

MODULES = sorted(module.name for module in pkgutil.iter_modules(stats.__path__))
FUNCTIONS = [name for name in stats.__all__ if inspect.isfunction(getattr(stats, name))]

# A year, or a pointer to the function whose source it is.
_SOURCE = re.compile(r"Sources?: (?:(?!\n\n).)*?(?:\b(?:1[89]|20)\d\d\b|as `|see )", re.DOTALL)


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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_compute_when_they_hold_and_where_they_come_from(name: str) -> None:
    function = getattr(stats, name)
    sections = _sections(inspect.getdoc(function) or "")
    assert list(sections) == sorted(sections, key=_ORDER.index)
    assert {"Parameters", "Returns", "Notes", "Examples"} <= set(sections)
    notes = sections["Notes"]
    assert re.search(r"\bFormula\b", notes)
    assert re.search(r"\bValid (when|for)\b", notes)
    assert _SOURCE.search(notes)
    assert any(f"{name}(" in line for line in sections["Examples"].splitlines() if ">>>" in line)
    documented = re.findall(r"^(\w[\w, ]*) : ", sections["Parameters"], re.MULTILINE)
    told = [parameter for entry in documented for parameter in entry.split(", ")]
    assert sorted(told) == sorted(inspect.signature(function).parameters)


_ORDER = ["Parameters", "Returns", "Raises", "Warns", "Notes", "Examples"]


def _sections(documentation: str) -> dict[str, str]:
    """Text of each numpydoc section by its title."""
    parts = re.split(r"^(\w+)\n-{3,}\n", documentation, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_only_numpy_and_scipy_are_loaded() -> None:
    code = (
        "import sys, mlflow_degrade.stats;"
        "heavy = {'pandas', 'pyarrow', 'mlflow', 'torch', 'statsmodels', 'scipy.stats'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
