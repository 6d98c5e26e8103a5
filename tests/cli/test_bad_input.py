"""Input that is no input: one message, exit code 3, soon, and nothing is created."""

from __future__ import annotations

import time
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, score in (("a", 1), ("b", 0)):
        rows = [f"qa,{i},acc,{score if i == 1 else 1}" for i in range(20)]
        Path(f"{name}.csv").write_text("\n".join(["task,doc_id,metric,score", *rows]))
    Path("here").symlink_to("there")
    Path("there").symlink_to("here")
    Path("brackets.yaml").write_text("a: " + "[" * 20_000 + "]" * 20_000)
    Path("indents.yaml").write_text("".join("  " * i + "a:\n" for i in range(600)))
    Path("large.yaml").write_text("a: 1 # " + "x" * 1_000_001)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["here", "b.csv"], "here does not exist"),
        (["/dev/null", "b.csv"], "neither a file nor a directory"),
        (["a.csv", "/"], "more than 100000 files"),
        (["a.csv", ""], "an empty reference"),
        (["a.csv", "b.csv", "--json", "/"], "is a folder"),
        (["a.csv", "--json", "b.csv"], "'b.csv' does not end in .json"),
        (["a.csv", "b.csv", "--json", "none/x.json"], "there is no folder 'none'"),
        (["a.csv", "b.csv", "--report", "none/x.html"], "there is no folder 'none'"),
        (["a.csv", "b.csv", "--samples", "-5"], "-5 is not in the range"),
        (["a.csv", "b.csv", "--policy", "brackets.yaml"], "more than 100 levels deep"),
        (["a.csv", "b.csv", "--policy", "indents.yaml"], "more than 100 levels deep"),
        (["a.csv", "b.csv", "--policy", "large.yaml"], "has 1000008 bytes"),
        (["a.csv", "b.csv", "--policy", "."], "is no file"),
    ],
)
def test_one_message(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    from mlflow_degrade.cli import run

    before = sorted(folder.iterdir())
    start = time.process_time()
    assert run(["compare", *arguments]) == 3
    # Importing what a comparison needs counts, at the first of them.
    assert time.process_time() - start < 10
    out, err = capfd.readouterr()
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == before


def test_a_kind_of_model_that_is_none_makes_no_database(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_degrade.cli import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert run(["evaluate", "--model", "starter", "--tasks", "starter"]) == 3
    assert "--model onnx --model-args pretrained=DIR" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
