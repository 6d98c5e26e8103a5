"""What a model's weights are stored in: counted in the written graph, refused where too little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mlflow_degrade.core.errors import InputError, QuantizationError, UnknownNameError
from mlflow_degrade.optimize.onnx_graph.files import load_graph, save_graph
from mlflow_degrade.optimize.onnx_graph.float_share import (
    float_share,
    require_quantized,
    weights_sentence,
)
from mlflow_degrade.optimize.recipe import Recipe
from mlflow_degrade.optimize.schemes import SCHEMES, apply_scheme
from mlflow_degrade.optimize.source.model_directory import (
    MANIFEST_FILE,
    ModelDirectory,
    write_manifest,
)


def _graph(nodes: list[Any], weights: dict[str, Any]) -> ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [value("x", TensorProto.FLOAT, ["rows", 8]), value("ids", TensorProto.INT64, ["rows"])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph)


_NODE = helper.make_node
_MATRIX = np.ones((8, 4), np.float32)

_CASES = {
    "a product": ([_NODE("MatMul", ["x", "w"], ["y"])], {"w": _MATRIX}, {"float32": 32}, (32, 32)),
    "a transposed matrix, as of a tied projection": (
        [_NODE("Transpose", ["w"], ["t"]), _NODE("MatMul", ["x", "t"], ["y"])],
        {"w": _MATRIX.T},
        {"float32": 32},
        (32, 32),
    ),
    "an embedding": (
        [_NODE("Gather", ["w", "ids"], ["y"])],
        {"w": _MATRIX},
        {"float32": 32},
        (0, 0),
    ),
    "rows that were looked up, multiplied": (
        [_NODE("Gather", ["e", "ids"], ["r"]), _NODE("MatMul", ["r", "w"], ["y"])],
        {"e": np.ones((100, 8), np.float32), "w": _MATRIX},
        {"float32": 832},
        (32, 32),
    ),
    "an expert that was looked up": (
        [_NODE("Gather", ["w", "ids"], ["e"]), _NODE("MatMul", ["x", "e"], ["y"])],
        {"w": np.ones((3, 8, 4), np.float32)},
        {"float32": 96},
        (96, 96),
    ),
    "a bias and a norm": (
        [_NODE("Gemm", ["x", "w", "b"], ["g"]), _NODE("Mul", ["g", "n"], ["y"])],
        {"w": _MATRIX, "b": np.ones(4, np.float32), "n": np.ones(4, np.float32)},
        {"float32": 40},
        (32, 32),
    ),
    "half precision": (
        [_NODE("MatMul", ["x", "w"], ["y"])],
        {"w": _MATRIX.astype(np.float16)},
        {"float16": 32},
        (32, 32),
    ),
    "codes with a scale": (
        [_NODE("DequantizeLinear", ["w", "s", "z"], ["d"]), _NODE("MatMul", ["x", "d"], ["y"])],
        {"w": np.ones((8, 4), np.int8), "s": np.ones(4, np.float32), "z": np.zeros(4, np.int8)},
        {"int8": 32},
        (32, 0),
    ),
    "integers multiplied": (
        [
            _NODE("DynamicQuantizeLinear", ["x"], ["q", "a", "p"]),
            _NODE("MatMulInteger", ["q", "w", "p", "z"], ["i"]),
            _NODE("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            _NODE("Mul", ["a", "s"], ["b"]),
            _NODE("Mul", ["f", "b"], ["y"]),
        ],
        {"w": np.ones((8, 4), np.int8), "s": np.ones(4, np.float32), "z": np.zeros(4, np.int8)},
        {"int8": 32},
        (32, 0),
    ),
    "two codes a byte": (
        [
            _NODE(
                "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=4, bits=4,
                block_size=32,
            )
        ],
        {"w": np.ones((4, 1, 16), np.uint8), "s": np.ones((4, 1), np.float32)},
        {"int4": 128},
        (128, 0),
    ),
    "the shape of something": (
        [_NODE("Reshape", ["x", "n"], ["r"]), _NODE("MatMul", ["r", "w"], ["y"])],
        {"n": np.array([-1, 8]), "w": _MATRIX},
        {"float32": 32},
        (32, 32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", _CASES)
def test_weights_are_counted_by_what_reads_them(case: str) -> None:
    nodes, weights, types, (multiplied, in_float) = _CASES[case]
    found = float_share(_graph(nodes, weights))
    assert (dict(found.types), found.multiplied, found.multiplied_in_float) == (
        types,
        multiplied,
        in_float,
    )


@pytest.mark.parametrize("scheme", ["int8-weight-only", "int4-weight-only-hqq", "int8-dynamic"])
def test_products_are_the_linear_layers_of_pytorch(
    scheme: str, tiny_llama_dir: Path, tiny_base: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    linear = [m.weight.numel() for m in source.modules() if isinstance(m, torch.nn.Linear)]
    found = ModelDirectory.load(apply_scheme(tiny_base, scheme, progress=False)).weights
    assert found is not None
    assert found["multiplied"] == sum(linear)
    assert (found["multiplied_in_float"], found["quantized_share"]) == (0, 1)
    integers = sum(n for kind, n in found["types"].items() if kind.startswith("int"))
    assert integers == sum(linear)
    assert found["types"]["float16"] == source.get_input_embeddings().weight.numel()


def test_half_precision_and_rounded_numbers_are_said_to_be_what_they_are(tiny_base: Path) -> None:
    half = ModelDirectory.load(apply_scheme(tiny_base, "fp16", progress=False)).weights
    assert half is not None
    assert half["in_float"] == 1
    assert half["types"]["float16"] > 100 * half["types"].get("float32", 0)
    rounded = ModelDirectory.load(
        apply_scheme(tiny_base, "simulated-mxfp4", progress=False)
    ).weights
    assert rounded is not None
    assert rounded["types"]["mxfp4"] == rounded["multiplied"] - rounded["multiplied_in_float"] > 0
    assert ModelDirectory.load(tiny_base).weights is None


def _hidden(base: Path, folder: Path) -> Path:
    """A model whose MLPs multiply transposes, which no quantizer takes for constant matrices."""
    shutil.copytree(base, folder)
    model = load_graph(folder)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "MatMul" and "mlp" in node.name and node.input[1] in weights:
            tensor = weights[node.input[1]]
            turned = numpy_helper.to_array(tensor).T.copy()
            tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
            name = f"{tensor.name}.turned"
            place = next(i for i, other in enumerate(model.graph.node) if other is node)
            made = _NODE("Transpose", [tensor.name], [name], perm=[1, 0])
            model.graph.node.insert(place, made)
            node.input[1] = name
    (folder / MANIFEST_FILE).unlink()
    (folder / "model.onnx.data").unlink()
    save_graph(model, folder)
    before = ModelDirectory.load(base)
    write_manifest(folder, scheme="fp32", source=before.source, recipe=list(before.recipe))
    return folder


def test_a_scheme_that_leaves_most_products_in_float_is_refused(
    tiny_base: Path, tmp_path: Path
) -> None:
    hidden = _hidden(tiny_base, tmp_path / "hidden")
    with pytest.raises(QuantizationError) as refusal:
        apply_scheme(hidden, "int8-weight-only", min_quantized_share=0.9, progress=False)
    text = str(refusal.value)
    assert "the limit is 90.0%" in text
    assert "[128, 64]" in text
    made = ModelDirectory.load(apply_scheme(hidden, "int8-weight-only", progress=False))
    assert made.weights is not None
    share = made.weights["quantized_share"]
    assert 0.5 <= share < 0.9
    assert f"quantized {100 * share:.1f}% of" in text
    assert f"set min_quantized_share to {int(100 * share) / 100:g}" in text
    assert len(made.weights["largest_in_float"]) == 3


def test_every_scheme_that_quantizes_is_asked() -> None:
    nothing = float_share(_graph([_NODE("MatMul", ["x", "w"], ["y"])], {"w": _MATRIX})).as_dict()
    with pytest.raises(QuantizationError, match=r"quantized 0.0% of the 32 .*w \[8, 4\]"):
        require_quantized("some", nothing)
    require_quantized("some", nothing, 0)
    assert [name for name, scheme in SCHEMES.items() if not scheme.proof] == [
        "fp32",
        "fp16",
        "bf16",
    ]
    assert weights_sentence(json.loads(json.dumps(nothing))).startswith("100.0% of the weights")


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_limit_is_a_share(share: float, tiny_base: Path) -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        apply_scheme(tiny_base, "int8-weight-only", min_quantized_share=share, progress=False)
    with pytest.raises(InputError, match="min_quantized_share"):
        Recipe.from_mapping({"passes": [
            {"pass": "export"},
            {"pass": "quantize", "scheme": "int8-weight-only", "min_quantized_share": share},
        ]})  # fmt: skip


def test_a_recipe_can_set_the_limit_and_misspelled_keys_name_it() -> None:
    passes: list[Any] = [
        {"pass": "export"},
        {"pass": "quantize", "scheme": "int8-weight-only", "min_quantized_share": 0.2},
    ]
    chosen = Recipe.from_mapping({"passes": passes}).quantization
    assert chosen is not None
    assert (chosen.min_quantized_share, chosen.name) == (0.2, "int8-weight-only")
    passes[1] = {"pass": "quantize", "scheme": "int8-weight-only", "min_quantised_share": 0.2}
    with pytest.raises((InputError, UnknownNameError), match="min_quantized_share"):
        Recipe.from_mapping({"passes": passes})
