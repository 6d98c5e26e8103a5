"""Checkpoints whose weights another library has quantized, brought to float32 as they are.

Integers and scales are multiplied out, so that the gate judges what the other library's weights do.
Read are the layouts of GPTQ (AutoGPTQ, GPTQModel, AutoRound), AWQ, compressed-tensors
(llm-compressor), ModelOpt, and 8-bit floats with a scale for each block. What such a model rounds
while it runs, activations and caches, is not rounded here, and is stated.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.cache import cached_directory, digest_file, require_space
from ...core.errors import UnsupportedModelError
from ..onnx_graph.packed_weights import CONFIG, READ, stated_quantization
from .model_directory import copy_companions
from .weight_files import Weights, listed, read_object

_VERSION = 1
_SIDE = "hf_quant_config.json"  # of ModelOpt, where config.json says nothing
_SIDES = (_SIDE, "quantize_config.json", "quant_config.json", "quantization_config.json")

# From the tensors of one layer to its float matrix, of shape (outputs, inputs).

Parts = Mapping[str, Any]
"""Tensors of a layer by the ends of their names."""

# Codes of four bits that are floats (E2M1); the upper half is negative.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# In which order AWQ's kernels want the eight numbers of a word: where number i of a row lies.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def _words(packed: Any, bits: int) -> Any:
    """Numbers of some bits in 32-bit words along the last axis, the first in the lowest bits."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    found = (packed.to(torch.int32)[..., None] >> shifts) & (2**bits - 1)
    return found.flatten(-2)


def _gptq(parts: Parts, stated: _Stated) -> Any:
    """``qweight`` is packed along inputs, ``qzeros`` along outputs, less 1 in the first version."""
    import torch

    bits, scales = stated.bits, parts["scales"].float()
    codes = _words(parts["qweight"].T, bits)
    outputs, inputs = codes.shape
    zeros = _words(parts["qzeros"], bits)[:, :outputs] + stated.zero_offset
    group = inputs if stated.group_size in (-1, 0) else stated.group_size
    rows = parts.get("g_idx")
    rows = torch.arange(inputs) // group if rows is None else rows.long()
    return (codes - zeros[rows].T) * scales[rows].T


def _awq(parts: Parts, stated: _Stated) -> Any:
    """Both are packed along outputs, eight to a word in the order that AWQ's kernels want."""
    if stated.bits != 4:
        raise _unread(f"AWQ in {stated.bits} bits")

    def unpacked(packed: Any) -> Any:
        words = _words(packed, 4)
        return words.unflatten(-1, (-1, 8))[..., list(_AWQ_PLACES)].flatten(-2)

    codes, zeros, scales = unpacked(parts["qweight"]), unpacked(parts["qzeros"]), parts["scales"]
    size = len(codes) // len(scales)
    wide = scales.float().repeat_interleave(size, 0)
    return ((codes - zeros.repeat_interleave(size, 0)) * wide).T


def _packed_integers(parts: Parts, stated: _Stated) -> Any:
    """Dense bits along inputs, and those of zero points along outputs."""
    outputs, inputs = (int(n) for n in parts["weight_shape"])
    codes = _dense(parts["weight_packed"], stated.bits, inputs)
    scales = parts["weight_scale"].float().reshape(-1, 1 if stated.whole_rows else _columns(parts))
    zeros = 0
    if (packed := parts.get("weight_zero_point")) is not None:
        zeros = _dense(packed.T, stated.bits, outputs).T
    return _by_groups(codes, scales, zeros, parts.get("weight_g_idx"))


def _columns(parts: Parts) -> int:
    scale = parts["weight_scale"]
    return int(scale.shape[-1]) if scale.ndim > 1 else 1


