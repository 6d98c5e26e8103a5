"""Run the expensive things in two checkouts, and say whether anything came out differently.

    python scripts/compare_checkouts.py ../before .                # everything, the starter too
    python scripts/compare_checkouts.py ../before . --quick        # tiny models, a few minutes

Compared are the ONNX files of the export and of every scheme, on the starter model, a tiny decoder
and a tiny encoder; the scores of the engine; and of the quantize recipe (``mlflow run``) the
verdict, the decision and the samples. Each checkout has a cache of its own, so nothing is taken
over from the other. Scoring and comparing are timed in CPU-seconds, old and new in turn, the order
changing each round: a ratio is told with its spread, and differs where the middle half of the
rounds is on one side of 1 by more than the tolerance. Exits with 1 on a difference.

Names are found in a checkout by searching its package for their definition, so that modules may
have moved; what was renamed gets an entry in `RENAMED`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

#: Old name of a function or class to the names that it got later.
RENAMED: Mapping[str, tuple[str, ...]] = {
    "apply_scheme": (),
    "export_onnx": (),
    "OnnxDecoder": (),
    "OnnxEncoder": (),
    "optimize_graph": (),
    "resolve_model": (),
    "SCHEMES": (),
}
_PACKAGE = "mlflow_degrade"
_PROMPTS = [f"{i}. The harbour is quiet before boat number {i} leaves" for i in range(24)]
_CHOICES = (" at five", " for the coast on Sundays", " again")
_SCORE_AGAIN = 3


# -- in a checkout -----------------------------------------------------------------------------


def find(name: str) -> Any:
    """What a name stands for in the package of this process, wherever it is defined."""
    (root,) = importlib.import_module(_PACKAGE).__path__
    for wanted in (name, *RENAMED.get(name, ())):
        for path in sorted(Path(root).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if wanted in text and wanted in _defined(ast.parse(text)):
                module = ".".join(path.relative_to(Path(root).parent).with_suffix("").parts)
                return getattr(importlib.import_module(module.removesuffix(".__init__")), wanted)
    raise SystemExit(f"{root} defines none of {name, *RENAMED.get(name, ())}: see RENAMED")


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def digest(folder: Path) -> str:
    """Of the graph and the weights in a model directory."""
    state = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if ".onnx" in p.name):
        state.update(f"{path.name} {path.stat().st_size} ".encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


class Worker:
    """Answers the commands of the comparison, in a process that imports one checkout."""

    def __init__(self) -> None:
        self._made: dict[str, Path] = {}
        self._engines: dict[str, Any] = {}

    def package(self) -> str:
        return str(importlib.import_module(_PACKAGE).__file__)

    def schemes(self) -> list[str]:
        return list(find("SCHEMES"))

    def export(self, model: str) -> str:
        """Digest of a model's export with its graph as it is optimized by default."""
        source = find("resolve_model")(model, progress=False)
        made = find("optimize_graph")(find("export_onnx")(source, progress=False), progress=False)
        self._made[model] = Path(made)
        return digest(Path(made))

    def scheme(self, model: str, scheme: str) -> str:
        """Digest of a scheme applied to a model that was exported, or why it is refused."""
        try:
            made = find("apply_scheme")(self._made[model], scheme, force=True, progress=False)
        except ValueError as error:
            return f"{type(error).__name__}: {error}".replace(str(self._made[model]), "…")
        return digest(Path(made))

    def scores(self, model: str) -> str:
        """Digest of the scores that the engine gives."""
        return hashlib.sha256(json.dumps(self._score(model)).encode()).hexdigest()[:16]

    def score(self, model: str) -> float:
        """CPU-seconds that scoring takes."""
        start = time.process_time()
        for _ in range(_SCORE_AGAIN):
            self._score(model)
        return time.process_time() - start

    def _score(self, model: str) -> list[float]:
        pairs = [(prompt, choice) for prompt in _PROMPTS for choice in _CHOICES]
        if model not in self._engines:
            engine = find("OnnxDecoder")(self._made[model], device="cpu")
            self._engines[model] = engine, engine.encoder.encode_pairs(pairs)
        engine, requests = self._engines[model]
        return [float(score.logprob) for score in engine.score(requests)]

    def compare(self, first: str, second: str) -> float:
        """CPU-seconds that ``mlflow-degrade compare`` takes in a process that has begun."""
        run = importlib.import_module(f"{_PACKAGE}.cli").run
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run(["compare", first, second])
        return time.process_time() - start


