"""What was found, as JSON and as Markdown tables, and what was aimed at."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlflow_degrade.bench.machine import processor_name
from mlflow_degrade.engine.providers import cpu_count, on_gpu

from .setting import Setting

Rows = dict[str, list[dict[str, Any]]]
"""Title of a table → its rows."""


def machine(setting: Setting) -> dict[str, Any]:
    """Card, driver, date, and the versions that matter."""
    found = {
        "date": f"{date.today():%Y-%m-%d}",
        "device": setting.device,
        "processor": processor_name(setting.providers[0]),
        "driver": _driver() if on_gpu(setting.providers) else None,
        "cpu_cores": cpu_count(),
        "python": platform.python_version(),
        "tiny": setting.tiny,
    }
    for package in ("onnxruntime-gpu", "onnxruntime", "torch", "transformers", "lm_eval"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _driver() -> str:
    from mlflow_degrade.bench.memory import open_gpu

    gpu = open_gpu()
    return gpu if isinstance(gpu, str) else str(gpu.nvml.nvmlSystemGetDriverVersion())


def read_rows(files: Iterable[Path]) -> Rows:
    """Everything that parts have written so far, also those that were ended."""
    tables: Rows = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            title, row = json.loads(line)
            tables.setdefault(title, []).append(row)
    return tables


def write(out: Path, about: Mapping[str, Any], parts: Mapping[str, Any], tables: Rows) -> None:
    """``results.json`` and ``results.md``, whole again after every part."""
    aims = [] if about["tiny"] else goals(tables)
    found = {"machine": about, "parts": parts, "tables": tables, "goals": aims}
    (out / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    driver = f", driver {about['driver']}" if about["driver"] else ""
    lines = [f"{about['processor']}{driver}, {about['date']}"]
    if about["tiny"]:
        lines.append("A tiny random model: these numbers show that the script runs, nothing else.")
    everything = {**tables, "Goals": aims, "Parts": [{"part": n, **p} for n, p in parts.items()]}
    lines += [f"### {title}\n\n{markdown(rows)}" for title, rows in everything.items() if rows]
    (out / "results.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with every column that a row has, in the order of their first appearance.

    Examples
    --------
    >>> print(markdown([{"model": "fp16", "x": [2.0, 1.93, 2.1]}, {"model": "bf16", "y": 1234.5}]))
    | model | x | y |
    |---|---|---|
    | fp16 | 2.00 [1.93, 2.10] | |
    | bf16 | | 1,234 |
    """
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    head, *rest = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    return "\n".join([head, "|" + "---|" * len(columns), *rest])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_cell(entry)}" for name, entry in value.items())
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], float):
        middle, low, high = (f"{number:.2f}" for number in value)
        return f"{middle} [{low}, {high}]"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, float):
        if value and not 1e-3 <= abs(value) < 1e9:
            return f"{value:.1e}"
        return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def goals(tables: Rows) -> list[dict[str, Any]]:
    """What is aimed at on a card, and what was found; nothing for what was not measured."""
    found = []

    def state(goal: str, value: Any, met: bool) -> None:
        found.append({"goal": goal, "found": value, "met": "yes" if met else "no"})

    for title, rows in tables.items():
        for row in rows:
            name = row.get("backend") or row.get("model") or row.get("scheme")
            if title.startswith("Scoring") and name == "`fp16`":
                for column, value in row.items():
                    if column.startswith("× HF"):
                        ratio = value[0] if isinstance(value, list) else value
                        state(f"{title}: fp16 at least 2 {column}", value, ratio >= 2)
            if title == "1.1B parameters, batch 1" and "× decode" in row:
                for scheme, least in (("`int4-weight-only`", 1.5), ("`fp16`", 1.0)):
                    if name == scheme:
                        goal = f"{name} decodes at least {least:g} × PyTorch bf16"
                        state(goal, row["× decode"], row["× decode"][0] >= least)
            if (share := row.get("multiplications on the CPU, %")) is not None:
                state(f"{name}: at most 1% of the multiplications on the CPU", share, share <= 1)
            if title.startswith("Scores") and name == "`fp16`" and "changed decisions" in row:
                apart, changed = row["largest difference, nats"], row["changed decisions"]
                state("fp16 within 0.02 nats of the CPU", apart, apart <= 0.02)
                state("fp16 changes no decision of the CPU", changed, changed == 0)
    return found
