"""Speed of the schemes against the model in PyTorch, as transformers runs it.

    python benchmarks/against_pytorch.py                                # CPU, PyTorch in fp32
    python benchmarks/against_pytorch.py --device cuda --dtype bf16
    python benchmarks/against_pytorch.py fp16 fp8-static --device tensorrt --dtype fp16

Prefill of a prompt and greedy decoding after it, the same token ids for all, one after the other in
every round and in random order. Ratios are medians of the rounds with their 95% interval. A scheme
that is refused on the device is named with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from measurements import as_script, record

from mlflow_degrade.bench.cost import DecoderWorkload
from mlflow_degrade.bench.machine import processor_name
from mlflow_degrade.bench.results import MIN_ROUNDS, Ratio, Shape, paired_ratio
from mlflow_degrade.core.errors import InputError
from mlflow_degrade.engine.providers import DEVICES, cpu_count, on_gpu, resolve_device
from mlflow_degrade.engine.schedule import Tokens
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.source.resolve import resolve_model

Times = Mapping[str, float]
"""Phase → seconds."""

Run = Callable[[], Times]
"""Reads a prompt, generates, and says how long it took."""

_USUAL = ("fp32", "fp16", "bf16", "int8-weight-only", "int4-weight-only", "int8-dynamic")


def load_pytorch(source: Path, dtype: str, gpu: bool) -> Any:
    """The model as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=kind)
    return model.to("cuda" if gpu else "cpu").eval()


def pytorch(model: Any, prompts: Sequence[Tokens], new: int) -> Run:
    """The model as transformers runs it, on prompts of one length."""
    import torch

    device = model.device
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    ids = torch.tensor([list(prompt) for prompt in prompts], device=device)

    def run() -> Times:
        with torch.inference_mode():
            start = time.perf_counter()
            # The last position's logits, as the engine computes them.
            found: Any = model(ids, use_cache=True, logits_to_keep=1)
            wait()
            read = time.perf_counter()
            for _ in range(new):
                token = found.logits[:, -1].argmax(-1, keepdim=True)
                found = model(token, past_key_values=found.past_key_values, use_cache=True)
            wait()
            return {"prefill": read - start, "decode": time.perf_counter() - read}

    return run


def engine(workload: DecoderWorkload, prompts: Sequence[Tokens], new: int) -> Run:
    """A model directory in the engine."""

    def run() -> Times:
        return {phase: sum(calls) for phase, calls in workload.run(prompts, new)}

    return run


def run_rounds(runs: Mapping[str, Run], seconds: float) -> dict[str, list[Times]]:
    """All of them in every round, in random order, after one run that warms up."""
    found: dict[str, list[Times]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # opens sessions, fills caches
    random, end, rounds = np.random.default_rng(0), time.perf_counter() + seconds, 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name in random.permutation(list(runs)):
            found[name].append(runs[name]())
        rounds += 1
    return found


def times_faster(baseline: Sequence[Times], own: Sequence[Times], phase: str) -> Ratio:
    """How many times as fast as the baseline a phase is."""
    return paired_ratio([taken[phase] for taken in baseline], [taken[phase] for taken in own])


@click.command()
@click.argument("schemes", nargs=-1)
@click.option("--model", default="starter", show_default=True)
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32")
@click.option("--length", default=128, show_default=True, help="Tokens of the prompt.")
@click.option("--new-tokens", default=16, show_default=True, help="Tokens generated after it.")
@click.option("--seconds", default=60.0, show_default=True, help="Time for rounds.")
def main(
    schemes: tuple[str, ...],
    model: str,
    device: str,
    dtype: str,
    length: int,
    new_tokens: int,
    seconds: float,
) -> None:
    """Print a row for each scheme, with PyTorch in `--dtype` on the same device as 1."""
    providers = resolve_device(device)
    source = resolve_model(model)
    base = optimize_graph(export_onnx(source))
    runs: dict[str, Run] = {}
    prompts: list[Tokens] = []
    for name in schemes or _USUAL:
        try:
            find_scheme(name, providers)
        except InputError as error:
            click.echo(f"left out: {error}", err=True)
            continue
        folder = apply_scheme(base, name, providers=providers)
        workload = DecoderWorkload(folder, device=device, threads=None)
        prompts = prompts or workload.prompts(Shape(1, length, new_tokens))
        runs[f"`{name}`"] = engine(workload, prompts, new_tokens)
    if not runs:
        raise click.UsageError(f"no scheme is left on {device!r}")
    baseline = f"PyTorch {dtype}"
    torch_model = load_pytorch(source.path, dtype, on_gpu(providers))
    runs = {baseline: pytorch(torch_model, prompts, new_tokens), **runs}
    found = run_rounds(runs, seconds)
    print(
        f"{date.today():%Y-%m-%d}, {processor_name(providers[0])}, {cpu_count()} CPU cores, "
        f"{len(found[baseline])} rounds, a prompt of {length} tokens and {new_tokens} after it\n"
    )
    print("| model | × prefill [95%] | × decode [95%] | prefill, tokens/s | decode, tokens/s |")
    print("|---|---|---|---|---|")
    for name, times in found.items():
        ratios, speeds = [], []
        for phase, tokens in (("prefill", length), ("decode", new_tokens)):
            ratio = times_faster(found[baseline], times, phase)
            interval = "" if name == baseline else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
            ratios.append(f"{ratio.estimate:.2f}{interval}")
            speed = tokens / np.median([taken[phase] for taken in times])
            speeds.append(f"{speed:,.0f}")
            record(f"{name}, {phase}", speed, "tokens/s", better="higher")
        print(f"| {' | '.join([name, *ratios, *speeds])} |", flush=True)


if __name__ == "__main__":
    as_script(main)