def _dense(packed: Any, bits: int, count: int) -> Any:
    """Numbers that lie bit after bit across words, less the middle of their range."""
    import torch

    words = packed.to(torch.int64) & 0xFFFFFFFF
    starts = torch.arange(count) * bits
    word, offset = starts // 32, starts % 32
    after = torch.clamp(word + 1, max=words.shape[1] - 1)
    both = words[:, word] | (words[:, after] << 32)
    return ((both >> offset) & (2**bits - 1)) - 2 ** (bits - 1)


def _by_groups(codes: Any, scales: Any, zeros: Any, order: Any) -> Any:
    """Scales and zero points of shape (outputs or 1, groups), applied to groups of inputs."""
    import torch

    inputs, groups = codes.shape[-1], scales.shape[-1]
    if inputs % groups:
        raise _unread(f"{groups} groups of {inputs} inputs")
    place = torch.arange(inputs) // (inputs // groups) if order is None else order.long()
    if order is not None and bool((place < 0).any()):
        place = torch.arange(inputs) // (inputs // groups)  # what was never set
    shift = zeros[:, place] if hasattr(zeros, "shape") else zeros
    return (codes - shift) * scales[:, place]


def _numbers(parts: Parts, stated: _Stated) -> Any:
    """Integers or 8-bit floats as they are, with scales of tensors, rows, groups or blocks."""
    import torch

    weight = parts["weight"].float()
    scale = parts.get("weight_scale_inv", parts.get("weight_scale"))
    if scale is None:
        raise _unread("weights without scales")
    scale, zeros = scale.float(), parts.get("weight_zero_point")
    rows, columns = weight.shape
    if scale.numel() == 1:
        return (weight - (0 if zeros is None else zeros.float())) * scale
    if scale.ndim == 1:
        scale = scale[:, None]
    if scale.shape[0] == rows:
        shift = 0 if zeros is None else zeros.float().reshape(scale.shape)
        return _by_groups(weight, scale, shift, parts.get("weight_g_idx"))
    high, wide = stated.block or (-(-rows // scale.shape[0]), -(-columns // scale.shape[1]))
    if zeros is not None and bool(zeros.any()):
        raise _unread("zero points of blocks")
    spread = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    if spread.shape != weight.shape:
        raise _unread(f"{list(scale.shape)} scales of {[rows, columns]} weights")
    return torch.mul(weight, spread)


def _small_floats(parts: Parts, stated: _Stated) -> Any:  # noqa: ARG001
    """NVFP4: two E2M1 codes to a byte, scales of 16 in E4M3, and one scale for the matrix."""
    import torch

    packed = parts.get("weight_packed", parts.get("weight"))
    assert packed is not None
    table = torch.tensor([*_E2M1, *(-x for x in _E2M1)])
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    scales = parts["weight_scale"].float()
    if "weight_global_scale" in parts:  # compressed-tensors divides, ModelOpt multiplies
        scales = scales / parts["weight_global_scale"].float()
    else:
        scales = scales * parts["weight_scale_2"].float()
    return _by_groups(table[codes.long()], scales, 0, None)


# Which layout a checkpoint has, by its config.

_LAYOUTS: Mapping[str, tuple[str, Callable[[Parts, Any], Any]]] = {
    # The tensor by which a layer is known, and what multiplies it out.
    "gptq": ("qweight", _gptq),
    "awq": ("qweight", _awq),
    "pack-quantized": ("weight_packed", _packed_integers),
    "nvfp4-pack-quantized": ("weight_packed", _small_floats),
    "numbers": ("weight_scale", _numbers),
    "blocks": ("weight_scale_inv", _numbers),
    "nvfp4": ("weight_scale_2", _small_floats),
}
_PARTS = {
    "bias_correction", "g_idx", "qweight", "qzeros", "scales", "weight", "weight_g_idx",
    "weight_global_scale", "weight_packed", "weight_scale", "weight_scale_2", "weight_scale_inv",
    "weight_shape", "weight_zero_point",
}  # fmt: skip
# Scales of what is rounded while the model runs, which is not done here.
_RUNNING = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
    "k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point", "kv_scale",
    "prob_output_scale",
)  # fmt: skip


@dataclass(frozen=True)
class _Stated:
    """What a config says."""

    method: str  # As people call it.
    layout: str  # A key of `_LAYOUTS`.
    bits: int
    group_size: int = -1
    zero_offset: int = 0  # What was taken from zero points before they were packed.
    whole_rows: bool = False  # Whether a scale is for all inputs of an output.
    block: tuple[int, int] | None = None
    running: tuple[str, ...] = ()  # What the model rounds while it runs.

    def __str__(self) -> str:
        groups = f", groups of {self.group_size}" if self.group_size > 0 else ""
        return f"{self.method}, {self.bits} bits{groups}"


def read_stated(folder: Path, config: Mapping[str, Any]) -> _Stated | None:
    """What is known of a checkpoint's layout; None where it is not read, or not quantized."""
    stated = stated_quantization(config)
    if stated is None and (folder / _SIDE).is_file():
        stated = {"quant_method": "modelopt", **read_object(folder / _SIDE)}
    if stated is None:
        return None
    method = str(stated.get("quant_method") or "").lower().replace("_", "-")
    if not method and "config_groups" in stated:
        method = "compressed-tensors"
    try:
        return _METHODS[method](stated) if method in _METHODS else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedModelError(
            f"its quantization_config is not as {method} writes it ({type(error).__name__}: "
            f"{error}): copy config.json again."
        ) from error


def _read_gptq(stated: Mapping[str, Any], method: str = "GPTQ") -> _Stated:
    bits = int(stated["bits"])
    if bits not in (2, 4, 8):
        raise _unread(f"{method} in {bits} bits")
    if stated.get("dynamic"):
        raise _unread(f"{method} with other settings for some layers (dynamic)")
    kind = str(stated.get("checkpoint_format") or "gptq").lower()
    if kind not in ("gptq", "gptq_v2"):
        raise _unread(f"{method} in the format {kind!r}")
    return _Stated(method, "gptq", bits, int(stated["group_size"]), int(kind == "gptq"))


def _read_awq(stated: Mapping[str, Any], method: str = "AWQ") -> _Stated:
    bits = int(stated.get("bits", stated.get("w_bit", 4)))
    kind = str(stated.get("version") or "gemm").lower()
    if kind != "gemm":
        raise _unread(f"{method} in the version {kind!r}")
    return _Stated(method, "awq", bits, int(stated.get("group_size", stated.get("q_group_size"))))


def _read_auto_round(stated: Mapping[str, Any]) -> _Stated:
    packing = str(stated.get("packing_format") or "auto_round:auto_gptq")
    if int(stated.get("act_bits") or 16) <= 8:
        raise _unread("AutoRound with activations in 8 bits or fewer")
    if stated.get("extra_config") and any(
        int(v.get("bits", stated["bits"])) not in (16, 32, int(stated["bits"]))
        for v in dict(stated["extra_config"]).values()
    ):
        raise _unread("AutoRound with other bits for some layers (extra_config)")
    if "awq" in packing:
        return _read_awq(stated, "AutoRound")
    less = "gptq" in packing and "gptqmodel" not in packing
    kind = "gptq" if less else "gptq_v2"
    return _read_gptq({**stated, "checkpoint_format": kind, "dynamic": None}, "AutoRound")


def _read_compressed(stated: Mapping[str, Any]) -> _Stated:
    if stated.get("sparsity_config"):
        raise _unread("compressed-tensors with sparse weights")
    groups = list(dict(stated["config_groups"]).values())
    weights = [dict(group["weights"]) for group in groups]
    formats = {str(g.get("format") or stated.get("format")) for g in groups}
    if len(formats) > 1 or any(w != weights[0] for w in weights):
        raise _unread("compressed-tensors with several groups of settings")
    (found,), first = formats, weights[0]
    if found in ("pack-quantized", "nvfp4-pack-quantized"):
        layout = found
    elif found in ("int-quantized", "float-quantized", "naive-quantized"):
        layout = "numbers"
    else:
        raise _unread(f"compressed-tensors in the format {found!r}")
    running = [f"activations in {a['num_bits']} bits" for a in _activations(groups)]
    if stated.get("kv_cache_scheme"):
        running.append(f"cache in {dict(stated['kv_cache_scheme']).get('num_bits', 8)} bits")
    return _Stated(
        f"compressed-tensors, {found}",
        layout,
        int(first["num_bits"]),
        int(first.get("group_size") or -1),
        whole_rows=str(first.get("strategy")) in ("channel", "tensor"),
        block=tuple(first["block_structure"]) if first.get("block_structure") else None,
        running=tuple(dict.fromkeys(running)),
    )


def _activations(groups: list[Any]) -> Iterator[Mapping[str, Any]]:
    for group in groups:
        if isinstance(group.get("input_activations"), Mapping):
            yield group["input_activations"]


def _read_modelopt(stated: Mapping[str, Any]) -> _Stated:
    inner = dict(stated.get("quantization") or stated)
    algorithm = str(inner.get("quant_algo") or "").upper()
    running = []
    if kept := inner.get("kv_cache_quant_algo") or inner.get("kv_cache_scheme"):
        kind = kept if isinstance(kept, str) else "8 bits"
        running.append(f"cache in {kind}")
    if algorithm == "FP8":
        running.insert(0, "activations in 8-bit floats")
        return _Stated("ModelOpt FP8", "numbers", 8, running=tuple(running))
    if algorithm in ("NVFP4", "W4A16_NVFP4"):
        if algorithm == "NVFP4":
            running.insert(0, "activations in 4-bit floats")
        return _Stated(f"ModelOpt {algorithm}", "nvfp4", 4, 16, running=tuple(running))
    raise _unread(f"ModelOpt's {algorithm or 'algorithm without a name'}")


def _read_fp8(stated: Mapping[str, Any]) -> _Stated:
    size = stated.get("weight_block_size")
    layout = "blocks" if size else "numbers"
    block = (int(size[0]), int(size[1])) if size else None
    running = ("activations in 8-bit floats",)
    return _Stated("fp8", layout, 8, block=block, running=running)


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], _Stated]] = {
    "gptq": _read_gptq,
    "awq": _read_awq,
    "auto-round": _read_auto_round,
    "compressed-tensors": _read_compressed,
    "modelopt": _read_modelopt,
    "fp8": _read_fp8,
}


