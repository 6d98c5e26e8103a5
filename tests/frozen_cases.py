"""Decisions, digests and policies that a change of structure must leave as they are, to the byte.

    PYTHONPATH=. python tests/frozen_cases.py     # write tests/frozen/ anew, where a number changes
                                                  # on purpose; the difference says which

`tests/test_frozen.py` makes everything again and compares.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_degrade import GatePolicy, PairedScores, SampleScores, decide

FOLDER = Path(__file__).parent / "frozen"
ROOT = Path(__file__).parents[1]

#: Everything used here that is not a top-level name: what it is called, and where it is now.
NAMES = {
    "digest_json": "mlflow_degrade.core.cache",
    "find_subgroups": "mlflow_degrade.decision.subgroups",
    "load_recipe": "mlflow_degrade.optimize.recipe",
    "Origin": "mlflow_degrade.samples.origin",
    "read_samples": "mlflow_degrade.samples.readers",
}


def name(wanted: str) -> Any:
    """What a name of the table stands for."""
    return getattr(import_module(NAMES[wanted]), wanted)


# -- sample tables -----------------------------------------------------------------------------
# Python's own generator draws the same numbers everywhere; scores are sums of powers of two.

Rows = list[dict[str, Any]]


def _task(
    task: str,
    n: int,
    *,
    worse: float,
    better: float,
    seed: int,
    steps: int = 1,
    metric: str = "acc",
    scale: float = 1.0,
    repeats: int = 1,
    clusters: int = 0,
    **constant: Any,
) -> tuple[Rows, Rows]:
    """Rows of both sides: of all items so many a share changed for the worse and the better."""
    draw = random.Random(seed)
    sides: tuple[Rows, Rows] = ([], [])
    for i in range(n):
        before = draw.randrange(steps + 1) if steps > 1 else int(draw.random() < 0.7)
        for repeat in range(repeats):
            fate = draw.random()
            after = before
            if fate < worse:
                after = draw.randrange(before + 1) if steps > 1 else 0
            elif fate > 1 - better:
                after = before + draw.randrange(steps - before + 1) if steps > 1 else 1
            for rows, value in zip(sides, (before, after), strict=True):
                row = {"task": task, "doc_id": f"{i}", "metric": metric, "repeat": repeat}
                row |= {"score": scale * value / steps, **constant}
                if clusters:
                    row["cluster"] = f"c{i % clusters}"
                rows.append(row)
    return sides


def _join(*tasks: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
    return [r for t in tasks for r in t[0]], [r for t in tasks for r in t[1]]


def _each(
    sides: tuple[Rows, Rows], change: Callable[[int, int, dict[str, Any]], Any]
) -> tuple[Rows, Rows]:
    """Both sides with further columns: of the side's number, the row's and the row."""
    first, second = ([{**r, **change(s, i, r)} for i, r in enumerate(sides[s])] for s in (0, 1))
    return first, second


def _three(worse: float = 0.05, better: float = 0.04, seed: int = 1, **more: Any) -> Any:
    """Three tasks of different sizes, the second damaged most."""
    return _join(
        _task("arc", 120, worse=worse, better=better, seed=seed, **more),
        _task("gsm8k", 250, worse=1.5 * worse, better=better, seed=seed + 1, **more),
        _task("mmlu", 80, worse=worse / 2, better=worse / 2, seed=seed + 2, **more),
    )


def _origin(architecture: str, *dependent: str) -> dict[str, Any]:
    processor = {"architecture": architecture, "onnxruntime": "1.31.1", "threads": 2}
    return {"processor": processor, "dependent_operations": dependent}


def _shared(sides: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
    """Tasks that ask the same documents."""
    return _each(sides, lambda _s, _i, r: {"doc_hash": f"h{r['doc_id']}"})


@cache
def tables() -> dict[str, tuple[Rows, Rows]]:
    """Samples of the cases, by name."""
    calm = {"worse": 0.02, "better": 0.02}
    graded = _task("f1", 200, worse=0.2, better=0.1, seed=11, steps=8, metric="f1")
    answered = _task("qa", 150, worse=0.1, better=0.05, seed=12)
    losses = _task("wiki", 90, worse=0.3, better=0.3, seed=13, steps=16, metric="nll", scale=4.0)
    featured = _join(_task("qa", 160, worse=0.12, better=0.02, seed=14),
                     _task("code", 90, worse=0.02, better=0.02, seed=15))  # fmt: skip
    return {
        "binary": _task("qa", 300, worse=0.05, better=0.04, seed=2),
        "calm": _task("qa", 1200, **calm, seed=3),
        "damaged": _task("qa", 400, worse=0.15, better=0.02, seed=4),
        "better": _task("qa", 400, worse=0.01, better=0.3, seed=5),
        "equal": _task("qa", 200, worse=0, better=0, seed=6),
        "tiny": _task("qa", 6, worse=0.3, better=0.1, seed=7),
        "three": _three(),
        "three calm": _three(0.01, 0.01, 21),
        "three shared": _shared(_three(seed=31)),
        "graded": graded,
        "graded three": _three(0.2, 0.2, 41, steps=8, metric="f1"),
        "graded shared": _shared(_three(0.2, 0.2, 51, steps=8, metric="f1")),
        "skewed": _each(_task("qa", 240, worse=0, better=0, seed=16, steps=8, metric="f1"),
                        lambda s, i, _r: {"score": 0.5 + s * (0.4375 if i % 60 == 0 else -0.0625)}),
        "losses": losses,
        "ratings": _task("chat", 140, worse=0.2, better=0.15, seed=17, steps=9, metric="rating",
                         scale=9.0, higher_is_better=True),
        "clusters": _task("qa", 240, worse=0.1, better=0.04, seed=18, clusters=40),
        "graded clusters": _task("f1", 180, worse=0.2, better=0.1, seed=19, steps=8, metric="f1",
                                 clusters=30),
        "repeats": _task("qa", 100, worse=0.08, better=0.05, seed=20, repeats=3),
        "three repeats": _three(seed=61, repeats=2),
        "copies": _each(_task("qa", 200, worse=0.1, better=0.05, seed=22),
                        lambda _s, i, _r: {"doc_hash": f"h{i // 2 if i < 60 else i}"}),
        "unscored": _each(_task("qa", 200, worse=0.1, better=0.05, seed=23),
                          lambda s, i, r: {"score": None if i % (11 + s) == 0 else r["score"]}),
        "answers": _each(answered, lambda s, i, r: {
            "target": "A", "response": "A" if r["score"] else "BC"[(i + s) % 2]}),
        "prompts": _each(_task("qa", 120, worse=0.1, better=0.05, seed=24),
                         lambda s, i, _r: {"prompt": f"Q{i}" + "!" * (s * (i % 7 == 0))}),
        "two metrics": _join(_task("qa", 150, worse=0.1, better=0.02, seed=25),
                             _task("qa", 150, worse=0.02, better=0.1, seed=26, metric="acc_norm")),
        "two filters": _join(
            _task("gsm8k", 150, worse=0.1, better=0.02, seed=27, filter="strict-match"),
            _task("gsm8k", 150, worse=0.02, better=0.05, seed=28, filter="flexible-extract")),
        "mixed units": _join(_task("qa", 200, **calm, seed=29), losses),
        "features": _each(featured, lambda _s, i, r: {
            "feature.length": float(i % 50), "feature.topic": ("a", "b", "c")[i % 3],
            "score": 0.0 if _s and i % 50 > 40 else r["score"]}),
    }  # fmt: skip


def scores(rows: Rows, model: str, **metadata: Any) -> SampleScores:
    """A side as a sample table."""
    frame = pd.DataFrame(rows)
    if frame["score"].isna().any():
        frame["score"] = pd.Series([row["score"] for row in rows], dtype=object)
    return SampleScores.from_pandas(frame, model=model, model_digest=f"sha256:{model}", **metadata)


#: What is said of all samples of a table, side by side.
_METADATA: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "calm here": (
        {"origin": _origin("x86_64"), "task_versions": {"qa": "1"}},
        {"origin": _origin("x86_64", "DynamicQuantizeMatMul"), "task_versions": {"qa": "1"}},
    ),
    "calm anywhere": ({"origin": _origin("x86_64")}, {"origin": _origin("aarch64")}),
    "calm asked": (
        {"prompting": {"apply_chat_template": True, "chat_template_sha": "aa"}},
        {"prompting": {"apply_chat_template": True, "chat_template_sha": "aa"}},
    ),
    "calm versions": ({"task_versions": {"qa": "1"}}, {"task_versions": {"qa": "2"}}),
}


@cache
def samples(table: str) -> tuple[SampleScores, SampleScores]:
    """Both sides of a table; a name of `_METADATA` is its first word's table with those facts."""
    said = _METADATA.get(table, ({}, {}))
    rows = tables()[table.split()[0] if table in _METADATA else table]
    sides = []
    for side, facts, model in zip(rows, said, ("fp32", "int8"), strict=True):
        facts = dict(facts)
        if "origin" in facts:
            facts["origin"] = name("Origin").model_validate(facts["origin"])
        sides.append(scores(side, model, **facts))
    return sides[0], sides[1]


