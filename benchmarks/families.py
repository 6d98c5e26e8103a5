"""Tiny random models of many architectures, from export to scores: what is fused, what is right.

    python benchmarks/families.py                            # all, some minutes
    python benchmarks/families.py gpt2 gpt_oss roberta --schemes int8-weight-only
    python benchmarks/families.py --rows rows.jsonl --write docs/architectures.md

For each family: whether its attention is fused, or why not; the largest difference of a logit from
PyTorch's, with and without a cache; the largest difference between the engine's log-likelihoods and
those of lm-eval's own Hugging Face backend; and of each scheme the size of its file relative to the
export's, and the share of the weights that stay in float. What a scheme refuses is named.

The models are random and their vocabulary is most of them: sizes say whether anything was missed,
not how small a real model becomes. With MLFLOW_DEGRADE_CACHE set, finished exports are kept there;
rows that the file of `--rows` holds are not measured again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from measurements import as_script, record

from mlflow_degrade.core.errors import DegradeError
from mlflow_degrade.evaluation.backend import OnnxLM
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.parity.agreement import agreement
from mlflow_degrade.optimize.parity.decoder import parity
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

_ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT / "tests"), str(_ROOT / "scripts")]

from markdown_tables import markdown, replace_between_markers  # noqa: E402
from model_families import DECODERS, ENCODERS, NOT_EXPORTED, UNLISTED, model_type  # noqa: E402
from tiny_models import SENTENCES, make_tiny_decoder, make_tiny_encoder  # noqa: E402

_SCHEMES = ("fp16", "int8-weight-only", "int4-weight-only", "int8-dynamic", "int8-static")
_ALL_DECODERS = {**DECODERS, **UNLISTED, **NOT_EXPORTED}


@dataclass(frozen=True)
class Row:
    """What was found for a family; a row of the table.

    Attributes
    ----------
    family : str
    exported : str
        By whose description of inputs and outputs; why not, where it was refused.
    fused : str
        What is one node now, or why nothing is.
    parity : float or None
        Largest difference from PyTorch of a logit, or of a component of an embedding.
    engine : float or None
        Largest difference of a log-likelihood from lm-eval's Hugging Face backend.
    schemes : tuple of str
        Size relative to the export, and the share in float, or why not.
    """

    family: str
    exported: str
    fused: str = ""
    parity: float | None = None
    engine: float | None = None
    schemes: tuple[str, ...] = ()

    def cells(self) -> list[str]:
        """For a Markdown table."""
        figures = ["" if x is None else f"{x:.0e}" for x in (self.parity, self.engine)]
        return [f"`{self.family}`", self.exported, self.fused, *figures, *self.schemes]


def sweep_decoder(family: str, folder: Path, schemes: Sequence[str] = _SCHEMES) -> Row:
    """Take a decoder through everything; a refusal to export it is an answer too."""
    source = make_tiny_decoder(model_type(family), folder / "source", **_ALL_DECODERS[family])
    try:
        exported = export_onnx(resolve_model(str(source)), progress=False)
    except DegradeError as error:
        reason = str(error).replace(str(source), "it").splitlines()[0]
        return Row(family, f"no: {reason[:160]}")
    base = optimize_graph(exported, progress=False)
    differences = [parity(source, base, with_past=past) for past in (False, True)]
    return Row(
        family,
        "as Llama" if "described_as" in ModelDirectory.load(exported).recipe[0] else "by Optimum",
        _fused(base),
        max(found.max_abs_logit_difference for found in differences),
        _against_lm_eval(source, base),
        tuple(_applied(base, scheme) for scheme in schemes),
    )


def sweep_encoder(family: str, folder: Path, schemes: Sequence[str] = _SCHEMES) -> Row:
    """The same for an encoder, whose fused graph is not what schemes start from."""
    source = make_tiny_encoder(family, folder / "source", **ENCODERS[family])
    exported = export_onnx(resolve_model(str(source)), progress=False)
    fused = optimize_graph(exported, "O2", progress=False)
    return Row(
        family,
        "by Optimum",
        _fused(fused),
        agreement(source, fused).max_abs_difference,
        schemes=tuple(
            _applied(optimize_graph(exported, progress=False), scheme) for scheme in schemes
        ),
    )


def _fused(base: Path) -> str:
    step = ModelDirectory.load(base).recipe[-1]
    if "not_fused" in step:
        return f"no: {step['not_fused']}"
    return ", ".join(f"{what} {count}" for what, count in step["fused"].items() if count)


def _applied(base: Path, scheme: str) -> str:
    try:
        made = ModelDirectory.load(apply_scheme(base, scheme, progress=False))
    except DegradeError as error:
        return f"refused: {str(error)[:80]}"
    assert made.weights is not None
    size = made.size_bytes / ModelDirectory.load(base).size_bytes
    left = made.weights["in_float"]
    return f"{size:.2f}, {100 * left:.0f}%" + (
        f" (products {100 - 100 * made.weights['quantized_share']:.0f}%)"
        if made.weights["quantized_share"] < 1 and scheme not in ("fp16", "bf16")
        else ""
    )


def _against_lm_eval(source: Path, base: Path) -> float:
    """Largest difference of a log-likelihood, each backend given the same requests."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    theirs = HFLM(
        pretrained=model,
        tokenizer=AutoTokenizer.from_pretrained(source),
        batch_size=1,
        device="cpu",
    )
    ours = OnnxLM(str(base), device="cpu")
    requests = [
        Instance("loglikelihood", {}, (context, rest), index)
        for index, (context, rest) in enumerate(
            (one, f" {other}") for one in SENTENCES[:3] for other in SENTENCES
        )
    ]
    pairs = zip(
        ours.loglikelihood(requests),
        theirs.loglikelihood(requests, disable_tqdm=True),
        strict=True,
    )
    return max(abs(mine[0] - yours[0]) for mine, yours in pairs)


