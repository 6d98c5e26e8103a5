"""Weights that other libraries have quantized: their layouts, written here number by number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_llama

from mlflow_degrade.core.errors import UnsupportedModelError
from mlflow_degrade.optimize.source.resolve import resolve_model

LAYER = "model.layers.0.mlp.down_proj"
Tensors = dict[str, torch.Tensor]
Floats = NDArray[np.float64]


def _ints(low: int, high: int, *shape: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(low, high, shape)


def _scales(*shape: int) -> NDArray[np.float16]:
    return (np.random.default_rng(1).random(shape) / 64 + 0.01).astype(np.float16)


def _words(rows: NDArray[np.int64], bits: int) -> torch.Tensor:
    """Numbers of each row, one after the other from the lowest bit of 32-bit words on."""
    packed = []
    for row in rows.tolist():
        whole = sum((int(value) % 2**bits) << (bits * i) for i, value in enumerate(row))
        count = -(-bits * len(row) // 32)
        packed.append([(whole >> (32 * i)) & 0xFFFFFFFF for i in range(count)])
    return torch.from_numpy(np.array(packed, np.uint32).view(np.int32))


def _gptq(bits: int, group: int, less: int, order: NDArray[np.int64] | None) -> Any:
    outputs, inputs = 64, 128
    codes, groups = _ints(0, 2**bits, outputs, inputs), inputs // group
    zeros, scales = _ints(1, 2**bits, groups, outputs, seed=2), _scales(groups, outputs)
    place = np.arange(inputs) // group if order is None else order
    tensors = {
        # A word holds inputs; its row is stored as a column.
        "qweight": _words(codes, bits).T.contiguous(),
        "qzeros": _words(zeros - less, bits),
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(place.astype(np.int32)),
    }
    floats = np.array(
        [
            [(codes[o, i] - zeros[place[i], o]) * float(scales[place[i], o]) for i in range(inputs)]
            for o in range(outputs)
        ]
    )
    return tensors, floats


def _awq() -> Any:
    outputs, inputs, group = 64, 128, 32
    codes, zeros = _ints(0, 16, inputs, outputs), _ints(0, 16, inputs // group, outputs, seed=2)
    scales = _scales(inputs // group, outputs)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # of eight outputs, those in the nibbles from the lowest on

    def packed(rows: NDArray[np.int64]) -> torch.Tensor:
        mixed = rows.reshape(len(rows), -1, 8)[..., order].reshape(len(rows), -1)
        return _words(mixed, 4)

    floats = np.array(
        [
            [(codes[i, o] - zeros[i // 32, o]) * float(scales[i // 32, o]) for i in range(inputs)]
            for o in range(outputs)
        ]
    )
    return {
        "qweight": packed(codes),
        "qzeros": packed(zeros),
        "scales": torch.from_numpy(scales),
    }, floats


def _packed(bits: int, group: int, zero_points: bool) -> Any:
    outputs, inputs = 64, 128
    half = 2 ** (bits - 1)
    codes, scales = _ints(-half, half, outputs, inputs), _scales(outputs, inputs // group)
    zeros = _ints(-half, half, outputs, inputs // group, seed=2) * zero_points
    tensors = {
        "weight_packed": _words(codes + half, bits),
        "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if zero_points:
        tensors["weight_zero_point"] = _words((zeros + half).T, bits).T.contiguous()
    place = np.arange(inputs) // group
    return tensors, (codes - zeros[:, place]) * scales.astype(np.float64)[:, place]


def _int8() -> Any:
    codes, scales = _ints(-128, 128, 64, 128), _scales(64, 1)
    tensors = {
        "weight": torch.from_numpy(codes.astype(np.int8)),
        "weight_scale": torch.from_numpy(scales),
    }
    return tensors, codes * scales.astype(np.float64)


def _eights() -> tuple[torch.Tensor, Floats]:
    """All finite E4M3 numbers by their definition: 4 bits of exponent, 3 of mantissa, bias 7."""
    codes = _ints(0, 127, 64, 128) + 128 * _ints(0, 2, 64, 128, seed=3)
    sign, exponent, mantissa = 1 - 2 * (codes >> 7), (codes >> 3) & 15, codes & 7
    value = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    )
    bytes_ = torch.from_numpy(codes.astype(np.uint8))
    return bytes_.view(torch.float8_e4m3fn), sign * value


def _fp8_tensor() -> Any:
    stored, values = _eights()
    scale = torch.tensor(0.0078125 * 3)
    return {"weight": stored, "weight_scale": scale, "input_scale": scale.clone()}, values * float(
        scale
    )


def _fp8_blocks() -> Any:
    stored, values = _eights()
    scales = np.random.default_rng(5).random((2, 3)).astype(np.float32)  # of blocks of 48 by 48
    floats = np.array(
        [[values[o, i] * float(scales[o // 48, i // 48]) for i in range(128)] for o in range(64)]
    )
    return {"weight": stored, "weight_scale_inv": torch.from_numpy(scales)}, floats


def _fours(divided: bool) -> Any:
    """NVFP4: E2M1 codes (1 bit of mantissa, 2 of exponent), E4M3 scales of 16, one for all."""
    codes = _ints(0, 16, 64, 128)
    exponent, mantissa = (codes >> 1) & 3, codes & 1
    value = np.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2.0 ** (exponent - 1))
    value = value * (1 - 2 * (codes >> 3))
    scales = torch.from_numpy(_scales(64, 8).astype(np.float32) * 900).to(torch.float8_e4m3fn)
    packed = torch.from_numpy((codes[:, ::2] + 16 * codes[:, 1::2]).astype(np.uint8))
    whole = 512.0 if divided else 1 / 512
    factor = 1 / whole if divided else whole
    floats = value * scales.float().numpy().repeat(16, axis=1) * factor
    if divided:
        return {
            "weight_packed": packed, "weight_scale": scales,
            "weight_global_scale": torch.tensor([whole]),
        }, floats  # fmt: skip
    return {"weight": packed, "weight_scale": scales, "weight_scale_2": torch.tensor(whole)}, floats


def _compressed(format_: str, **weights: object) -> dict[str, Any]:
    group = {"weights": weights, "input_activations": None, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "config_groups": {"group_0": group},
    }


_ACT_ORDER = np.random.default_rng(9).permutation(128) // 32
_GPTQ = {"quant_method": "gptq", "group_size": 64}
_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32}
_EIGHT = {"num_bits": 8, "strategy": "channel"}
CASES: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, lambda: _gptq(4, 32, 1, None)),
    "gptq, one group": (
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True},
        lambda: _gptq(4, 128, 1, None),
    ),
    "gptq, 8 bits": ({**_GPTQ, "bits": 8}, lambda: _gptq(8, 64, 1, None)),
    "gptq, 2 bits": ({**_GPTQ, "bits": 2}, lambda: _gptq(2, 64, 1, None)),
    "gptq, order of activations": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
        lambda: _gptq(4, 32, 1, _ACT_ORDER),
    ),
    "gptq_v2": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
        lambda: _gptq(4, 32, 0, None),
    ),
    "auto-round": (
        {**_ROUND, "packing_format": "auto_round:auto_gptq"},
        lambda: _gptq(4, 32, 1, None),
    ),
    "auto-round, zero points as they are": (
        {**_ROUND, "packing_format": "auto_round"},
        lambda: _gptq(4, 32, 0, None),
    ),
    "auto-round as awq": (
        {**_ROUND, "packing_format": "auto_round:auto_awq"},
        _awq,
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, _awq),
    "pack-quantized": (
        _compressed("pack-quantized", num_bits=4, group_size=32, strategy="group"),
        lambda: _packed(4, 32, False),
    ),
    "pack-quantized with zero points": (
        _compressed("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=False),
        lambda: _packed(4, 32, True),
    ),
    "pack-quantized, 3 bits": (
        _compressed("pack-quantized", num_bits=3, strategy="channel"),
        lambda: _packed(3, 128, False),
    ),
    "int-quantized": (_compressed("int-quantized", **_EIGHT), _int8),
    "float-quantized": (
        _compressed("float-quantized", num_bits=8, type="float", strategy="tensor"), _fp8_tensor,
    ),
    "nvfp4-pack-quantized": (
        _compressed("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16),
        lambda: _fours(True),
    ),
    "modelopt fp8": ({"quant_method": "modelopt", "quant_algo": "FP8"}, _fp8_tensor),
    "modelopt nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, lambda: _fours(False)),
    "fp8 blocks": ({"quant_method": "fp8", "weight_block_size": [48, 48]}, _fp8_blocks),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with one layer of 128 inputs and 64 outputs among its own."""
    return make_tiny_llama(tmp_path_factory.mktemp("quantized") / "tiny")


