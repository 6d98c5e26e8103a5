"""What somebody gets who installs the wheel, and somebody who unpacks the sdist."""

from __future__ import annotations

import re
import resource
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from installed import ROOT, Environment

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Any:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def test_every_file_of_the_package_is_in_the_wheel(sources: Path, names: set[str]) -> None:
    package = {
        path.relative_to(sources).as_posix()
        for path in (sources / "mlflow_degrade").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package - names == set()


def test_nothing_else_is_installed(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mlflow_degrade"}


def test_licenses_and_addresses_are_told(names: set[str], metadata: Any) -> None:
    listed = metadata.get_all("License-File")
    assert [Path(name).name for name in listed] == ["LICENSE", "LICENSE-WordNet.txt"]
    for name in listed:
        assert any(path.endswith(f".dist-info/licenses/{name}") for path in names), name
    addresses = dict(text.split(", ") for text in metadata.get_all("Project-URL"))
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= set(addresses)
    assert all(address.startswith("https://") for address in addresses.values())


def test_the_sdist_has_what_a_clone_has_for_users(sources: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        path.relative_to(sources).as_posix()
        for folder in ("recipes", "docs", "examples", "mlflow_degrade")
        for path in (sources / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted |= {"README.md", "LICENSE", "CHANGELOG.md", "action.yml", "mkdocs.yml"}
    assert wanted - inside == set()
    assert not [name for name in inside if "__pycache__" in name]


def test_entry_points_load(environment: Environment, tmp_path: Path) -> None:
    stated = PROJECT["project"]["entry-points"] | {"console_scripts": PROJECT["project"]["scripts"]}
    code = f"""
from importlib.metadata import entry_points
for group, stated in {stated!r}.items():
    for name, value in stated.items():
        (point,) = entry_points(group=group, name=name)
        assert point.value == value and point.dist.name == "mlflow-degrade", point
        assert point.load() is not None
import mlflow_degrade
print(mlflow_degrade.__file__, mlflow_degrade.__version__)
"""
    done = environment.run(environment.python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(environment.folder))
    assert done.stdout.split()[-1] == PROJECT["project"]["version"]


def test_the_module_is_the_command(environment: Environment, tmp_path: Path) -> None:
    for command in (["mlflow-degrade"], [environment.python, "-m", "mlflow_degrade"]):
        done = environment.run(*command, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Usage: mlflow-degrade ")
    assert environment.run("mlflow-degrade", "--version", cwd=tmp_path).returncode == 0


# What the light base does without.
_EXTRAS = ("torch", "transformers", "onnx", "onnxruntime", "lm_eval", "optimum", "datasets", "gguf")


def _without_extras(folder: Path) -> str:
    """A folder with modules in the place of the extras, which say that they are not there."""
    folder.mkdir()
    for name in _EXTRAS:
        text = f"raise ModuleNotFoundError('not installed', name={name!r})\n"
        (folder / f"{name}.py").write_text(text)
    return str(folder)


def test_the_demo_needs_five_seconds_and_none_of_the_extras(
    environment: Environment, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    absent = _without_extras(tmp_path / "absent")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = environment.run("mlflow-degrade", "demo", cwd=tmp_path / "here", PYTHONPATH=absent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time: what else the machine does is not in it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert re.search(r"✓ PASS", done.stdout)
    assert not list((tmp_path / "here").iterdir()), "it writes nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("candidate", "code"), [("int8-weight-only", 0), ("int4-weight-only", 1)])
def test_the_commands_that_the_demo_ends_with_run(
    candidate: str, code: int, environment: Environment, tmp_path: Path
) -> None:
    done = environment.run(
        "mlflow-degrade", "demo", candidate, "--output", "degrade-demo", cwd=tmp_path
    )
    assert done.returncode == code, done.stderr
    shown = re.findall(r"^  (mlflow-degrade .+)$", done.stdout.partition("\nNext\n")[2], re.M)
    assert len(shown) == 4
    for command in shown:
        words = command.replace("BASELINE", "degrade-demo/fp32.parquet")
        words = words.replace("CANDIDATE", f"degrade-demo/{candidate}.parquet").split()
        again = environment.run(*words, cwd=tmp_path)
        assert again.returncode in (0, 1, 2), f"{command}\n{again.stderr}"
        if "policy.yaml" in command:
            assert again.returncode == code
    assert (tmp_path / "degrade-demo" / "report.html").stat().st_size > 1000
