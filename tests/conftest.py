"""Options of the test suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from mlflow_state import mlflow_state_kept

# MLflow draws a bar for every small file it reads, which buries the report of a failing test.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# Processes of xdist are given the width of a terminal; output is as wide as in a pipe.
os.environ.pop("COLUMNS", None)

if "PYTEST_XDIST_WORKER" in os.environ:
    # One process of tests per core: more threads of PyTorch would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Modules with long tests are begun first, so that no process ends with one while the other idles.
_LONGEST_FIRST = (
    "recipes", "optimize", "evaluation", "tracking", "runtime", "readers", "cli", "report",
)  # fmt: skip

# The same examples on every run, so that a failure is about the change at hand;
# HYPOTHESIS_PROFILE=exploring looks for new ones. No deadline: it measures the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("exploring", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--oracles",
        action="append",
        default=[],
        metavar="FILE",
        help="further reference values for tests/stats/test_oracles.py, in the same JSON format",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


@pytest.fixture(autouse=True)
def _mlflow_state() -> Iterator[None]:
    """No test sees what another one set in MLflow."""
    with mlflow_state_kept():
        yield


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of tiny models and their exports, one for all processes of a test run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # below the run's folder each process has its own
        folder = folder.parent
    return folder / "model-cache"
