"""What all parts are given: the device, the models, the items."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import scoring

from mlflow_degrade.core.errors import DegradeError
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.providers import resolve_device
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.resolve import resolve_model
from mlflow_degrade.optimize.source.starter_model import fetch_starter_model

_T = TypeVar("_T")

SCHEMES = ("fp32", "fp16", "bf16", "int8-weight-only", "int4-weight-only")

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# TinyLlama's: Zhang et al., 2024, arXiv:2401.02385, table 1.
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}


@dataclass(frozen=True)
class Setting:
    """What a part runs on.

    Attributes
    ----------
    device : str
        As `resolve_device` takes it.
    tiny : bool
        Whether to use a tiny random model and few items: the same code, and numbers without a
        meaning.
    data : Path or None
        Folder with ``hellaswag/items.jsonl.gz`` and ``arc_easy/items.jsonl.gz``; without it, items
        of the starter suite.
    out : Path
        Where results go.
    """

    device: str
    tiny: bool
    data: Path | None
    out: Path

    @property
    def providers(self) -> tuple[str, ...]:
        """Of onnxruntime."""
        return resolve_device(self.device)

    @property
    def torch_device(self) -> str:
        """The device in PyTorch's words."""
        return "cpu" if self.device == "cpu" else "cuda"

    @property
    def schemes(self) -> tuple[str, ...]:
        """What is measured."""
        return ("fp16", "int8-weight-only") if self.tiny else SCHEMES

    def pick(self, full: Any, tiny: Any) -> Any:
        """One of two sizes of the work."""
        return tiny if self.tiny else full

    def source(self, *, large: bool = False) -> Path:
        """The starter model as transformers reads it, or a random one."""
        if self.tiny:
            return _random_model(self.out / "models" / "tiny", TINY)
        if large:
            return _random_model(self.out / "models" / "large", LARGE)
        return fetch_starter_model(progress=False)

    def model(self, scheme: str, *, large: bool = False) -> Path:
        """Its model directory under a scheme; what was made before is taken from the cache."""
        source = resolve_model(str(self.source(large=large)))
        base = optimize_graph(export_onnx(source, progress=False), progress=False)
        if scheme == "fp32":
            return base
        return apply_scheme(base, scheme, providers=self.providers, progress=False)

    def decoder(self, scheme: str, *, for_gpu: bool = True) -> OnnxDecoder:
        """The engine on it, as it is on a GPU even where there is none, or as exported."""
        decoder = OnnxDecoder(self.model(scheme), device=self.device)
        decoder.for_gpu = decoder.cuda_graphs = for_gpu
        return decoder

    def items(self, task: str, count: int) -> list[scoring.Item]:
        """The first items of ``hellaswag`` or ``arc_easy``, or of a starter task like it."""
        fallback = {"hellaswag": "starter_definitions", "arc_easy": "starter_relations"}[task]
        file = self.data / task / "items.jsonl.gz" if self.data else None
        return scoring.load_items(file, fallback, count)

    def texts(self, count: int) -> dict[str, list[list[tuple[str, str]]]]:
        """Choices of several tokens, and letters after five examples, of `count` items each."""
        letters = self.items("arc_easy", count + scoring.SHOTS)
        return {
            "HellaSwag" if self.data else "definitions": scoring.choice_texts(
                self.items("hellaswag", count)
            ),
            "ARC-Easy, 5-shot" if self.data else "relations, 5-shot": scoring.letter_texts(letters),
        }


def _random_model(folder: Path, shape: dict[str, int]) -> Path:
    """A random Llama with the starter model's tokenizer, made once."""
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(fetch_starter_model(progress=False))
    config = LlamaConfig(
        vocab_size=len(words),
        max_position_embeddings=2048,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        **shape,
    )
    torch.manual_seed(0)
    # Another part may be looking for it.
    half = folder.with_name(f"{folder.name}.{os.getpid()}")
    words.save_pretrained(half)
    LlamaForCausalLM(config).eval().save_pretrained(half)
    with suppress(OSError):  # that part was faster
        half.rename(folder)
    return folder


def tried(row: dict[str, Any], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row with what was found, or with why it was not: one failure does not hide the rest."""
    try:
        return row | find()
    except DegradeError as error:
        return row | {"not measured": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a GPU library raises is a result here
        return row | {"not measured": f"{type(error).__name__}: {error}"}


def those_made(
    makers: Mapping[str, Callable[[], _T]],
) -> tuple[dict[str, _T], dict[str, str]]:
    """What could be made, and by the same names why the rest could not."""
    made: dict[str, _T] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        row = tried({}, lambda m=make: {"made": m()})
        if "made" in row:
            made[name] = row["made"]
        else:
            failed[name] = row["not measured"]
    return made, failed


def encoded(
    decoder: OnnxDecoder, texts: Sequence[Sequence[tuple[str, str]]]
) -> tuple[scoring.Pairs, list[int]]:
    """Token ids of all requests, and how many belong to each item."""
    found = [decoder.encoder.encode_pairs(choices) for choices in texts]
    return [pair for choices in found for pair in choices], [len(choices) for choices in found]
