"""Documents per CPU-second of the scoring engine and of lm-eval's own backends.

    python benchmarks/scoring.py --documents 24
    python benchmarks/scoring.py --choices items.jsonl.gz --letters other.jsonl.gz --documents 100

Two kinds of task: choices of several tokens after a question, and the letters of the choices after
five examples. Every backend gets the same token ids: the engine, lm-eval's Hugging Face backend and
lm-eval's own onnxruntime backend, which runs the engine's model file. All are run in turn in one
process, the whole round `--repeats` times, and the best round of each counts; ratios are printed
because CPU-seconds depend on the machine. PyTorch runs at the batch size, of 1, 8 and 32, that is
fastest in fp32 on the first documents; every backend uses `--threads` threads. Decisions are the
choices with the highest log-likelihood; documents whose two best choices are within 1e-4 nats are
ties and not compared. Without a file, items of the starter suite are asked. A line of a file is
{"question": …, "choices": […], "answer": index}.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from measurements import as_script, record
from numpy.typing import NDArray

from mlflow_degrade.bench.machine import processor_name
from mlflow_degrade.core.progress import quiet_libraries
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.evaluation.starter import read_items
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model
from mlflow_degrade.optimize.source.starter_model import fetch_starter_model

SHOTS = 5
LETTERS = "ABCDEFGHIJ"
BATCH_SIZES = (1, 8, 32)
TRIED = 8  # documents on which batch sizes are tried
TIE = 1e-4

Item = dict[str, Any]
Pairs = list[tuple[list[int], list[int]]]
Scorer = Callable[[Pairs], Sequence[tuple[float, bool]]]


def load_items(path: Path | None, fallback: str, count: int) -> list[Item]:
    """The first `count` items of a file, or of a task of the starter suite."""
    if path is None:
        return list(read_items(fallback)[:count])
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def choice_texts(items: Sequence[Item]) -> list[list[tuple[str, str]]]:
    """Per item its question with each choice."""
    return [[(item["question"], f" {choice}") for choice in item["choices"]] for item in items]


def letter_texts(items: Sequence[Item]) -> list[list[tuple[str, str]]]:
    """Per item after the first five, which are answered before it, its letters."""

    def asked(item: Item) -> str:
        named = zip(LETTERS, item["choices"], strict=False)
        lines = [item["question"], *(f"{letter}. {choice}" for letter, choice in named)]
        return "\n".join([*lines, "Answer:"])

    shots = "".join(f"{asked(i)} {LETTERS[i['answer']]}\n\n" for i in items[:SHOTS])
    return [
        [(shots + asked(item), f" {letter}") for letter in LETTERS[: len(item["choices"])]]
        for item in items[SHOTS:]
    ]


def engine(decoder: OnnxDecoder, *, shared: bool) -> Scorer:
    """The scoring engine, with or without shared prefixes."""

    def score(pairs: Pairs) -> Sequence[tuple[float, bool]]:
        decoder.reuse_prefixes = shared
        return decoder.score(pairs)

    return score


def onnxruntime_backend(folder: Path) -> Scorer:
    """lm-eval's own onnxruntime backend: one sequence at a time, all logits."""
    from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM

    return _scorer(ONNXRuntimeLM(pretrained=str(folder)))


def torch_backend(folder: Path, dtype: str, batch_size: int, device: str = "cpu") -> Scorer:
    """lm-eval's Hugging Face backend; models are loaded once per type."""
    from lm_eval.models.huggingface import HFLM

    model = _torch_model(folder, dtype).to(device)
    lm = HFLM(pretrained=model, tokenizer=_tokenizer(folder), batch_size=batch_size)
    return _scorer(lm)


def _scorer(lm: Any) -> Scorer:
    def score(pairs: Pairs) -> Sequence[tuple[float, bool]]:
        requests = [((str(i), ""), context, rest) for i, (context, rest) in enumerate(pairs)]
        found: Sequence[tuple[float, bool]] = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        return found

    return score


_LOADED: dict[str, Any] = {}