def _checkpoint(plain: Path, target: Path, stated: dict[str, Any], tensors: Tensors) -> Path:
    shutil.copytree(plain, target)
    weights = load_file(target / "model.safetensors")
    assert weights.pop(f"{LAYER}.weight").shape == (64, 128)
    weights |= {f"{LAYER}.{name}": tensor for name, tensor in tensors.items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text()) | {"quantization_config": stated}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_the_library_means(name: str, plain: Path, tmp_path: Path) -> None:
    stated, make = CASES[name]
    tensors, expected = make()
    folder = _checkpoint(plain, tmp_path / "model", stated, tensors)
    found = resolve_model(str(folder), progress=False)
    assert found.layout == "transformers"
    assert "quantized by another library" in found.notes[-1]
    assert "quantization_config" not in json.loads((found.path / "config.json").read_text())
    weights, before = (
        load_file(found.path / "model.safetensors"),
        load_file(plain / "model.safetensors"),
    )
    assert weights.keys() == before.keys()
    np.testing.assert_allclose(weights[f"{LAYER}.weight"].numpy(), expected, rtol=2e-6, atol=1e-9)
    for other in weights.keys() - {f"{LAYER}.weight"}:
        assert torch.equal(weights[other], before[other])


def test_what_is_rounded_while_running_is_said(plain: Path, tmp_path: Path) -> None:
    tensors, _ = _fp8_tensor()
    stated = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8}}
    folder = _checkpoint(plain, tmp_path / "model", stated, tensors)
    (note,) = resolve_model(str(folder), progress=False).notes
    assert "activations in 8-bit floats and cache in 8 bits are not rounded here" in note