def table(kind: str, rows: Sequence[Row], schemes: Sequence[str]) -> str:
    """The rows as Markdown; of those that are not exported the document says why by itself."""
    notes = {
        "decoders": "*Parity*: largest difference from PyTorch of a logit, with and without a "
        "cache. *Engine*: largest difference of a log-likelihood from lm-eval's Hugging Face "
        "backend.",
        "encoders": "*Parity*: largest difference from PyTorch of a component of an embedding.",
    }
    header = ["family", "export", "one node each", "parity", "engine", *schemes]
    cells = [row.cells() for row in sorted(rows, key=lambda r: r.family) if row.parity is not None]
    if kind == "encoders":  # which lm-eval does not score
        del header[4]
        for line in cells:
            del line[4]
    note = (
        f"Two layers, width 64, random weights. {notes[kind]} Schemes: size of the file relative "
        "to fp32, and the share of all weights that is stored in float, which is the embedding, "
        "norms and biases; matrices that are multiplied are named where any stay."
    )
    return markdown(header, cells, note)


@click.command(help=__doc__.splitlines()[0])
@click.argument("families", nargs=-1)
@click.option("--schemes", default=",".join(_SCHEMES), show_default=True)
@click.option("--rows", type=click.Path(path_type=Path), help="File of rows to go on from.")
@click.option("--write", type=click.Path(path_type=Path), help="Document to put the tables into.")
def main(families: tuple[str, ...], schemes: str, rows: Path | None, write: Path | None) -> None:
    warnings.filterwarnings("ignore")  # torch's tracer comments on every model
    unknown = set(families) - {*_ALL_DECODERS, *ENCODERS}
    if unknown:
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))}; known: {', '.join([*_ALL_DECODERS, *ENCODERS])}"
        )
    chosen = tuple(filter(None, schemes.split(",")))
    kept = os.environ.get("MLFLOW_DEGRADE_CACHE")
    lines = rows.read_text(encoding="utf-8").splitlines() if rows and rows.exists() else []
    before = {line["family"]: Row(**line) for line in map(json.loads, lines)}
    found: dict[str, list[Row]] = {"decoders": [], "encoders": []}
    failed = []
    for family in families or (*sorted(_ALL_DECODERS), *sorted(ENCODERS)):
        kind = "encoders" if family in ENCODERS else "decoders"
        sweep = sweep_encoder if family in ENCODERS else sweep_decoder
        with tempfile.TemporaryDirectory() as scratch:
            if not kept:
                os.environ["MLFLOW_DEGRADE_CACHE"] = f"{scratch}/cache"
            try:
                row = before.get(family) or sweep(family, Path(scratch), chosen)
            except Exception:  # noqa: BLE001 - the other families are measured all the same
                failed.append(family)
                traceback.print_exc()
                continue
        if rows and family not in before:
            with rows.open("a", encoding="utf-8") as file:
                print(json.dumps(asdict(row)), file=file)
        found[kind].append(row)
        for what, difference in (("PyTorch", row.parity), ("lm-eval", row.engine)):
            if difference is not None:
                record(f"{family}, largest difference from {what}", difference, "logits")
        print(" | ".join(row.cells()), flush=True)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")
    if write is not None:
        made = {kind: table(kind, those, chosen) for kind, those in found.items() if those}
        text = write.read_text(encoding="utf-8")
        write.write_text(replace_between_markers(text, made), encoding="utf-8")


if __name__ == "__main__":
    as_script(main)