def _torch_model(folder: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in _LOADED:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        _LOADED[dtype] = model.eval()
    return _LOADED[dtype]


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def measure(
    task: str,
    decoder: OnnxDecoder,
    source: Path,
    texts: Sequence[Sequence[tuple[str, str]]],
    repeats: int,
) -> None:
    """Run every backend in turn and print the table of one task."""
    encoded = [decoder.encoder.encode_pairs(choices) for choices in texts]
    pairs = [pair for choices in encoded for pair in choices]
    sizes = [len(choices) for choices in encoded]
    best = _best_batch_size(source, [pair for choices in encoded[:TRIED] for pair in choices])
    reference = f"PyTorch fp32, batch {best}"
    scorers = {
        "engine, shared-prefix": engine(decoder, shared=True),
        "engine, batched": engine(decoder, shared=False),
        reference: torch_backend(source, "float32", best),
        f"PyTorch bf16, batch {best}": torch_backend(source, "bfloat16", best),
        "lm-eval's onnxruntime": onnxruntime_backend(decoder.folder),
    }
    taken: dict[str, list[float]] = {name: [] for name in scorers}
    scores: dict[str, NDArray[np.float64]] = {}
    for scorer in scorers.values():
        scorer(pairs[:4])  # loads what is loaded once
    for _ in range(repeats):
        for name, scorer in scorers.items():
            start = time.process_time()
            scores[name] = np.array([value for value, _ in scorer(pairs)])
            taken[name].append(time.process_time() - start)
    tokens = sum(len(context) + len(rest) for context, rest in pairs)
    print(f"{len(sizes)} documents, {len(pairs)} requests, {tokens / len(pairs):.0f} tokens each")
    print(
        f"{'backend':24} {'docs/CPU-s':>10} {'ratio':>6} {'max |Δ|':>9} {'changed':>8} {'ties':>5}"
    )
    for name, seconds in taken.items():
        rate = len(sizes) / min(seconds)
        ratio = min(taken[reference]) / min(seconds)
        if name.startswith("engine"):  # the batch size of the others is found anew each time
            record(f"{task}, {name}", rate, "documents/CPU-s", better="higher")
        worst = np.abs(scores[name] - scores[reference]).max()
        changed, ties = decisions(scores[name], scores[reference], sizes)
        print(f"{name:24} {rate:10.2f} {ratio:6.2f} {worst:9.1e} {changed:8} {ties:5}")


def _best_batch_size(source: Path, pairs: Pairs) -> int:
    """The batch size at which PyTorch fp32 takes the least CPU time, the best of two tries each."""
    taken = dict.fromkeys(BATCH_SIZES, float("inf"))
    for _ in range(2):
        for size in BATCH_SIZES:
            scorer = torch_backend(source, "float32", size)
            start = time.process_time()
            scorer(pairs)
            taken[size] = min(taken[size], time.process_time() - start)
    tried = ", ".join(f"{size}: {seconds:.1f} s" for size, seconds in taken.items())
    print(f"PyTorch fp32 on the first documents, by batch size: {tried}", flush=True)
    return min(taken, key=lambda size: taken[size])


def decisions(
    found: NDArray[np.float64], expected: NDArray[np.float64], sizes: Sequence[int]
) -> tuple[int, int]:
    """Documents with another best choice than expected, and documents that are tied."""
    changed = ties = 0
    ends = np.cumsum(sizes)[:-1]
    for ours, theirs in zip(np.split(found, ends), np.split(expected, ends), strict=True):
        best, second = np.sort(theirs)[:-3:-1]
        if best - second < TIE:
            ties += 1
        elif ours.argmax() != theirs.argmax():
            changed += 1
    return changed, ties


@click.command()
@click.option("--choices", type=click.Path(exists=True, path_type=Path), help="Items, JSON lines.")
@click.option("--letters", type=click.Path(exists=True, path_type=Path), help="Items, JSON lines.")
@click.option("--documents", default=24, show_default=True)
@click.option("--repeats", default=2, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    choices: Path | None, letters: Path | None, documents: int, repeats: int, threads: int
) -> None:
    """Measure both kinds of task on the starter model."""
    import torch

    torch.set_num_threads(threads)
    source = fetch_starter_model()
    folder = optimize_graph(export_onnx(resolve_model("starter")))
    decoder = OnnxDecoder(folder, device="cpu", threads=threads)
    print(f"{date.today():%Y-%m-%d}, {processor_name(CPU)}")
    tasks = (
        ("choices", choice_texts(load_items(choices, "starter_definitions", documents))),
        ("letters", letter_texts(load_items(letters, "starter_relations", documents + SHOTS))),
    )
    with quiet_libraries():
        for name, texts in tasks:
            print(f"\n{name}")
            measure(name, decoder, source, texts, repeats)


if __name__ == "__main__":
    as_script(main)
