"""Documents per second against lm-eval's Hugging Face backend at its best batch size."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scoring

from mlflow_degrade.bench.results import paired_ratio
from mlflow_degrade.core.progress import quiet_libraries

from . import Found
from .setting import Setting, encoded, those_made, tried


def run(setting: Setting) -> Found:
    """A table for each kind of task, with a row for each backend."""
    for name, texts in setting.texts(setting.pick(200, 2)).items():
        with quiet_libraries():
            rows = _rows(setting, texts)
        for row in rows:
            yield f"Scoring: {name}", row


def _rows(setting: Setting, texts: list[list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """All backends in turn, round after round; ratios are taken within rounds."""
    wanted = {f"`{s}`": partial(setting.decoder, s) for s in setting.schemes}
    wanted["`fp16` as exported"] = partial(setting.decoder, "fp16", for_gpu=False)
    decoders, failed = those_made(wanted)
    pairs, sizes = encoded(next(iter(decoders.values())), texts)
    source, wait = setting.source(), _wait(setting)
    runs: dict[str, scoring.Scorer] = {
        name: scoring.engine(decoder, shared=True) for name, decoder in decoders.items()
    }
    for size in setting.pick((16, 64, 256), (4,)):
        runs[f"HF fp16, batch {size}"] = scoring.torch_backend(
            source, "float16", size, setting.torch_device
        )
    taken: dict[str, list[float]] = {name: [] for name in runs}
    scores = {}
    end, rounds = float("inf"), 0
    while rounds < 2 or time.perf_counter() < end:
        for name, run_ in runs.items():
            if name in failed:
                continue
            start = time.perf_counter()
            try:
                scores[name] = np.array([value for value, _ in run_(pairs)])
            except Exception as error:  # noqa: BLE001 - out of memory, mostly
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            wait()
            if rounds:  # the first one opens sessions, captures and allocates
                taken[name].append(time.perf_counter() - start)
        if not rounds:
            end = time.perf_counter() + setting.pick(15, 0)
        rounds += 1
    measured = {n: t for n, t in taken.items() if t and n.startswith("HF")}
    best = min(measured, key=lambda name: np.median(measured[name]), default=None)

    def row(name: str) -> dict[str, Any]:
        found = {"documents/s": len(sizes) / float(np.median(taken[name]))}
        if best is not None:
            ratio = paired_ratio(taken[best], taken[name])
            changed, ties = scoring.decisions(scores[name], scores[best], sizes)
            found |= {
                f"× {best}": list(ratio) if ratio.low is not None else ratio.estimate,
                "largest difference, nats": float(np.abs(scores[name] - scores[best]).max()),
                "changed decisions": changed,
                "ties": ties,
            }
        return found

    return [
        {"backend": name, "not measured": failed[name]}
        if name in failed
        else tried({"backend": name}, lambda n=name: row(n))
        for name in (*wanted, *(name for name in runs if name not in wanted))
    ]


def _wait(setting: Setting) -> Callable[[], Any]:
    import torch

    return torch.cuda.synchronize if setting.torch_device == "cuda" else lambda: None
