"""The commands of a working day: ``nox -l`` lists them, ``nox`` runs lint, generated and test.

They run in the environment that nox was called from (``pip install -e ".[cpu,test]"``): one with
PyTorch takes minutes to make. ``.ci/run`` does everything in a fresh one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "generated", "test"]

_GENERATORS = (
    "scripts/generate_cli_docs.py",
    "scripts/generate_policy_docs.py",
    "scripts/generate_projects.py",
)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def generated(session: nox.Session) -> None:
    """Are the generated pages current? ``nox -s generated -- write`` writes them."""
    for script in _GENERATORS:
        session.run("python", script, *([] if "write" in session.posargs else ["--check"]))


@nox.session
def test(session: nox.Session) -> None:
    """The fast tests, or those named after ``--``."""
    session.run("pytest", *session.posargs)


@nox.session
def long(session: nox.Session) -> None:
    """The long tests: real models, servers, simulations."""
    session.run("pytest", "-n", "0", "-m", "slow and not exhaustive", *session.posargs)


#: What stands on MLflow's own interfaces, and has to hold on each of its versions.
_ON_MLFLOW = (
    "tests/tracking/test_evaluator.py",
    "tests/tracking/test_genai_runs.py",
    "tests/tracking/test_promotion.py",
    "tests/tracking/test_served_by_mlflow.py",
    "tests/tracking/test_verification.py",
    "tests/readers/test_mlflow_traces.py",
)


@nox.session
def mlflow(session: nox.Session) -> None:
    """What stands on MLflow, on one of its versions: ``nox -s mlflow -- 3.18``, or newest.

    It is installed into the environment that nox was called from, as the matrix of CI does.
    """
    version, *more = session.posargs or ["newest"]
    wanted = "mlflow<4" if version == "newest" else f"mlflow~={version}.0"
    session.run("pip", "install", "--upgrade", wanted)
    session.run("pip", "check")
    session.run("pytest", "-n", "0", "-m", "not exhaustive", *_ON_MLFLOW, *more)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in site/; needs the extra "docs"."""
    session.run("mkdocs", "build", "--quiet", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend="venv")
def build(session: nox.Session) -> None:
    """Wheel and sdist in dist/, checked, and the wheel used in an environment without a clone."""
    session.install("build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    made = sorted(map(str, Path("dist").resolve().iterdir()))
    session.run("twine", "check", "--strict", *made)
    (wheel,) = (path for path in made if path.endswith(".whl"))
    checks = str(Path("scripts/check_wheel.py").resolve())
    session.install(wheel)
    session.chdir(session.create_tmp())
    session.run("python", "-I", checks)
