"""The wheel, built from what is in the repository, and an environment that has it and no clone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from installed import ROOT, Environment, build, install


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would commit: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("sources") / "mlflow-degrade"
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():  # not what was deleted and is not committed yet
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def wheel(sources: Path) -> Path:
    return build(sources, "wheel")


@pytest.fixture(scope="session")
def sdist(sources: Path) -> Path:
    return build(sources, "sdist")


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(wheel, tmp_path_factory.mktemp("installed") / "venv")
