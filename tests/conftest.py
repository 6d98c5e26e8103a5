"""Options of the test suite."""

from __future__ import annotations

import os

import pytest

# MLflow draws a bar for every small file it reads, which buries the report of a failing test.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--oracles",
        action="append",
        default=[],
        metavar="FILE",
        help="further reference values for tests/stats/test_oracles.py, in the same JSON format",
    )