def serve() -> None:
    """Answer one JSON line with another until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(worker, command)(*arguments)) + "\n")
        answers.flush()


# -- between two checkouts ---------------------------------------------------------------------


class Checkout:
    """A checkout with its own cache, MLflow store and process."""

    def __init__(self, root: Path, folder: Path, shared: Path | None) -> None:
        self.root, self.folder = root, folder
        cache = folder / "cache"
        cache.mkdir(parents=True)
        if shared is not None and (shared / "starter-model").is_dir():  # what was downloaded
            shutil.copytree(shared / "starter-model", cache / "starter-model")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_"))}
        self.environment = {
            **clean,
            "PYTHONPATH": str(root),
            "MLFLOW_DEGRADE_CACHE": str(cache),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"], cwd=folder, env=self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "log").open("w"),
            text=True,
        )  # fmt: skip
        imported = Path(self.ask("package"))
        if root not in imported.parents:
            raise click.ClickException(f"{root} was asked, and {imported} was imported")

    def ask(self, *command: str) -> Any:
        """What the process of this checkout answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            log = (self.folder / "log").read_text()
            raise click.ClickException(f"{self.root}, {' '.join(command)}:\n{log[-3000:]}")
        return json.loads(line)

    def timed_command(self, *arguments: str) -> float:
        """Seconds of an ``mlflow-degrade`` command from its start."""
        command = [str(Path(sys.executable).with_name("mlflow-degrade")), *arguments]
        start = time.perf_counter()
        subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, check=False
        )
        return time.perf_counter() - start

    def recipe(self, **parameters: str) -> dict[str, str]:
        """Verdict, decision and samples of the quantize recipe."""
        command = [sys.executable, "-m", "mlflow", "run", str(self.root / "recipes" / "quantize")]
        given = {"register_as": "none", "device": "cpu", **parameters}
        command += [part for key, value in given.items() for part in ("-P", f"{key}={value}")]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        found = sorted(self.folder.glob("mlruns/**/evidence/decision.json"), key=os.path.getmtime)
        if done.returncode or not found:
            raise click.ClickException(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
        text = found[-1].read_text(encoding="utf-8")
        decision = json.loads(text)
        bare = re.sub(r'  "versions": \{[^}]*\},\n', "", text)
        return {
            "verdict": decision["verdict"],
            "decision": hashlib.sha256(bare.encode()).hexdigest()[:16],
            **{
                f"{side} samples": decision[side]["samples_digest"].removeprefix("sha256:")[:16]
                for side in ("baseline", "candidate")
            },
        }

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


class Comparison:
    """Two checkouts, and the lines of the table."""

    def __init__(self, old: Checkout, new: Checkout) -> None:
        self.sides = (old, new)
        self.different: list[str] = []

    def same(self, what: str, values: Sequence[Any]) -> None:
        """A line about what must be equal."""
        equal = values[0] == values[1]
        if not equal:
            self.different.append(what)
        shown = [str(value)[:60] for value in values]
        cells = shown[:1] if equal else shown
        print(
            f"{'same     ' if equal else 'DIFFERENT'}  {what:44} {'  |  '.join(cells)}", flush=True
        )

    def asked(self, what: str, *command: str) -> None:
        """What both processes answer."""
        self.same(what, [side.ask(*command) for side in self.sides])

    def timed(self, what: str, rounds: int, tolerance: float, measure: Any) -> None:
        """A line about seconds, new over old: both in turn, the order changing each round."""
        for side in self.sides:
            measure(side)  # what is loaded once
        ratios = []
        for i in range(rounds):
            order = (0, 1) if i % 2 == 0 else (1, 0)
            seconds = {at: measure(self.sides[at]) for at in order}
            ratios.append(seconds[1] / seconds[0])
        low, middle, high = statistics.quantiles(ratios, n=4)
        differs = low > 1 + tolerance or high < 1 - tolerance
        if low > 1 + tolerance:
            self.different.append(what)
        word = "same     " if not differs else "SLOWER   " if low > 1 else "faster   "
        spread = f"{middle:.3f}, half of {rounds} within {low:.3f}–{high:.3f}"
        print(f"{word}  {what:44} new/old {spread}", flush=True)


def write_samples(folder: Path, rows: int) -> list[str]:
    """Two tables to compare, whatever the package is called inside."""
    import random

    paths = []
    for side in (0, 1):
        draw = random.Random(0)
        lines = ["task,doc_id,metric,score"]
        for i in range(rows):
            right, flipped = draw.random() < 0.7, draw.random() < 0.04
            lines.append(f"task{i % 3},{i},acc,{int(right != (flipped and side == 1))}")
        path = folder / f"{'ab'[side]}.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths.append(str(path))
    return paths


def make_tiny(folder: Path) -> dict[str, str]:
    """A tiny decoder and a tiny encoder, and a task for the recipe."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from recipe_cases import make_items, write_task
    from tiny_models import make_tiny_bert, make_tiny_llama

    (folder / "tasks").mkdir()
    write_task(folder / "tasks", "boats", make_items(120, seed=0))
    return {
        "tiny decoder": str(make_tiny_llama(folder / "decoder")),
        "tiny encoder": str(make_tiny_bert(folder / "encoder", pooling=("mean_tokens",))),
    }


@click.command(help=__doc__.split("\n")[0])
@click.argument("old", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quick", is_flag=True, help="Tiny models only, without the starter.")
@click.option("--rounds", default=11, show_default=True, help="Of each timing.")
@click.option("--tolerance", default=0.05, show_default=True, help="Of the ratio of times.")
@click.option("--rows", default=30_000, show_default=True, help="Of the tables to compare.")
@click.option("--limit", default=60, show_default=True, help="Samples per task of the starter.")
@click.option("--starter-schemes", default="", help="Only these of the starter, by commas.")
def main(
    old: Path,
    new: Path,
    quick: bool,
    rounds: int,
    tolerance: float,
    rows: int,
    limit: int,
    starter_schemes: str,
) -> None:
    """Print the table, and exit with 1 where anything differs."""
    shared = os.environ.get("MLFLOW_DEGRADE_CACHE")
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        folder = Path(scratch)
        models = make_tiny(folder)
        tiny = models["tiny decoder"]
        if not quick:
            models["starter"] = "starter"
        sides = [
            Checkout(root.resolve(), folder / name, Path(shared) if shared and not quick else None)
            for name, root in (("old", old), ("new", new))
        ]
        table = Comparison(*sides)
        table.asked("schemes", "schemes")
        schemes = [side.ask("schemes") for side in sides]
        for kind, model in models.items():
            table.asked(f"{kind}, export", "export", model)
            chosen = starter_schemes.split(",") if kind == "starter" and starter_schemes else None
            for scheme in chosen or [s for s in schemes[0] if s in schemes[1]]:
                table.asked(f"{kind}, {scheme}", "scheme", model, scheme)
        scored = tiny if quick else "starter"
        table.asked("scores of the engine", "scores", scored)
        asked = {"model": tiny, "tasks": "boats", "include_path": str(folder / "tasks")}
        if not quick:
            asked = {"model": "starter", "limit": str(limit)}
        outcomes = [side.recipe(**asked) for side in sides]
        for key in outcomes[0]:
            table.same(f"quantize recipe, {key}", [outcome.get(key) for outcome in outcomes])
        files = write_samples(folder, rows)
        table.timed("scoring", rounds, tolerance, lambda side: side.ask("score", scored))
        table.timed("compare", rounds, tolerance, lambda side: side.ask("compare", *files))
        few = write_samples(folder, 300)
        table.timed(
            "compare, the command from its start", max(rounds // 2, 3), tolerance,
            lambda side: side.timed_command("compare", *few),
        )  # fmt: skip
        for side in sides:
            side.close()
    if table.different:
        raise SystemExit(f"{len(table.different)} differ: {', '.join(table.different)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        serve()
    else:
        main()
