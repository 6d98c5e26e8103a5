"""Options of the test suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--oracles",
        action="append",
        default=[],
        metavar="FILE",
        help="further reference values for tests/stats/test_oracles.py, in the same JSON format",
    )