def _unread(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} is not read. Read are {READ}. Give the float model that it was made from."
    )


# A directory with the floats.


def multiplied_out(
    folder: Path, config: Mapping[str, Any], weights: Weights
) -> tuple[Path, str] | None:
    """The directory in the cache that a quantized checkpoint becomes, and what is to be said."""
    marks = {mark for mark, _ in _LAYOUTS.values()}
    if not any(name.rpartition(".")[2] in marks for name in weights.tensors):
        return None
    stated = read_stated(folder, config)
    if stated is None:
        return None
    if any(file.suffix != ".safetensors" for file in weights.files):
        raise _unread("a quantized checkpoint in pickles")
    files = [*weights.files, folder / CONFIG]
    files += [folder / _SIDE] * (folder / _SIDE).is_file()
    beside = sorted(
        p for p in folder.glob("*") if p.suffix in (".json", ".txt", ".model", ".jinja")
    )
    key = ["unquantized", _VERSION, *([p.name, digest_file(p)] for p in {*files, *beside})]

    def fill(target: Path) -> None:
        size = sum(file.stat().st_size for file in weights.files)
        require_space(target, int(size * 33 / stated.bits), f"converting {folder.name}")
        _convert(folder, weights, stated, target)

    path = cached_directory("unquantized", key, fill)
    lost = f"; {' and '.join(stated.running)} are not rounded here" if stated.running else ""
    note = (
        f"its weights were quantized by another library ({stated}) and are brought to float32 as "
        f"they are{lost}: what the gate judges is the damage of the weights"
    )
    return path, note


