"""Prefill and decode against PyTorch in fp16 and bf16, at batch 1 and 32; memory and energy."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import against_pytorch as pair
import numpy as np

from mlflow_degrade.bench.cost import DecoderWorkload
from mlflow_degrade.bench.memory import measure_memory, open_energy_meter
from mlflow_degrade.bench.results import Shape
from mlflow_degrade.engine.providers import on_gpu

from . import Found
from .setting import Setting, those_made, tried


def run(setting: Setting) -> Found:
    """The starter model."""
    title = setting.pick("starter", "tiny")
    yield from tables(setting, title, setting.schemes, large=False)


def tables(setting: Setting, title: str, schemes: tuple[str, ...], *, large: bool) -> Found:
    """A table for each batch size, with PyTorch bf16 as 1, and one of what each takes."""
    gpu = on_gpu(setting.providers)
    length, new = setting.pick((128, 16), (16, 4))
    shapes = [Shape(size, length, new) for size in setting.pick((1, 32), (2,))]
    wanted = {f"`{s}`": partial(_workload, setting, s, large) for s in schemes}
    wanted["`fp16` as exported"] = partial(_workload, setting, "fp16", large, for_gpu=False)
    workloads, unmade = those_made(wanted)
    source = setting.source(large=large)
    models = {f"PyTorch {d}": pair.load_pytorch(source, d, gpu) for d in ("bf16", "fp16")}
    for shape in shapes:
        prompts = next(iter(workloads.values())).prompts(shape)
        runs = {name: pair.engine(w, prompts, new) for name, w in workloads.items()}
        runs |= {name: pair.pytorch(model, prompts, new) for name, model in models.items()}
        ran, failed = those_made(runs)
        failed |= unmade
        running = {name: runs[name] for name in ran}
        found = pair.run_rounds(running, setting.pick(2, 0))
        for name in (*wanted, *models):
            row = {"model": name}
            if name in failed:
                row |= {"not measured": failed[name]}
            else:
                row |= _speed(shape, found[name], found.get("PyTorch bf16"))
                row |= _energy(runs[name], shape, gpu, setting.pick(0.5, 0.0))
            yield f"{title}, batch {shape.batch_size}", row
    longest = shapes[-1]
    for scheme in schemes:
        row = {"model": f"`{scheme}`", "batch": longest.batch_size}
        yield f"{title}, memory", tried(row, lambda s=scheme: _memory(setting, s, longest, large))
    if gpu:
        import torch

        row = {"model": "PyTorch, all types", "batch": longest.batch_size}
        yield f"{title}, memory", row | {"peak, MB": torch.cuda.max_memory_allocated() / 1e6}


def _workload(
    setting: Setting, scheme: str, large: bool, *, for_gpu: bool = True
) -> DecoderWorkload:
    folder = setting.model(scheme, large=large)
    workload = DecoderWorkload(folder, device=setting.device, threads=None)
    workload.decoder.for_gpu = for_gpu
    return workload


def _speed(shape: Shape, own: Any, baseline: Any) -> dict[str, Any]:
    ratios, speeds = {}, {}
    for phase, tokens in (("prefill", shape.length), ("decode", shape.new_tokens)):
        if baseline:
            ratios[f"× {phase}"] = list(pair.times_faster(baseline, own, phase))
        median = float(np.median([taken[phase] for taken in own]))
        speeds[f"{phase}, tokens/s"] = shape.batch_size * tokens / median
    return ratios | speeds


def _energy(run_: pair.Run, shape: Shape, gpu: bool, seconds: float) -> dict[str, Any]:
    """Energy of whole runs, repeated until counters that tick slowly have moved."""
    meter = open_energy_meter(gpu=gpu)
    if not meter.counters:
        return {"mJ/token": None}
    before, end, runs = meter.read(), time.perf_counter() + seconds, 0
    while not runs or time.perf_counter() < end:
        run_()
        runs += 1
    used = meter.used(before, meter.read())
    own = {n: j for n, j in used.items() if n.startswith("nvml") or not gpu}
    made = runs * shape.batch_size * (shape.length + shape.new_tokens)
    return {"mJ/token": 1e3 * sum(own.values()) / made if own else None}


def _memory(setting: Setting, scheme: str, shape: Shape, large: bool) -> dict[str, Any]:
    prompts = [[1] * shape.length] * shape.batch_size
    found = measure_memory(
        setting.model(scheme, large=large), prompts, new_tokens=2, device=setting.device
    )
    gpu = on_gpu(setting.providers)
    loaded = found.device_loaded_bytes if gpu else found.loaded_bytes
    above = found.device_peak_above_loaded_bytes if gpu else found.peak_above_loaded_bytes
    if loaded is None or above is None:
        return {"not measured": "; ".join(found.not_measured)}
    return {"loaded, MB": loaded / 1e6, "peak, MB": (loaded + above) / 1e6}
