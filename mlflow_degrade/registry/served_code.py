"""The code that travels with a registered model: the engine, and what it needs of the core."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parents[1]
SCRIPT = _PACKAGE / "engine" / "served_model.py"
NAME = "mlflow_degrade_served"
_CORE = ("__init__.py", "cache.py", "errors.py")


def served_files() -> dict[str, Path]:
    """Every file of the package that is served, by its path there."""
    files = {f"{NAME}/core/{name}": _PACKAGE / "core" / name for name in _CORE}
    engine = sorted((_PACKAGE / "engine").glob("*.py"))
    files |= {f"{NAME}/engine/{path.name}": path for path in engine if path != SCRIPT}
    # The public faces look names up in stubs, which only the whole package needs.
    plain = _PACKAGE / "core" / "__init__.py"
    return {**files, f"{NAME}/__init__.py": plain, f"{NAME}/engine/__init__.py": plain}


@contextmanager
def served_package() -> Iterator[Path]:
    """A folder that holds the package as it is served, and is imported from here meanwhile."""
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch, _stand_in():
        for name, path in served_files().items():
            target = Path(scratch, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        yield Path(scratch, NAME)


@contextmanager
def _stand_in() -> Iterator[None]:
    """MLflow runs the script where a model is logged, too; the engine of this process will do."""
    from ..engine import language_model

    names = (NAME, f"{NAME}.engine", f"{NAME}.engine.language_model")
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        sys.modules[name] = language_model if name == names[-1] else ModuleType(name)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


@contextmanager
def without_bytecode() -> Iterator[None]:
    """Log a model as it is: MLflow loads it where it is about to be uploaded from."""
    # What Python compiled there would go along, and a registry's server refuses such models.
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
