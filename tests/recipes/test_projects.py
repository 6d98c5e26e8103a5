"""MLproject files say what the commands take: the same parameters with the same defaults."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

_RECIPES = Path(__file__).parents[2] / "recipes"
_NAMES = sorted(file.parent.name for file in _RECIPES.glob("*/MLproject"))


def _command(name: str) -> click.Command:
    module = "recipe_gate" if name == "gate" else name
    found = import_module(f"mlflow_degrade.cli.{module}").main
    assert isinstance(found, click.Command)
    return found


@pytest.mark.parametrize("name", _NAMES)
def test_project_and_command_agree(name: str) -> None:
    project = yaml.safe_load((_RECIPES / name / "MLproject").read_text(encoding="utf-8"))
    assert project["name"] == f"mlflow-degrade-{name}"
    entry = project["entry_points"]["main"]
    options = {p.name: p for p in _command(name).params if isinstance(p, click.Option)}
    assert list(entry["parameters"]) == list(options)
    for parameter, about in entry["parameters"].items():
        assert about["type"] == "string"
        assert about.get("default") == (
            None if options[parameter].required else options[parameter].default
        )
    handed = re.findall(r"--([\w-]+) \{(\w+)\}", entry["command"])
    assert [parameter for _, parameter in handed] == list(options)
    for option, parameter in handed:
        assert option == parameter.replace("_", "-")


@pytest.mark.parametrize("name", _NAMES)
def test_help_explains_every_option(name: str) -> None:
    shown = CliRunner().invoke(_command(name), ["--help"])
    assert shown.exit_code == 0
    for option in _command(name).params:
        assert isinstance(option, click.Option)
        assert option.help, option.name


@pytest.mark.parametrize("name", ["export", "optimize", "quantize"])
def test_a_preset_that_does_not_exist_is_named_with_the_nearest(name: str) -> None:
    presets = _RECIPES / name / "presets"
    nearest = {"export": "fused", "optimize": "fused", "quantize": "int8-static"}[name]
    result = CliRunner().invoke(_command(name), ["--recipe", f"{nearest}e"], obj=presets)
    assert result.exit_code == 3
    assert f"did you mean '{nearest}'" in result.output
    assert "Traceback" not in result.output
