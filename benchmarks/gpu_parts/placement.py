"""Where nodes run, what is copied, and whether calls are captured as CUDA graphs and gain by it."""

from __future__ import annotations

import time
from typing import Any

from mlflow_degrade.bench.node_assignment import find_placement
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.fixed_stepping import FixedStepper
from mlflow_degrade.engine.providers import CPU, on_gpu
from mlflow_degrade.engine.session_calls import CapturedCalls

from . import Found
from .setting import Setting, encoded, tried

TITLE = "Placement and CUDA graphs"


def run(setting: Setting) -> Found:
    """A row for each scheme."""
    for scheme in setting.schemes:
        yield TITLE, tried({"scheme": f"`{scheme}`"}, lambda s=scheme: _row(setting, s))


def _row(setting: Setting, scheme: str) -> dict[str, Any]:
    found = find_placement(setting.model(scheme), setting.providers)
    first = setting.providers[0]
    fallen = sum(found.fallen_back.values())
    share = found.share(CPU) if on_gpu(setting.providers) else 0.0
    row = {
        "nodes on the device": found.count(first),
        "on the CPU": fallen,
        "multiplications on the CPU, %": None if share is None else 100 * share,
        "memory copies": sum(found.copies.values()),
        "fallen back": dict(found.fallen_back),
    }
    decoder = setting.decoder(scheme)
    texts = next(iter(setting.texts(setting.pick(64, 4)).values()))
    pairs, _ = encoded(decoder, texts)
    seconds = {capture: _seconds(decoder, pairs, capture, row) for capture in (True, False)}
    row["× by capture"] = seconds[False] / seconds[True]
    row["mask"] = "none" if decoder.inputs.past_rows else "explicit"
    if on_gpu(setting.providers):
        assigned = decoder.session.get_provider_graph_assignment_info()
        elsewhere = [len(part.get_nodes()) for part in assigned if part.ep_name != first]
        row["nodes of the scoring graph on the CPU"] = sum(elsewhere)
    stepper = decoder.stepper(4, greedy=True)
    fixed = isinstance(stepper, FixedStepper)
    row["caches"] = "fixed" if fixed else "growing"
    row["steps captured"] = "yes" if fixed and stepper._model.captures else "no"
    return row


def _seconds(decoder: OnnxDecoder, pairs: Any, capture: bool, row: dict[str, Any]) -> float:
    """The better of two runs, after one that captures."""
    decoder.close()
    decoder.cuda_graphs = capture
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        decoder.score(pairs)
        taken.append(time.perf_counter() - start)
    if capture:
        row["captured"] = "yes" if isinstance(decoder.calls, CapturedCalls) else "no"
    return min(taken[1:])
