"""MLproject files and option models say the same, and a parameter is described in one place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from recipe_cases import invoke

from mlflow_degrade.cli import cli

_ROOT = Path(__file__).parents[2]
_NAMES = sorted(file.parent.name for file in (_ROOT / "recipes").glob("*/MLproject"))


def _command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def test_project_files_are_those_the_commands_make() -> None:
    script = _ROOT / "scripts" / "generate_projects.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)
    assert _NAMES == ["export", "gate", "optimize", "quantize", "search"]


@pytest.mark.parametrize("name", _NAMES)
def test_a_project_hands_every_parameter_over(name: str) -> None:
    project = yaml.safe_load((_ROOT / "recipes" / name / "MLproject").read_text(encoding="utf-8"))
    entry = project["entry_points"]["main"]
    handed = re.findall(r"--([\w-]+) \{(\w+)\}", entry["command"])
    assert [parameter for _, parameter in handed] == list(entry["parameters"])
    for option, parameter in handed:
        assert option == parameter.replace("_", "-")
    # Unset parameters are what the command does by itself.
    options = {p.name: p for p in _command(name).params if isinstance(p, click.Option)}
    for parameter, about in entry["parameters"].items():
        assert about["type"] == "string"
        assert about.get("default") == (
            None if options[parameter].required else options[parameter].default
        )


@pytest.mark.parametrize("name", _NAMES)
def test_help_explains_every_option(name: str) -> None:
    assert invoke(name, "--help").exit_code == 0
    for option in _command(name).params:
        assert isinstance(option, click.Option)
        assert option.help, option.name


@pytest.mark.parametrize("name", ["export", "optimize", "quantize"])
def test_a_preset_that_does_not_exist_is_named_with_the_nearest(name: str) -> None:
    result = invoke(name, "--recipe", "int8-staticc")
    assert result.exit_code == 3
    assert "did you mean 'int8-static'" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--force"], "'no/such' is neither"),
        (["--force", "false"], "'no/such' is neither"),
        (["--force", "perhaps"], "force = 'perhaps': give true or false"),
        (["--strict", "perhaps"], "strict = 'perhaps': give true or false"),
    ],
)
@pytest.mark.usefixtures("store")
def test_a_switch_is_given_bare_or_in_words(arguments: list[str], says: str) -> None:
    result = invoke("quantize", "--model", "no/such", *arguments)
    assert result.exit_code == 3
    assert says in result.output
