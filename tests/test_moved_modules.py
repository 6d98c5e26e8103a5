"""Modules of before the rooms are found under their former names, with a warning."""

from __future__ import annotations

import importlib
import warnings

import pytest

import mlflow_degrade
from mlflow_degrade.core.moved import _MOVED


@pytest.mark.parametrize("name", sorted(_MOVED))
def test_former_names_lead_to_the_modules_of_now(name: str) -> None:
    with pytest.warns(DeprecationWarning, match="now"):
        found = importlib.reload(importlib.import_module(f"mlflow_degrade.{name}"))
    now = importlib.import_module(f"mlflow_degrade.{_MOVED[name]}")
    own = [
        key for key, value in vars(now).items() if getattr(value, "__module__", "") == now.__name__
    ]
    assert own
    assert all(getattr(found, key) is getattr(now, key) for key in own)


def test_packages_that_were_modules_still_have_their_names() -> None:
    for package, name in (
        ("decision", "decide"),
        ("optimize.source", "resolve_model"),
        ("optimize.parity", "check_parity"),
        ("optimize.fusion", "fuse_decoder"),
        ("optimize.passes", "ExportPass"),
    ):
        module = importlib.import_module(f"mlflow_degrade.{package}")
        with pytest.warns(DeprecationWarning, match="now"):
            assert callable(getattr(module, name))


def test_public_names_do_not_warn_and_unknown_ones_do_not_exist() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            mlflow_degrade.decide
            is importlib.import_module("mlflow_degrade.decision.verdict").decide
        )
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mlflow_degrade.runtime.nothing")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = importlib.import_module("mlflow_degrade.decision").nothing


@pytest.mark.parametrize("name", ["newcombe", "McNemarResult", "FlipUnits", "spent"])
def test_names_that_left_the_statistics_face_are_found_with_a_warning(name: str) -> None:
    stats = importlib.import_module("mlflow_degrade.stats")
    assert name not in stats.__all__
    with pytest.warns(DeprecationWarning, match=rf"stats\._\w+\.{name} now"):
        assert getattr(stats, name).__name__ == name