# -- decisions ---------------------------------------------------------------------------------

_RULES = ("no_degradation", "non_inferiority")
_AGGREGATIONS = ("combined", "pooled", "macro", "max_drop", "min_p", "fisher", "stouffer")


def decision_cases() -> Iterator[tuple[str, str, dict[str, Any], int | None]]:
    """Name, table, policy and attempt of every case."""
    for rule, how in product(_RULES, _AGGREGATIONS):
        yield f"three, {rule}, {how}", "three", {"rule": rule, "aggregation": how}, None
    for table, how in product(
        ("graded three", "three shared", "graded shared", "three calm"), _AGGREGATIONS
    ):
        yield f"{table}, {how}", table, {"aggregation": how, "margin_pp": 5}, None
    units = {"losses": {"margin": 0.5}, "ratings": {"margin": 0.5}}
    allowed = {"prompts": {"allow": ["prompts"]}, "copies": {"allow": ["duplicates"]}}
    for table, rule in product(
        ("binary", "calm", "damaged", "better", "equal", "tiny", "graded", "skewed", "losses",
         "ratings", "clusters", "graded clusters", "repeats"), _RULES,
    ):  # fmt: skip
        yield f"{table}, {rule}", table, {"rule": rule, **units.get(table, {})}, None
    for table in ("three repeats", "copies", "unscored", "answers", "prompts", "two metrics",
                  "two filters", "features"):  # fmt: skip
        yield table, table, allowed.get(table, {}), None
    task = {"tasks": {"gsm8k": {"tier": "advisory"}}}
    more: list[tuple[str, str, dict[str, Any], int | None]] = [
        ("advisory", "three", task, None),
        ("own margin", "three", {"tasks": {"mmlu": {"margin_pp": 12}}}, None),
        ("own margin, non-inferior", "three calm",
         {"rule": "non_inferiority", "margin_pp": 4, "tasks": {"a*": {"margin": 0.03}}}, None),
        ("few of a task", "three", {"tasks": {"mm*": {"min_samples": 100}}}, None),
        ("few in all", "calm", {"min_samples": 5000}, None),
        ("warn", "binary", {"on_underpowered": "warn"}, None),
        ("implausible gain", "better", {"implausible_gain_pp": 5}, None),
        ("strict level", "damaged", {"alpha": 0.001, "power": 0.95}, None),
        ("wide intervals", "binary", {"confidence": 0.99}, None),
        ("margin in the unit", "calm", {"margin": 0.015}, None),
        ("third attempt", "calm", {"rule": "non_inferiority", "margin_pp": 2}, 3),
        ("ninth attempt", "graded", {"rule": "non_inferiority", "margin_pp": 30}, 9),
        ("another metric", "two metrics", {"metric": "acc_norm"}, None),
        ("another filter", "two filters", {"filter": "strict-match"}, None),
        ("a metric of a task", "two metrics", {"tasks": {"qa": {"metric": "acc_norm"}}}, None),
        ("advisory unit", "mixed units", {"tasks": {"wiki": {"tier": "advisory"}}}, None),
        ("portable", "calm anywhere", {"portable": True}, None),
        ("not portable", "calm here", {"portable": True}, None),
        ("portable, not known", "calm", {"portable": True}, None),
        ("asked alike", "calm asked", {"apply_chat_template": True}, None),
        ("other versions", "calm versions", {"allow": ["task-versions"]}, None),
        ("refused versions", "calm versions", {}, None),
        ("refused prompts", "prompts", {}, None),
        ("refused units", "mixed units", {}, None),
        ("refused margin", "losses", {}, None),
        ("refused task", "calm", {"tasks": {"other": {}}}, None),
        ("refused prompting", "calm", {"apply_chat_template": True}, None),
    ]  # fmt: skip
    yield from more


