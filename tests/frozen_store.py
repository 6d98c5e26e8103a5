"""Registered versions that an earlier state of the package made, and how they were packed.

    python tests/frozen_store.py        # pack new ones into tests/frozen, from the package as it is

``chat/1`` is a model that echoes, with signed evidence of a PASS; ``tiny/1`` is a tiny decoder that
the quantize recipe exported, judged and registered, with the code that it is served by. That code
is the package of its time without docstrings, comments, commands and the starter's questions, for
size.
"""

from __future__ import annotations

import ast
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

FOLDER = Path(__file__).parent / "frozen"
_PLACE = "@FOLDER@"
#: Where a store is made, so that the addresses in its database can be found.
_DATABASE = "mlflow.sql"


def unpack(name: str, folder: Path) -> str:
    """Lay a packed store out in a folder; the address of its database."""
    with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    text = (folder / _DATABASE).read_text(encoding="utf-8").replace(_PLACE, str(folder))
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.executescript(text)
        (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    from mlflow.store.db.utils import _get_latest_schema_revision

    if revision != _get_latest_schema_revision():
        subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True)
    return uri


def pack(name: str, folder: Path) -> None:
    """Pack a store: its database as text, and the files of its models and evidence."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        text = "\n".join(database.iterdump()).replace(str(folder), _PLACE)
    (folder / _DATABASE).write_text(text, encoding="utf-8")
    with tarfile.open(FOLDER / f"{name}.tar.xz", "w:xz", preset=9) as archive:
        for path in sorted(folder.rglob("*")):
            part = path.relative_to(folder)
            kept = part.parts[0] == "mlruns" and ({"evidence", "models"} & set(part.parts))
            if path.is_file() and (kept or part.name in (_DATABASE, "release.pub")):
                archive.add(path, str(part), filter=_plain)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same whoever packs it, and when."""
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    return entry


def _make_signed(folder: Path) -> None:
    import signing_cases

    key = signing_cases.load_key(signing_cases.make_key(folder / "release.pem"))
    signing_cases.register_judged(folder, "chat", signing_cases.judge(), key=key)


_RECIPE = """
import sys
from pathlib import Path
from recipe_cases import make_items, write_task
from tiny_models import make_tiny_llama
from mlflow_degrade import GatePolicy, QuantizeOptions, quantize_and_gate

made = Path("made").absolute()
make_tiny_llama(made / "model", hidden=32, layers=1, vocab=300)
(made / "tasks").mkdir()
write_task(made / "tasks", "boats", make_items(150, seed=0))
outcome = quantize_and_gate(
    QuantizeOptions(
        model=str(made / "model"), tasks=("boats",), include_path=made / "tasks", limit=None,
        policy=GatePolicy(margin_pp=20), register_as="tiny", device="cpu", cost_seconds=0.1,
    )
)
assert outcome.registered == "models:/tiny/1", outcome.decision.reasons
"""


def _make_recipe(folder: Path) -> None:
    tests = Path(__file__).parent
    package = folder / "package" / "mlflow_degrade"
    shutil.copytree(
        tests.parent / "mlflow_degrade",
        package,
        ignore=shutil.ignore_patterns("__pycache__", "cli"),
    )
    for path in package.rglob("*.jsonl*"):
        path.unlink()
    for path in package.rglob("*.py"):
        path.write_text(_without_docstrings(path.read_text(encoding="utf-8")), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-c", _RECIPE], cwd=folder, check=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
             "PYTHONPATH": f"{package.parent}{os.pathsep}{tests}"},
    )  # fmt: skip


def _without_docstrings(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree) + "\n"


def main() -> None:
    tests = Path(__file__).parent
    sys.path[:0] = [str(tests), str(tests / "tracking")]
    from mlflow_stores import use_empty_store

    for name, make in (("signed", _make_signed), ("recipe", _make_recipe)):
        folder = Path(tempfile.mkdtemp(prefix="frozen-"))
        os.environ["MLFLOW_DEGRADE_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        use_empty_store(folder)
        make(folder)
        pack(name, folder)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
