"""An environment that has the wheel and no clone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Commands of other distributions that the documentation calls.
_COMMANDS = {"mlflow": "mlflow", "lm_eval": "lm_eval", "pytest": "pytest"}


@dataclass(frozen=True)
class Environment:
    """A Python with the wheel installed."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def variables(self, **more: str) -> dict[str, str]:
        """The process environment of somebody who activated it: nothing of the clone is seen."""
        seen = ("PYTHONPATH", "PYTEST_", "MLFLOW_", "_MLFLOW_")  # MLflow keeps its address there
        own = {k: v for k, v in os.environ.items() if not k.startswith(seen)}
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        return own | {"PATH": path, "VIRTUAL_ENV": str(self.folder), "COLUMNS": "100"} | more

    def run(self, *command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd, env=self.variables(**more), capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip


def build(sources: Path, kind: str) -> Path:
    """Build a wheel or an sdist with the tools that are installed."""
    out = sources.parent / "dist"
    out.mkdir(exist_ok=True)
    call = f"build_{kind} as b; print(b({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", f"from setuptools.build_meta import {call}"],
        cwd=sources, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


def install(wheel: Path, folder: Path) -> Environment:
    """The wheel as pip installs it; its dependencies are those of the environment of the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    purelib = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    # A line in a .pth file adds a folder to the path, but not the .pth files in that folder: what
    # is installed there as editable is not found.
    (Path(purelib) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    for name, module in _COMMANDS.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    return Environment(folder)