def decided(table: str, policy: Mapping[str, Any], attempt: int | None) -> dict[str, Any]:
    """What a case comes to: digests, and the decision without its policy and versions."""
    asked = GatePolicy.from_mapping(policy)
    sides = samples(table)
    found: dict[str, Any] = {"policy": asked.digest()}
    try:
        decision = decide(asked.pair(*sides), asked, attempt=attempt)
    except ValueError as error:
        return {**found, "error": type(error).__name__, "message": str(error)}
    return {**found, **written(decision.to_json())}


def written(text: str) -> dict[str, Any]:
    """Digest of a decision's text without its versions, and its content without the policy."""
    bare, count = re.subn(r'  "versions": \{[^}]*\},\n', "", text)
    assert count == 1
    content = json.loads(bare)
    del content["policy"]
    return {"text_digest": hashlib.sha256(bare.encode()).hexdigest(), "content": content}


def decisions() -> dict[str, Any]:
    """Every case."""
    cases = {name: decided(*case) for name, *case in decision_cases()}
    return cases


def sample_digests() -> dict[str, list[str]]:
    """Digest of both sides of every table."""
    return {table: [s.digest() for s in samples(table)] for table in [*tables(), *_METADATA]}


def paired_subgroups() -> dict[str, Any]:
    """What is found by features."""
    paired: PairedScores = GatePolicy().pair(*samples("features"))
    found = {}
    for features in (["task"], ["length"], ["topic", "length"]):
        result = asdict(name("find_subgroups")(paired, features))
        found[" ".join(features)] = json.loads(json.dumps(result, default=str))
    return found


