"""Weights that another library has quantized: by what it wrote, and by how tensors are named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import ModelError, UnsupportedModelError
from ..source.weight_files import Weights, read_object

CONFIG = "config.json"
"""Where transformers describes a model."""

# Whose weights a quantizing library has packed: names that no float model has.
_PACKED = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "absmax": "bitsandbytes, 4 bits",
    "SCB": "bitsandbytes, 8 bits",
    "weight_scale_inv": "fp8 with block scales",
    "weight_scale": "fp8 or int8 with scales",
    "W_q": "HQQ",
    "codebooks": "AQLM",
    "Qidxs": "QuIP#",
    "q_weight": "EXL2",
    "_blocks": "MXFP4",
    "trellis": "EXL3",
}
# Configs of such libraries beside a config that does not mention them.
_SIDE_CONFIGS = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
    "quanto_qmap.json": "Quanto",
}
_CALLED = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "fp8",
    "fbgemm_fp8": "FBGEMM fp8", "compressed-tensors": "compressed-tensors", "hqq": "HQQ",
    "aqlm": "AQLM", "mxfp4": "MXFP4", "quanto": "Quanto", "torchao": "torchao", "eetq": "EETQ",
    "exl2": "EXL2", "modelopt": "ModelOpt", "auto-round": "AutoRound", "vptq": "VPTQ",
    "bitnet": "BitNet", "higgs": "HIGGS", "spqr": "SpQR", "quark": "Quark",
}  # fmt: skip
# How a library gives back floats, where it can.
_FLOATS_AGAIN = {
    "bitsandbytes": "Or undo it where it runs: model.dequantize() and save_pretrained.",
    "compressed-tensors": (
        "Or undo it: from_pretrained(…, quantization_config=CompressedTensorsConfig("
        "run_compressed=False)) and save_pretrained."
    ),
    "mxfp4": (
        "Or undo it: from_pretrained(…, quantization_config=Mxfp4Config(dequantize=True)) and "
        "save_pretrained."
    ),
}


READ = (
    "GPTQ (AutoGPTQ, GPTQModel), AWQ, AutoRound, compressed-tensors (pack-, int-, float- and "
    "naive-quantized, nvfp4-pack-quantized), ModelOpt (FP8, NVFP4), and fp8 with block scales"
)
"""Whose quantized weights are read, see `mlflow_degrade.optimize.source.quantized_checkpoints`."""


def refuse_quantized(folder: Path, config: Mapping[str, Any], weights: Weights, name: str) -> None:
    """Weights that are integers or scaled 8-bit floats: no scheme and no baseline starts there."""
    stated, evidence = stated_quantization(config), "by quantization_config in its config.json"
    if stated is not None:
        method = str(stated.get("quant_method") or _unnamed(stated))
    else:
        if (packed := _packed(weights)) is None:
            return
        method, tensor = packed
        evidence = f"by its tensors, e.g. {tensor}"
        if side := next((file for file in _SIDE_CONFIGS if (folder / file).is_file()), None):
            method, evidence = _SIDE_CONFIGS[side], f"by its {side}"
    base = named_base(folder)
    float_model = f"{base}, from which it was made" if base else "the one that it was made from"
    raise UnsupportedModelError(
        f"{name} is quantized already ({_CALLED.get(method.lower(), method)}{_bits(stated or {})}, "
        f"{evidence}): a scheme and its baseline start from float weights. Give the float model, "
        f"{float_model}. {_FLOATS_AGAIN.get(method.lower(), '')}".rstrip()
        + f" Read are, in safetensors with their config: {READ}."
    )


def is_quantized(folder: Path) -> bool:
    """Whether a directory's config says that a library has packed its weights."""
    return (folder / CONFIG).is_file() and (
        stated_quantization(read_object(folder / CONFIG)) is not None
    )


def stated_quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config says of the quantization of its weights, wherever libraries write it."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part.get(key), Mapping) and part[key]:
                return dict(part[key])
    if isinstance(config.get("quantization"), Mapping):
        return {"quant_method": "MLX", **config["quantization"]}
    return None


def _unnamed(stated: Mapping[str, Any]) -> str:
    """What wrote a quantization_config that does not say so."""
    if any(key.startswith("load_in_") for key in stated):
        return "bitsandbytes"
    if "config_groups" in stated or "sparsity_config" in stated:
        return "compressed-tensors"
    if {"bits", "group_size"} <= stated.keys() and stated.keys() <= {"bits", "group_size", "mode"}:
        return "MLX"
    return "gptq" if "desc_act" in stated else "a method it does not name"


def _bits(stated: Mapping[str, Any]) -> str:
    for key in ("bits", "w_bit", "nbits"):
        if stated.get(key):
            return f", {stated[key]} bits"
    if stated.get("load_in_4bit") or stated.get("_load_in_4bit"):
        return ", 4 bits"
    return ", 8 bits" if stated.get("load_in_8bit") or stated.get("_load_in_8bit") else ""


def _packed(weights: Weights) -> tuple[str, str] | None:
    """How weights are packed, and a tensor that shows it."""
    for name, tensor in sorted(weights.tensors.items()):
        last = name.rsplit(".", 1)[-1]
        for ending, what in _PACKED.items():
            if last == ending or (ending == "_blocks" and last.endswith(ending)):
                return what, name
        eight = tensor.dtype.startswith(("F8", "float8"))
        integers = tensor.dtype in ("I8", "U8", "I32", "U32", "int8", "uint8", "int32", "uint32")
        if len(tensor.shape) > 1 and last == "weight" and (eight or integers):
            return ("fp8" if eight else "integers"), name
    return None


def named_base(folder: Path) -> str | None:
    """The model that a directory was made from, where its config or its model card names one."""
    for file in (CONFIG, "quantize_config.json", "quant_config.json"):
        if not (folder / file).is_file():
            continue
        try:
            stated = read_object(folder / file)
        except ModelError:
            continue
        keys = ("base_model_name_or_path", "model_name_or_path", "_name_or_path")
        for values in (stated.get("quantization_config"), stated):
            for key in keys:
                value = values.get(key) if isinstance(values, Mapping) else None
                if isinstance(value, str) and value and Path(value).name != folder.name:
                    return value
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    named = front and re.search(r"^base_model:\s*\n?\s*-?\s*([^\s#]+)", front[1], re.MULTILINE)
    return named[1].strip("\"'") if named else None
