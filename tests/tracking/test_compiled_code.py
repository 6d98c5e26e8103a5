"""Byte code beside a model's source: Python's own is no harm, anything else could run instead."""

from __future__ import annotations

import importlib.util
import marshal
import py_compile
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from mlflow_degrade.registry.compiled_code import unlike_their_source
from mlflow_degrade.registry.references import logged_content

SOURCE = '''\
"""A module with what byte code has: nested functions, constants of all kinds, a docstring."""
from math import pi

WORDS, TABLE = {"a", "b"}, {1: 1.0, True: -0.0, "x": (b"y", 2j, ..., None, "å")}

class Answer:
    def say(self, word: str = "yes", *more: int) -> str:
        """Say it."""
        assert word
        return f"{word} {pi:.2f} {[m + (lambda: 1)() for m in more if word in {'yes', 'no'}]}"
'''


def _compile(folder: Path, source: str = SOURCE, level: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "model.py"
    path.write_text(source, encoding="utf-8")
    return Path(py_compile.compile(str(path), optimize=level, doraise=True) or "")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_python_itself_leaves_is_no_harm(tmp_path: Path, level: int) -> None:
    compiled = _compile(tmp_path / "there", level=level)
    moved = (tmp_path / "there").rename(tmp_path / "here")
    assert unlike_their_source([moved / "__pycache__" / compiled.name]) == []


def _other(compiled: Path) -> None:
    """The header says that it is never to be compared with its source."""
    code = marshal.dumps(compile("print('planted')", "model.py", "exec"))
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
    compiled.write_bytes(header + code)


def _change(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(compiled: Path) -> None:
        content = compiled.read_bytes()
        assert content.count(old) == 1
        compiled.write_bytes(content.replace(old, new))

    return change


def _smaller_stack(compiled: Path) -> None:
    """Equal to Python's ==, and yet no code that its source compiles to."""
    content = compiled.read_bytes()
    code = marshal.loads(content[16:])
    changed = code.replace(co_stacksize=code.co_stacksize + 1)
    assert changed == code
    compiled.write_bytes(content[:16] + marshal.dumps(changed))


@pytest.mark.parametrize(
    "plant",
    [
        _other,
        _change(b"yes", b"no!"),
        _smaller_stack,
        lambda path: path.write_bytes(b"\0\0\0\0" + path.read_bytes()[4:]),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes()[:16] + b"\xe3" * 10_000),
        lambda path: path.write_bytes(b""),
        lambda path: path.rename(path.with_name("model.pyc")),
        lambda path: path.parent.with_name("model.py").unlink(),
        lambda path: path.parent.with_name("model.py").write_text("def broken("),
        lambda path: path.parent.with_name("model.py").write_text(SOURCE.replace("yes", "no")),
    ],
)
def test_anything_else_is_told(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    good = _compile(tmp_path / "good")
    compiled = _compile(tmp_path / "bad")
    plant(compiled)
    (bad,) = (tmp_path / "bad").glob("__pycache__/*")
    assert unlike_their_source([good, bad]) == [bad]


def test_a_file_that_crashes_python_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = _compile(tmp_path / "model")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert unlike_their_source([compiled]) == [compiled]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    assert unlike_their_source([compiled]) == [compiled]


def test_what_mlflow_leaves_in_a_model_is_no_harm(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an input example MLflow loads what it is about to upload, and Python compiles it."""
    assert store
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("WORD = 'yes'\n")
    script = tmp_path / "model.py"
    script.write_text(
        "import mlflow\nfrom helpers import WORD\nclass Echo(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input):\n        return [WORD] * len(model_input)\n"
        "mlflow.models.set_model(Echo())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="model", python_model=str(script), input_example=["x"],
            code_paths=[str(tmp_path / "helpers")], pip_requirements=["mlflow"],
        )  # fmt: skip
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri))
    assert list(folder.rglob("*.pyc")), "MLflow leaves none any more"
    assert logged_content(info.model_uri).bytecode == ()