# -- policies and presets ----------------------------------------------------------------------


def stated_policies() -> list[dict[str, Any]]:
    """Every policy that the tests, examples and documents state, as a mapping of keys."""
    found = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for policy in _literal(node):
                    found[json.dumps(policy, sort_keys=True)] = policy
    for file in sorted((ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", file.read_text(encoding="utf-8"), re.S):
            policy = _mapping(block)
            if policy:
                found[json.dumps(policy, sort_keys=True)] = policy
    return [found[key] for key in sorted(found)]


def _literal(node: ast.Call) -> Iterator[dict[str, Any]]:
    called = ast.unparse(node.func)
    try:
        if called == "GatePolicy":
            values = {k.arg: _value(k.value) for k in node.keywords if k.arg is not None}
        elif called == "GatePolicy.from_mapping":
            values = _value(node.args[0])
        else:
            return
        GatePolicy.from_mapping(values)
        yield json.loads(json.dumps(values))
    except (ValueError, TypeError, IndexError):
        return


def _value(node: ast.expr) -> Any:
    """A literal; `TaskPolicy(...)` in it is a mapping."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "TaskPolicy":
        return {k.arg: _value(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        return {
            ast.literal_eval(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if k
        }
    return ast.literal_eval(node)


def _mapping(text: str) -> dict[str, Any] | None:
    import yaml

    try:
        values = yaml.safe_load(text)
        GatePolicy.from_mapping(values)
        return dict(json.loads(json.dumps(values)))
    except (yaml.YAMLError, ValueError, TypeError):
        return None


def policy_record(policy: dict[str, Any]) -> dict[str, Any]:
    """Digest of a policy and what its margins and tasks come to."""
    made = GatePolicy.from_mapping(policy)
    tasks = ["arc", "gsm8k", "mmlu_law", *made.tasks]
    return {
        "policy": policy,
        "digest": made.digest(),
        "shown": made.shown_confidence,
        "margins": [made.margin_of(t, proportion=p) for t in tasks for p in (True, False)],
        "tasks": [made.task(t).model_dump(mode="json") for t in tasks],
    }


def presets() -> dict[str, Any]:
    """Digest of every preset of the recipes, as it is read."""
    found = {}
    for file in sorted((ROOT / "mlflow_degrade/optimize/presets").glob("*.yaml")):
        recipe = name("load_recipe")(file)
        passes = recipe.as_dict()
        found[file.stem] = {"digest": name("digest_json")(passes), **passes}
    return found


# -- logs --------------------------------------------------------------------------------------


def unpack_logs(folder: Path) -> None:
    """The logs that the tests of the readers write, in folders by number."""
    with zipfile.ZipFile(FOLDER / "logs.zip") as archive:
        archive.extractall(folder)


def read_log(folder: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """What a log is read as and, for some, what is decided where all scores move by one row."""
    path = folder / f"{case['n']:03d}" / case["ref"]
    found: SampleScores = name("read_samples")(path, format=case["format"], **case["options"])
    record = {
        "digest": found.digest(),
        "model": found.model,
        "rows": len(found),
        "features": list(found.features),
        "means": [[*key, value] for key, value in found.means().items()],
        "texts": name("digest_json")(
            found.table.select(["prompt", "target", "response"]).to_pylist()
        ),
    }
    if not case["decide"]:
        return record
    shifted = found.to_pandas()
    values = found.table["score"].to_pylist()
    shifted["score"] = pd.Series([*values[1:], values[0]], dtype=object)
    candidate = SampleScores.from_pandas(shifted, model="candidate")
    policy = GatePolicy(margin=0.5, allow=("same-model", "duplicates"))
    try:
        decision = decide(policy.pair(found, candidate), policy)
    except ValueError as error:
        return {**record, "error": type(error).__name__}
    total = decision.aggregate
    return {
        **record,
        "decision": {
            "text_digest": written(decision.to_json())["text_digest"],
            "verdict": decision.verdict.value,
            "n": total.n,
            "changed": [total.regressions, total.improvements],
            "p": [total.p_worse, total.noninferiority_p],
        },
    }


def log_cases() -> list[dict[str, Any]]:
    """Number, path, format and options of every log."""
    with zipfile.ZipFile(FOLDER / "logs.zip") as archive:
        return list(json.loads(archive.read("index.json")))


# -- writing -----------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the last digits of the numbers depend on: libraries, and the kernels they choose."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    libraries = {module: import_module(module).__version__ for module in ("numpy", "scipy")}
    return {**libraries, "kernels": found}


def _lines(content: Any) -> str:
    """JSON with a line for each entry."""
    compact: dict[str, Any] = {"ensure_ascii": False, "separators": (", ", ": ")}
    if isinstance(content, dict):
        each = [f"{json.dumps(k)}: {json.dumps(v, **compact)}" for k, v in content.items()]
        return "{\n" + ",\n".join(each) + "\n}\n"
    return "[\n" + ",\n".join(json.dumps(entry, **compact) for entry in content) + "\n]\n"


def main() -> None:
    import tempfile
    import warnings

    warnings.simplefilter("ignore")
    contents: dict[str, Any] = {
        "decisions": decisions(),
        "samples": sample_digests(),
        "subgroups": paired_subgroups(),
        "policies": [policy_record(policy) for policy in stated_policies()],
        "presets": presets(),
        "machine": machine(),
    }
    with tempfile.TemporaryDirectory() as made:
        unpack_logs(Path(made))
        contents["logs"] = [read_log(Path(made), case) for case in log_cases()]
    for file, content in contents.items():
        (FOLDER / f"{file}.json").write_text(_lines(content), encoding="utf-8")
    print({file: len(content) for file, content in contents.items()}, file=sys.stderr)


if __name__ == "__main__":
    main()
