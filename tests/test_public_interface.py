"""The public names are complete and cheap, and modules keep to the rules of their rooms."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlflow_degrade

_PACKAGE = Path(mlflow_degrade.__file__).parent
_FILES = sorted(_PACKAGE.rglob("*.py"))
_HEAVY = {"torch", "transformers", "optimum", "onnx", "onnxruntime", "lm_eval", "datasets"}
_ROOMS = ("", ".stats", ".readers", ".optimize", ".engine", ".registry")


@pytest.mark.parametrize("room", _ROOMS)
def test_public_names_resolve(room: str) -> None:
    module = importlib.import_module(f"mlflow_degrade{room}")
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        found = getattr(module, name)
        assert found.__doc__
        assert not isinstance(found, type(ast)), "a module hides it"
    with pytest.raises(AttributeError, match=r"attribute '?quantise"):
        _ = module.quantise


def test_the_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((_PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert mlflow_degrade.__version__ == project["project"]["version"]


def _imports(path: Path, *, top_level: bool) -> set[str]:
    """First components of absolute imports, without those under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            elif not top_level or isinstance(node, (ast.If, ast.Try, ast.With)):
                for field in ("body", "orelse", "finalbody"):
                    visit(getattr(node, field, []))

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    # Subclasses of lm-eval's classes are imported when those are used.
    excepted = {"backend.py", "encoder_backend.py", "encoder_tasks.py", "endpoint_backend.py"}
    files = [path for path in _FILES if path.name not in excepted]
    assert {p.name: found for p in files if (found := _imports(p, top_level=True) & _HEAVY)} == {}


def test_statistics_import_numpy_and_scipy_only() -> None:
    known = {"numpy", "scipy", "lazy_loader", "mlflow_degrade", *sys.stdlib_module_names}
    files = sorted((_PACKAGE / "stats").glob("*.py"))
    assert len(files) > 20
    assert {p.name: found for p in files if (found := _imports(p, top_level=False) - known)} == {}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mlflow_degrade; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & (_HEAVY | {"numpy", "pandas", "pydantic", "mlflow", "scipy"})


def test_modules_stay_readable() -> None:
    """A module is as long as its topic; beyond 500 lines of code it deserves a second look."""
    assert {p.name: n for p in _FILES if (n := _lines_of_code(p)) > 500} == {}


def _lines_of_code(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = (n for n in ast.walk(tree) if isinstance(n, ast.Expr) and _is_text(n.value))
    docs = {line for n in texts for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    used = {n.lineno for n in ast.walk(tree) if isinstance(n, (ast.stmt, ast.expr))}
    return len(used - docs)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _modules() -> Iterator[tuple[str, Path]]:
    for path in _FILES:
        inside = path.relative_to(_PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
        yield inside.removesuffix(".__init__"), path


def _first_imports(module: str, path: Path, known: set[str]) -> set[str]:
    """Modules of this package that are loaded together with a module."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            targets = (f"{name}.{alias.name}" for alias in node.names)
            found |= {target if target in known else name for target in targets}
    return found & known - {module}


def test_no_module_is_imported_in_a_circle() -> None:
    files = dict(_modules())
    graph = {name: _first_imports(name, path, set(files)) for name, path in files.items()}
    while True:  # take away what imports nothing that is left
        ends = {name for name, others in graph.items() if not others & set(graph)}
        if not ends:
            break
        graph = {name: others for name, others in graph.items() if name not in ends}
    assert graph == {}


def test_the_statistics_have_a_face_of_about_forty_names() -> None:
    assert 35 <= len(importlib.import_module("mlflow_degrade.stats").__all__) <= 42
