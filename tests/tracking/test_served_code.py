"""What travels with a registered model is the engine, and it needs nothing else of the package."""

from __future__ import annotations

import ast
import subprocess
import sys

from mlflow_degrade.registry.served_code import NAME, SCRIPT, served_files, served_package


def test_every_import_of_the_served_files_is_served() -> None:
    files = served_files()
    modules = {
        name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in files
    }
    for name, path in files.items():
        home = name.split("/")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            if not node.level:
                assert not str(node.module).startswith("mlflow_degrade"), (name, node.module)
                continue
            base = home[: len(home) - node.level + 1]
            target = ".".join([*base, *([node.module] if node.module else [])])
            assert target in modules, (name, target)


def test_a_model_carries_no_more_than_the_engine_and_a_little_of_the_core() -> None:
    rooms = [name.split("/")[1] for name in served_files() if name.count("/") == 2]
    assert set(rooms) == {"core", "engine"}
    assert rooms.count("core") == 3
    assert len(rooms) < 40  # the whole package has hundreds


def test_it_runs_without_the_package_and_does_not_hide_it() -> None:
    code = f"""
import sys
sys.modules["mlflow_degrade"] = None  # importing it fails
from {NAME}.engine.language_model import OnnxLanguageModel
from {NAME}.engine import decoder, encoder, generation
del sys.modules["mlflow_degrade"]
import mlflow_degrade
print(OnnxLanguageModel.__module__, mlflow_degrade.decide.__module__)
"""
    with served_package() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=False, cwd=folder.parent,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        f"{NAME}.engine.language_model",
        "mlflow_degrade.decision.verdict",
    ]


def _served_modules() -> dict[str, object]:
    return {name: module for name, module in sys.modules.items() if name.startswith(NAME)}


def test_logging_leaves_the_modules_of_that_name_as_they_were() -> None:
    before = _served_modules()  # another test of this process may have loaded a model
    with served_package():
        assert NAME in sys.modules
        exec(compile(SCRIPT.read_text(encoding="utf-8"), str(SCRIPT), "exec"), {})
    assert _served_modules() == before
