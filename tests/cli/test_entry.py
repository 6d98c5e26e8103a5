"""The command as a whole: help, start-up time, exit codes, documentation."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from mlflow_degrade import cli
from mlflow_degrade.cli import COMMANDS
from mlflow_degrade.decision.cost_evidence import BothSides, CostEvidence, PhaseRounds

ROOT = Path(__file__).parents[2]


def _children_seconds() -> float:
    """Processor time of finished children: what else the machine does is not in it."""
    times = os.times()
    return times.children_user + times.children_system


def test_help_is_there_within_a_second() -> None:
    command = [sys.executable, "-c", "from mlflow_degrade.cli import main; main()", "--help"]
    fastest = float("inf")
    for _ in range(3):
        start = _children_seconds()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        fastest = min(fastest, _children_seconds() - start)
    assert 0 < fastest < 1.0
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}", done.stdout, re.MULTILINE)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mlflow_degrade.cli import run; run(['--help']);"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'mlflow', 'scipy', 'rich'};"
        "print(*(heavy & set(sys.modules)), file=sys.stderr, end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_help(name: str, call: Callable[..., Any]) -> None:
    result = call(name, "--help")
    assert result.code == 0
    assert "Usage: mlflow-degrade " + name in result.out


def test_version(call: Callable[..., Any]) -> None:
    result = call("--version")
    assert (result.code, result.err) == (0, "")
    assert re.search(r"\d+\.\d+", result.out)


class TestWhatIsWrongExitsWith3:
    """2 would read as INCONCLUSIVE and 1 as FAIL."""

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["compar"], "unknown command 'compar': did you mean 'compare'"),
            (["compare"], "Missing argument 'BASELINE'"),
            (["compare", "a", "b", "--nonsense"], "No such option"),
            (["compare", "a", "b", "--alpha", "x"], "'x' is not a valid float"),
            (["compare", "a", "b", "--rule", "x"], "'no_degradation', 'non_inferiority'"),
            (["--nonsense"], "No such option"),
        ],
    )
    def test_usage(self, args: list[str], message: str, call: Callable[..., Any]) -> None:
        result = call(*args)
        assert result.code == 3
        assert message in result.err
        assert result.out == ""

    def test_the_process_too(self) -> None:
        command = [sys.executable, "-c", "from mlflow_degrade.cli import main; main()", "x"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert done.stderr.startswith("error: unknown command")
        assert "Traceback" not in done.stderr


def test_an_error_of_ours_is_not_a_verdict(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("mlflow_degrade.cli.plan.plan", broken)
    result = call("plan")
    assert result.code == 4
    assert "RuntimeError: a bug" in result.err
    assert "not a verdict" in result.err


def test_an_interrupt(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow_degrade.cli.plan.plan", interrupted)
    assert call("plan").code == 130


def test_a_reader_that_stops_reading(there: Path) -> None:
    code = "from mlflow_degrade.cli import main; main()"
    command = f"{sys.executable} -c {shlex.quote(code)} plan | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=there, check=True
    )
    assert "Traceback" not in done.stderr


def examples() -> list[str]:
    """The commands that the help texts show."""
    found = []
    group = click.Context(cli.cli, info_name="mlflow-degrade")
    for name in COMMANDS:
        command = cli.cli.get_command(group, name)
        assert command is not None
        text = command.get_help(click.Context(command, info_name=name, parent=group))
        found += re.findall(r"^ +(mlflow-degrade .*?) *$", text, re.MULTILINE)
    return found


def test_both_commands_show_examples() -> None:
    shown = examples()
    for name in ("compare", "plan"):
        assert sum(example.startswith(f"mlflow-degrade {name}") for example in shown) >= 3


# Examples of commands that are about models rather than logs are run where those are tested.
# Addresses are read in test_remote_files.py.
RUNNABLE = [e for e in examples() if e.split()[1] in ("compare", "plan") and "://" not in e]


@pytest.mark.parametrize("example", RUNNABLE)
def test_the_examples_in_the_help_run(example: str, there: Path, call: Callable[..., Any]) -> None:
    rounds = PhaseRounds(
        baseline=(2.0,) * 30, candidate=(1.0,) * 30,
        phase="decode", batch_size=1, length=64, new_tokens=16,
    )  # fmt: skip
    cost = CostEvidence(
        baseline_digest=None, candidate_digest=None, device="cpu", processor="x86_64", threads=2,
        seed=0, size_bytes=BothSides(baseline=(4.0,), candidate=(1.0,)), phases=(rounds,),
    )  # fmt: skip
    (there / "bench.json").write_text(cost.to_json())
    result = call(*shlex.split(example)[1:])
    assert result.code in (0, 1, 2), result.err
    for name in re.findall(r"(?:--report|--plot) (\S+)", example):
        assert (there / name).stat().st_size > 1000


def test_the_page_on_the_command_line_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_cli_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
