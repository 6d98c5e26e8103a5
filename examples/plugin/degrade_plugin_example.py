"""A reader, a scheme and an aggregation rule for mlflow-degrade, each as small as it can be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_degrade import SampleScores
from mlflow_degrade.optimize import Scheme
from mlflow_degrade.readers import Reader
from mlflow_degrade.stats import AggregationRule, RuleOutcome


def _read(path: Path) -> SampleScores:
    """Lines of task, id and + or -, e.g. ``arc 17 +``; a broken one is an error, never skipped."""
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    records = [
        {"task": task, "doc_id": doc_id, "metric": "acc", "score": {"+": 1.0, "-": 0.0}[mark]}
        for task, doc_id, mark in rows
    ]
    return SampleScores.from_records(records, model=path.stem)


MARKS = Reader(
    name="marks",
    what="lines of task, id and + or - in a file *.marks",
    recognizes=lambda path: path.suffix == ".marks",
    read=_read,
)


def _store_in_half(model: Any, least: int) -> dict[str, Any]:
    """Keep large matrices in float16 and cast them where they are used; in place."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) >= least:
            name, half = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    return {"stored_in_float16": len(casts)}


HALF_STORAGE = Scheme(
    name="half-storage",
    summary="large matrices stored in float16, everything computed in float32",
    rewrite=_store_in_half,
    options={"least": 1024},
)


def _log_sidak(log_p_min: float, tasks: int) -> float:
    """log of 1 − (1 − p)^K, precise for small p."""
    return math.log(-math.expm1(tasks * math.log1p(-math.exp(log_p_min))))


def _exact(nulls: Any, _: Any) -> RuleOutcome:
    log_p_min = float(nulls.log_p.min())
    if log_p_min == 0.0:
        return RuleOutcome(0.0, 1.0)
    return RuleOutcome(_log_sidak(log_p_min, nulls.size), math.exp(log_p_min))


def _drawn(flips: Any, near: float | None) -> RuleOutcome:
    """Tasks that share items depend on each other: the smallest p against joint flips."""
    found, seen = flips.p_value(lambda masses: -flips.log_p(masses).min(axis=1)[:, None], near)
    return RuleOutcome(
        math.log(float(found.p[0])),
        math.exp(-float(seen[0])),
        "monte-carlo",
        resamples=found.resamples,
        standard_error=float(found.standard_error[0]),
    )


SIDAK = AggregationRule(
    name="sidak",
    statistic="1 − (1 − min_k p_k)^K",
    sees="one damaged benchmark",
    blind="an even, small drop",
    source="Šidák 1967",
    valid="exact or conservative where benchmarks share no items, else joint flips",
    exact=_exact,
    drawn=_drawn,
    every_task=True,
    one_finds=True,
)
