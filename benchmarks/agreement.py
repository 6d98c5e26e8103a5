"""Does the engine give PyTorch's answers? On files of items, to be run once in a while.

    python benchmarks/agreement.py hellaswag.jsonl.gz lambada.jsonl.gz --documents 500
    python benchmarks/agreement.py gsm8k.jsonl.gz --generate --documents 200

Log-likelihoods of the engine, on the path it chooses by its probes, against those of lm-eval's
Hugging Face backend in fp32 at batch size 8, for the same token ids. Decisions are the choices with
the highest log-likelihood, or for items with one continuation whether every token of it is the
most likely one; documents whose two best choices are within 1e-4 nats are ties and not compared.
With `--generate`, greedy continuations of the prompts. A line of a file is
{"question": …, "choices": […]}, {"context": …, "target": …} or, to generate, {"question": …}.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from measurements import as_script, record
from rich.progress import track
from scoring import TIE, Item, choice_texts, decisions, load_items, torch_backend

from mlflow_degrade.core.progress import quiet_libraries
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.evaluation.backend import OnnxLM
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model
from mlflow_degrade.optimize.source.starter_model import fetch_starter_model

_CHUNK = 20
_NEW_TOKENS = 48


def texts_of(items: list[Item]) -> list[list[tuple[str, str]]]:
    """Context and continuations of each item."""
    if "choices" in items[0]:
        return choice_texts(items)
    return [[(item["context"], item["target"])] for item in items]


def compare_scores(lm: OnnxLM, source: Path, items: list[Item]) -> str:
    """Score everything with both and say how far they are apart."""
    encoded = [lm.decoder.encoder.encode_pairs(choices) for choices in texts_of(items)]
    pairs = [pair for choices in encoded for pair in choices]
    found = lm._loglikelihood_tokens([(("", ""), *pair) for pair in pairs], disable_tqdm=True)
    ours = np.array([value for value, _ in found])
    reference = torch_backend(source, "float32", 8)
    theirs, greedy = [], []
    for start in track(range(0, len(pairs), _CHUNK), "PyTorch"):
        for value, best in reference(pairs[start : start + _CHUNK]):
            theirs.append(value)
            greedy.append(best)
    expected = np.array(theirs)
    sizes = [len(choices) for choices in encoded]
    if max(sizes) > 1:
        changed, ties = decisions(ours, expected, sizes)
    else:
        changed, ties = sum(a != b for (_, a), b in zip(found, greedy, strict=True)), 0
    worst = np.abs(ours - expected).max()
    what = f"{len(items)} documents with {len(pairs)} requests"
    record(f"largest difference, {what}", worst, "nats")
    record(f"changed decisions, {what}", changed, "documents")
    return (
        f"{len(items)} documents, {len(pairs)} requests: largest difference {worst:.1e} nats, "
        f"{changed} changed decisions, {ties} ties (within {TIE:g})"
    )


def compare_texts(lm: OnnxLM, source: Path, items: list[Item]) -> str:
    """Continue every question with both."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from scoring import _tokenizer, _torch_model

    asked = {"until": ["\n\n"], "max_gen_toks": _NEW_TOKENS, "do_sample": False}

    def requests() -> list[Any]:
        prompts = [f"Question: {item['question']}\nAnswer:" for item in items]
        return [Instance("generate_until", {}, (p, dict(asked)), i) for i, p in enumerate(prompts)]

    hf = HFLM(
        pretrained=_torch_model(source, "float32"), tokenizer=_tokenizer(source), batch_size=8
    )
    texts, seconds = [], []
    for model in (lm, hf):
        model.generate_until(requests()[:1])
        start = time.process_time()
        texts.append(model.generate_until(requests()))
        seconds.append(time.process_time() - start)
    same = sum(a == b for a, b in zip(*texts, strict=True))
    path = "shared prefixes" if lm.decoder.reuse_prefixes else "batched"
    record(f"generation, {len(items)} prompts, {path}", seconds[0], "CPU-s")
    (ratio,) = (theirs / ours for ours, theirs in pairwise(seconds))
    return (
        f"{len(items)} prompts, up to {_NEW_TOKENS} tokens each: {same} texts are identical; "
        f"{seconds[0]:.0f} CPU-seconds, PyTorch fp32 at batch 8 {seconds[1]:.0f} ({ratio:.2f}x)"
    )


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--documents", default=500, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--generate", is_flag=True, help="Continue questions instead of scoring choices.")
def main(files: tuple[Path, ...], documents: int, threads: int, generate: bool) -> None:
    """Compare on each file."""
    import torch

    torch.set_num_threads(threads)
    source = fetch_starter_model()
    folder = optimize_graph(export_onnx(resolve_model("starter")))
    compare = compare_texts if generate else compare_scores
    for file in files:
        lm = OnnxLM(OnnxDecoder(folder, device="cpu", threads=threads))
        with quiet_libraries():
            answer = compare(lm, source, load_items(file, "", documents))
        path = "shared-prefix" if lm.decoder.reuse_prefixes else "batched"
        print(f"{file.parent.name or file.name}, {path}: {answer}", flush=True)


if __name__ == "__main__":
    as_script(main)