def test_a_side_file_of_modelopt_is_read(plain: Path, tmp_path: Path) -> None:
    tensors, expected = _fours(False)
    folder = _checkpoint(plain, tmp_path / "model", {}, tensors)
    side = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(side))
    found = resolve_model(str(folder), progress=False)
    weights = load_file(found.path / "model.safetensors")
    np.testing.assert_allclose(weights[f"{LAYER}.weight"].numpy(), expected, rtol=1e-6)
    assert not (found.path / "hf_quant_config.json").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({**_GPTQ, "bits": 3}, "GPTQ in 3 bits is not read. R"),
    "no group size": ({"quant_method": "gptq", "bits": 4}, "not as gptq writes it.*group_size"),
    "marlin": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"},
        "the format 'marlin' is not read",
    ),
    "layers of their own": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"+:.*": {"bits": 8}}},
        "other settings for some layers",
    ),
    "gemv": ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version 'gemv'"),
    "another layout": (
        {"quant_method": "gptq", "bits": 8, "group_size": 32},
        r"down_proj is not as GPTQ, 8 bits, groups of 32 stores it.*qweight \[16, 64\]",
    ),
    "another method": ({"quant_method": "next-year"}, r"already \(next-year.*Read are"),
    "modelopt": (
        {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "ModelOpt's W4A8_AWQ is not read",
    ),
    "another config": (
        {"quant_method": "modelopt", "quant_algo": "FP8"}, "none of its .* tensors is a w",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_layouts_are_refused(name: str, plain: Path, tmp_path: Path) -> None:
    stated, message = REFUSED[name]
    tensors, _ = _gptq(4, 32, 1, None)
    folder = _checkpoint(plain, tmp_path / "model", stated, tensors)
    with pytest.raises(UnsupportedModelError, match=message):
        resolve_model(str(folder), progress=False)
