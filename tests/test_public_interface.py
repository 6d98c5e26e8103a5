"""The public names are complete, sorted and cheap; layers import only what lies above them."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlflow_degrade

_PACKAGE = Path(mlflow_degrade.__file__).parent
_HEAVY = {"torch", "transformers", "optimum", "onnx", "onnxruntime", "lm_eval", "datasets"}


def test_all_is_sorted_and_resolves() -> None:
    names = mlflow_degrade.__all__
    assert list(names) == sorted(names, key=str.lower)
    assert set(names) == set(mlflow_degrade._HOME)
    for name in names:
        assert getattr(mlflow_degrade, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = mlflow_degrade.quantise


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


@pytest.mark.parametrize("path", sorted(_PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    if path.name in ("pyfunc_model.py", "backend.py", "encoder_backend.py", "encoder_tasks.py"):
        return  # subclasses of MLflow's and lm-eval's classes, imported when those are used
    assert not _imports(path, top_level=True) & _HEAVY


@pytest.mark.parametrize("path", sorted((_PACKAGE / "stats").glob("*.py")), ids=lambda p: p.stem)
def test_statistics_import_numpy_and_scipy_only(path: Path) -> None:
    foreign = _imports(path, top_level=False) - set(sys.stdlib_module_names)
    assert foreign <= {"numpy", "scipy", "mlflow_degrade"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mlflow_degrade; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & (_HEAVY | {"numpy", "pandas", "pydantic", "mlflow", "scipy"})


@pytest.mark.parametrize("path", sorted(_PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_modules_stay_readable(path: Path) -> None:
    """A module is as long as its topic; beyond 500 lines of code it deserves a second look."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = (n for n in ast.walk(tree) if isinstance(n, ast.Expr) and _is_text(n.value))
    docs = {line for n in texts for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    used = {n.lineno for n in ast.walk(tree) if isinstance(n, (ast.stmt, ast.expr))}
    assert len(used - docs) <= 500


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# Each may import those before it. Reports are made of decisions alone, so that MLflow's side of
# the package can log them.
_LAYERS = (
    (
        "_redaction",
        "_notes",
        "errors",
        "_plugins",
        "_numbers",
        "_metric_names",
        "_question_names",
        "_yaml_files",
        "_text_keys",
        "_row_index",
        "_table_digest",
        "_sample_schema",
        "cache",
        "origin",
        "prompting",
    ),
    ("stats",),
    ("scores",),
    ("_matching", "_comparability", "_items", "pairing"),
    ("policy",),
    (
        "results",
        "portability",
        "_task_samples",
        "_testing",
        "_answers",
        "_reasons",
        "decision",
        "rerun",
        "planning",
        "subgroups",
    ),
    ("readers",),
    ("runtime", "optimize"),
    ("evaluation",),
    ("report",),
    ("tracking",),
    ("cli",),
    ("recipes",),
)
_LEVEL = {name: level for level, names in enumerate(_LAYERS) for name in names}
# The starter model lies with the suite it belongs to, and is a name like any other to users.
_KNOWN_UPWARD = {("optimize/source.py", "evaluation")}


def _own_imports(path: Path) -> set[str]:
    """Parts of this package that a module imports anywhere, those for type checkers included."""
    inside = path.relative_to(_PACKAGE).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == len(inside):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found.update(name.split(".")[0] for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlflow_degrade."):
            found.add(str(node.module).split(".")[1])
    return found


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(_PACKAGE.rglob("*.py")) if p != _PACKAGE / "__init__.py"],
    ids=lambda p: "/".join(p.relative_to(_PACKAGE).parts),
)
def test_layers_import_only_what_lies_above(path: Path) -> None:
    inside = path.relative_to(_PACKAGE)
    own = inside.parts[0].removesuffix(".py")
    upward = {name for name in _own_imports(path) if _LEVEL[name] > _LEVEL[own]}
    assert {(inside.as_posix(), name) for name in upward} <= _KNOWN_UPWARD