def _convert(folder: Path, weights: Weights, stated: _Stated, target: Path) -> None:
    from safetensors import safe_open

    where: dict[str, Path] = {}
    for file in weights.files:
        with safe_open(str(file), "pt") as opened:
            where |= dict.fromkeys(opened.keys(), file)
    mark, multiply = _LAYOUTS[stated.layout]
    layers: dict[str, dict[str, str]] = {}
    plain: list[str] = []
    quantized = {name.rpartition(".")[0] for name in where if name.rpartition(".")[2] == mark}
    if not quantized:
        raise UnsupportedModelError(
            f"its config says {stated}, and none of its {len(where)} tensors is a {mark}: the "
            "config is another model's, or the layout is not read."
        )
    for name in sorted(where):
        module, _, end = name.rpartition(".")
        if end in _RUNNING:
            continue
        if module in quantized and end in _PARTS:
            layers.setdefault(module, {})[end] = name
        else:
            plain.append(name)
    strange = [n for n in plain if n.rpartition(".")[2] in _PARTS - {"weight"}]
    if strange:
        raise UnsupportedModelError(
            f"it holds {listed(strange)}, which {stated} has no place for: it is not read."
        )

    def tensors() -> Iterator[tuple[str, Any]]:
        opened: dict[Path, Any] = {file: safe_open(str(file), "pt") for file in weights.files}
        for name in plain:
            yield name, opened[where[name]].get_tensor(name)
        for module, parts in layers.items():
            given = {end: opened[where[n]].get_tensor(n) for end, n in parts.items()}
            try:
                matrix = multiply(given, stated)
            except (KeyError, IndexError, RuntimeError, ValueError) as error:
                raise UnsupportedModelError(
                    f"{module} is not as {stated} stores it ({type(error).__name__}: {error}); it "
                    f"has {', '.join(f'{k} {list(v.shape)}' for k, v in given.items())}."
                ) from error
            yield f"{module}.weight", matrix.float().contiguous()

    names = [*plain, *(f"{module}.weight" for module in layers)]
    write_safetensors(target / "model.safetensors", names, tensors())
    plain_config = {
        k: v for k, v in read_object(folder / CONFIG).items() if not _QUANTIZATION.fullmatch(k)
    }
    copy_companions(folder, target, leave=(CONFIG, *_SIDES))
    text = json.dumps(plain_config, indent=2, ensure_ascii=False) + "\n"
    (target / CONFIG).write_text(text, encoding="utf-8")


_QUANTIZATION = re.compile(r"quantization_config|compression_config|quantization")

_TYPES = {
    "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.int64": "I64",
    "torch.int32": "I32", "torch.bool": "BOOL",
}  # fmt: skip


def write_safetensors(path: Path, names: Iterable[str], tensors: Iterable[tuple[str, Any]]) -> None:
    """Write a file of tensors, of which one is held at a time."""
    import torch

    # The header comes first and is known last: room for it is left, which spaces fill.
    room = 8 * sum(32 + len(json.dumps(name)) // 8 for name in ("__metadata__", *names))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    with path.open("wb") as stream:
        stream.seek(8 + room)
        for name, tensor in tensors:
            kind = _TYPES.get(str(tensor.dtype))
            if kind is None:
                raise UnsupportedModelError(
                    f"it holds {name} in {tensor.dtype}, which is not read."
                )
            flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            entry = {"dtype": kind, "shape": list(tensor.shape)}
            header[name] = {**entry, "data_offsets": [end, end + flat.size]}
            stream.write(flat.tobytes())
            end += flat.size
        text = json.dumps(header).encode()
        stream.seek(0)
        stream.write(struct.pack("<Q", room) + text + b" " * (room - len(text)))
