"""What all commands have in common: JSON, width, stores left alone, short ids, SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow_stores import use_empty_store

from mlflow_degrade import SampleScores, cli, read_samples
from mlflow_degrade.cli import COMMANDS
from mlflow_degrade.core.errors import TrackingError
from mlflow_degrade.samples.readers.mlflow_runs import whole_reference, whole_run_id
from mlflow_degrade.tracking.evaluations import log_evaluation

Call = Callable[..., Any]


def _commands(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}".strip(), command


class TestJson:
    def test_every_option_is_alike(self) -> None:
        found = {
            name: option
            for name, command in _commands(cli.cli)
            for option in command.params
            if "--json" in option.opts
        }
        assert {"plan", "compare", "gate", "verify", "evidence verify", "noise"} <= set(found)
        for option in found.values():
            assert isinstance(option, click.Option)
            assert (option.metavar, option.flag_value, option.is_flag) == ("[FILE|-]", "-", False)

    @pytest.mark.parametrize("ending", [["--json"], ["--json", "-"], ["--json", "out.json"]])
    def test_alone_with_a_dash_and_with_a_file(
        self, ending: list[str], call: Call, there: Path
    ) -> None:
        result = call("compare", "fp32.csv", "int8.csv", *ending)
        assert result.code == 0, result.err
        file = there / "out.json"
        assert file.exists() == ("out.json" in ending)
        text = file.read_text() if file.exists() else result.out
        assert json.loads(text)["verdict"] == "PASS"
        assert ("PASS" in result.err) == (not file.exists()), "tables go where the JSON is not"

    def test_two_documents_do_not_share_standard_output(self, call: Call) -> None:
        result = call("compare", "fp32.csv", "int8.csv", "--json", "-", "--markdown", "-")
        assert result.code == 3
        assert "give one a file" in result.err

    def test_plan(self, call: Call) -> None:
        given = ("--flip-rate", "0.05", "--drop-pp", "1", "--samples", "1319", "--samples", "3")
        result = call("plan", *given, "--json")
        found = json.loads(result.out)
        (needed,) = found["needed"]
        assert (needed["drop"], needed["flip_rate"]) == (0.01, 0.05)
        # The table on standard error shows the same number.
        assert f"{needed['detect']:,}" in result.err
        large, small = found["detectable"]
        assert (large["n"], small["n"], small["drop"]) == (1319, 3, None)
        assert 0.01 < large["drop"] < 0.03
        measured = json.loads(call("plan", "fp32.csv", "fp32_again.csv", "--json").out)["measured"]
        assert [row["name"] for row in measured] == ["arc", "gsm8k", "numbers", "all tasks"]
        assert measured[-1]["changed"] == 50


def test_markdown_and_junit(call: Call, there: Path) -> None:
    from xml.etree import ElementTree

    result = call(
        "compare", "fp32.csv", "int4.csv", "--markdown", "-", "--junit", "verdict.xml"
    )  # fmt: skip
    assert result.code == 1
    assert result.out.startswith("### ✕ FAIL: int4.csv against fp32.csv\n")
    assert "| numbers **(guilty)** |" in result.out
    suite = ElementTree.parse(there / "verdict.xml").getroot()[0]
    failed = [c.get("name") for c in suite if c.find("failure") is not None]
    assert failed == ["all tasks", "numbers"]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "0")


def test_names_that_xml_cannot_hold(call: Call, there: Path) -> None:
    from xml.etree import ElementTree

    rows = "".join(f"<t & '\x07>,{n},1\n" for n in range(400))
    for name in ("a", "b"):
        text = rows if name == "a" else rows.replace(",3,1", ",3,0")
        (there / f"{name}.csv").write_text(f"task,prompt_id,score\n{text}")
    assert call("compare", "a.csv", "b.csv", "--junit", "x.xml").code == 0
    names = [c.get("name") for c in ElementTree.parse(there / "x.xml").iter("testcase")]
    assert names == ["all tasks", "<t & '�>"]


class TestWithoutATerminal:
    def test_no_line_ends_with_blanks(self, call: Call) -> None:
        for args in (["compare", "fp32.csv", "int4.csv", "--by", "length"], ["plan"]):
            lines = call(*args).out.splitlines()
            assert len(lines) > 10
            assert [line for line in lines if line != line.rstrip()] == []

    @pytest.mark.parametrize("columns", ["72", "100", "160"])
    def test_columns_are_followed(
        self, columns: str, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        widest = max(map(len, call("compare", "fp32.csv", "int4.csv").out.splitlines()))
        assert widest == int(columns), "the frame of the verdict takes what there is"

    def test_the_width_without_them(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("COLUMNS", raising=False)
        assert max(map(len, call("compare", "fp32.csv", "int4.csv").out.splitlines())) == 110


READING = [
    ["candidates"],
    ["compare", "runs:/1f3c9ab2", "runs:/77d0e4c1"],
    ["plan", "runs:/1f3c9ab2", "runs:/77d0e4c1"],
    ["noise", "runs:/1f3c9ab2", "runs:/77d0e4c1"],
    ["verify", "models:/chat@champion"],
    ["evidence", "export", "models:/chat@champion", "-o", "x.zip"],
    ["gate", "--candidate", "runs:/1f3c9ab2", "--baseline", "models:/chat@champion"],
]


@pytest.mark.slow
@pytest.mark.parametrize("args", READING, ids=lambda args: args[0])
def test_who_only_reads_makes_no_store(args: list[str], tmp_path: Path) -> None:
    own = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_degrade", *args], cwd=tmp_path, env=own,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "there is no MLflow store at sqlite:///" in done.stderr
    assert "set MLFLOW_TRACKING_URI" in done.stderr
    assert list(tmp_path.iterdir()) == []


class TestShortIds:
    @pytest.fixture
    def ids(self, there: Path) -> dict[str, str]:
        use_empty_store(there)
        found = {}
        for name in ("fp32", "int8"):
            samples: SampleScores = read_samples(there / f"{name}.csv").with_model(name)
            with mlflow.start_run(run_name=name) as run:
                log_evaluation(samples, {"model": name, "suite": "s"})
            found[name] = run.info.run_id
        return found

    def test_a_beginning_is_enough(self, ids: dict[str, str], call: Call) -> None:
        short = [f"runs:/{run_id[:8]}" for run_id in ids.values()]
        result = call("compare", *short, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["candidate"]["model"] == "int8"

    def test_two_lengths_of_one_id_are_one_run(self, ids: dict[str, str], call: Call) -> None:
        result = call("compare", f"runs:/{ids['fp32']}", f"runs:/{ids['fp32'][:8]}")
        assert result.code == 3
        assert "the same log" in result.err

    def test_several_are_named(self, ids: dict[str, str]) -> None:
        # MLflow draws ids by chance: a copy of a run gets one that begins alike.
        twin = f"{ids['int8'][:8]}{'0' * 24}"
        with closing(sqlite3.connect("mlflow.db")) as store, store:
            store.execute("CREATE TEMP TABLE one AS SELECT * FROM runs WHERE run_uuid = ?",
                          (ids["int8"],))  # fmt: skip
            store.execute("UPDATE one SET run_uuid = ?", (twin,))
            store.execute("INSERT INTO runs SELECT * FROM one")
        with pytest.raises(TrackingError, match="begins the ids of 2 runs") as caught:
            whole_run_id(ids["int8"][:6])
        assert twin in str(caught.value)
        assert ids["int8"] in str(caught.value)
        assert whole_run_id(twin[:12]) == twin

    @pytest.mark.usefixtures("ids")
    def test_what_nobody_has_is_left_to_the_message_of_mlflow(self, call: Call) -> None:
        assert whole_run_id("0" * 8) == "0" * 8
        assert whole_reference("models:/chat@champion") == "models:/chat@champion"
        result = call("compare", "runs:/00000000", "fp32.csv")
        assert result.code == 3
        assert "00000000" in result.err
        assert "Check the run id and MLFLOW_TRACKING_URI" in result.err

    def test_an_artifact_path_is_kept(self, ids: dict[str, str]) -> None:
        run_id = ids["int8"]
        assert whole_reference(f"runs:/{run_id[:6]}/samples") == f"runs:/{run_id}/samples"


def test_sigterm_is_one_word(there: Path) -> None:
    """Whatever a command is doing: here it waits for a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "mlflow_degrade", "gate", "--candidate", "runs:/a"]
        with subprocess.Popen(
            [*command, "--baseline", "runs:/b"], cwd=there, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "MLFLOW_TRACKING_URI": address},
        ) as process:  # fmt: skip
            server.settimeout(60)
            connection, _ = server.accept()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
            connection.close()
    assert (process.returncode, out) == (cli.TERMINATED, "")
    assert err.splitlines()[-1] == "terminated"
    assert "Traceback" not in err


def test_every_command_is_told_about_in_the_list() -> None:
    assert all(re.fullmatch(r"[A-Z].*\.", text) for _, text in COMMANDS.values())
