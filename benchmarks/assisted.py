"""What assistants save in decoding one text at a time, and how many of their tokens are kept.

    python benchmarks/assisted.py --rounds 6 --tokens 32

The starter model in fp32, ``int8-weight-only`` and ``int4-weight-only`` generates greedily, alone
and with each assistant in turn, as ``mlflow-degrade assist`` does: the model itself with weights in
4 bits, models that keep a quarter of its layers (untrained, in 4 bits), and prompt lookup. Prompts
ask for a new text, or for one that repeats them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import click
from measurements import as_script, record

from mlflow_degrade.bench.assistance import AssistanceReport, Request, measure_assistance
from mlflow_degrade.bench.machine import processor_name
from mlflow_degrade.engine.assisted import Assistant, DraftModel, PromptLookup
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Sampling
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.engine.session import read_json
from mlflow_degrade.engine.tokenization import TextEncoder
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.resolve import resolve_model

WRITE = (
    "The ferry leaves the island at noon, and",
    "Question: Why does iron rust?\nAnswer:",
)
COPY = (
    "def area(width, height):\n    return width * height\n\n# The same once more:\ndef area(",
    "Text: The train to the coast stops at every village on Sundays. Repeat the text.\nText: The",
)
# Which layers of `n`: the last is the one that comes before the head.
QUARTERS: dict[str, Callable[[int], list[int]]] = {
    "first and last": lambda n: [*range(n // 8 + 1), *range(n - n // 8 - 1, n)],
    "first": lambda n: list(range(n // 4 + 1)),
    "spread": lambda n: [round(i * (n - 1) / (n // 4)) for i in range(n // 4 + 1)],
}


def keep_layers(source: Path, layers: list[int], target: Path) -> Path:
    """A copy of a model directory with some of its layers."""
    from torch.nn import ModuleList
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    kept = [model.model.layers[i] for i in layers]
    for place, layer in enumerate(kept):
        layer.self_attn.layer_idx = place
    model.model.layers = ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in layers]
    model.save_pretrained(target)
    for file in source.glob("*token*"):
        shutil.copy(file, target)
    for name in ("vocab.json", "merges.txt"):
        if (source / name).exists():
            shutil.copy(source / name, target)
    return target


def drafts(scratch: Path) -> Iterator[tuple[str, Path]]:
    """Quarters of the starter model in 4 bits."""
    source = resolve_model("starter").path
    layers = read_json(source, "config.json", needed=True)["num_hidden_layers"]
    for name, chosen in QUARTERS.items():
        kept = keep_layers(source, chosen(layers), scratch / name.replace(" ", "-"))
        exported = optimize_graph(export_onnx(resolve_model(str(kept)), progress=False))
        yield f"a quarter of its layers ({name})", apply_scheme(exported, "int4-weight-only")


def show(target: str, prompts: str, report: AssistanceReport) -> None:
    """Print and record one row."""
    ratio, kept = report.speedup, report.acceptance
    spread = "" if ratio.low is None else f"{ratio.low:.2f}–{ratio.high:.2f}"
    name = f"{target}, {report.assistant}, {prompts}"
    record(f"{name}: faster", ratio.estimate, "x", better="higher")
    if kept is not None:
        record(f"{name}: kept", kept, "share", better="higher")
    print(
        f"| {target} | {report.assistant} | {prompts} | {report.same}/{report.prompts} | "
        f"{'–' if kept is None else f'{kept:.0%}'} | {report.tokens_per_pass or 1:.2f} | "
        f"{ratio.estimate:.2f}x ({spread}) |",
        flush=True,
    )


@click.command()
@click.option("--rounds", default=6, show_default=True)
@click.option("--tokens", default=32, show_default=True, help="Most new tokens per text.")
def main(rounds: int, tokens: int) -> None:
    """Measure every target with every assistant."""
    print(f"{date.today():%Y-%m-%d}, {processor_name(CPU)}", flush=True)
    fp32 = optimize_graph(export_onnx(resolve_model("starter")))
    models = {"fp32": fp32}
    for scheme in ("int8-weight-only", "int4-weight-only"):
        models[scheme] = apply_scheme(fp32, scheme)
    encoder = TextEncoder(fp32)

    def requests(texts: tuple[str, ...]) -> list[Request]:
        return [Request(tuple(ids), Sampling(tokens)) for ids in encoder.encode(texts)]

    def run(target: str, label: str, assistant: Assistant, prompts: str) -> None:
        asked = requests(COPY if prompts == "repeated" else WRITE)
        report = measure_assistance(
            models[target], assistant, asked, label=target, assistant_label=label, rounds=rounds
        )
        show(target, prompts, report)

    def drafted(target: str, label: str, folder: Path) -> None:
        run(target, label, DraftModel(OnnxDecoder(folder, device="cpu")), "new")

    drafted("fp32", "itself in int4", models["int4-weight-only"])
    with tempfile.TemporaryDirectory() as scratch:
        for number, (label, folder) in enumerate(drafts(Path(scratch))):
            for target in models if number == 0 else ("fp32",):
                drafted(target, label, folder)
            if number == 0:
                drafted("int8-weight-only", "itself in int4", models["int4-weight-only"])
                for target in models:
                    run(target, "prompt lookup", PromptLookup(), "repeated")
                run("fp32", "prompt lookup", PromptLookup(), "new")


if __name__ == "__main__":
    as_script(main)
