"""Bits for each layer: the choice against all choices, and what a mixed file computes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError, QuantizationError, UnknownNameError
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.passes.mixed_weights import Form, Unit, cheapest_steps
from mlflow_degrade.optimize.passes.weight_only import quantize_weights
from mlflow_degrade.optimize.recipe import Recipe
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory

forms = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 30)), min_size=1, max_size=4, unique=True
)


@settings(max_examples=100, deadline=None)
@given(st.lists(forms, min_size=1, max_size=4))
def test_no_choice_of_as_few_bytes_loses_less(values: list[list[tuple[int, int]]]) -> None:
    units = [
        Unit(str(i), tuple(Form(f"{n}", size, loss / 8) for n, (size, loss) in enumerate(found)))
        for i, found in enumerate(values)
    ]
    everything = [
        (sum(f.bytes for f in choice), sum(f.loss for f in choice))
        for choice in itertools.product(*(unit.forms for unit in units))
    ]
    now, steps = cheapest_steps(units)
    path = [dict(now)]
    for step in steps:
        now = {**now, step.unit: step.form}
        path.append(now)
    for choice in path:
        size = sum(form.bytes for form in choice.values())
        loss = sum(form.loss for form in choice.values())
        assert loss == min(other for bytes_, other in everything if bytes_ <= size)
    assert size == min(bytes_ for bytes_, _ in everything)
    assert path[0] == {u.name: min(u.forms, key=lambda f: (f.loss, f.bytes)) for u in units}


def _mixed(base: Path, words: str) -> ModelDirectory:
    return ModelDirectory.load(apply_scheme(base, f"mixed-weight-only-{words}", progress=False))


def test_a_byte_target_is_met_and_the_cheapest_layers_pay(tiny_base: Path) -> None:
    made = _mixed(tiny_base, "bits8-nearest")
    step = made.recipe[-1]
    assert step["bits_per_weight"] <= 8
    assert step["layers_by_form"].keys() == {"int8-weight-only", "int4-weight-only-asym"}
    assert step["embedding"] == "8 bits, shared with the projection"
    # What it says of its size is what lies on the disk; norms and positions are the rest.
    numbers = sum(step["stored"]["types"][kind] for kind in ("int8", "int4"))
    assert made.size_bytes * 8 / numbers == pytest.approx(step["bits_per_weight"], rel=0.25)
    table = {
        row["name"]: row
        for row in json.loads((made.path / "sensitivity.json").read_text())["layers"]
    }
    four = [name for name, form in step["forms"].items() if form == "int4-weight-only-asym"]
    kept = [name for name in step["forms"] if name not in four and "lm_head" not in name]
    assert np.mean([table[n]["alone"] / table[n]["weights"] for n in four]) < np.mean(
        [table[n]["alone"] / table[n]["weights"] for n in kept]
    )


def test_a_loss_target_is_met_and_measured(tiny_base: Path) -> None:
    small, near = _mixed(tiny_base, "loss0.1-nearest"), _mixed(tiny_base, "loss0.02-nearest")
    for made, limit in ((small, 0.1), (near, 0.02)):
        step = made.recipe[-1]
        assert step["mixture_distance"] <= limit
        assert made.manifest["parity"]["mean_kl"] == pytest.approx(
            step["mixture_distance"], rel=1e-3
        )
    assert small.size_bytes < near.size_bytes


def test_the_shared_matrix_gives_the_logits_of_two_matrices(tiny_base: Path) -> None:
    """The embedding's rows are those that the projection multiplies by, dequantized here."""
    made = _mixed(tiny_base, "bits9-nearest").path
    model = load_graph(made)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    lookup = next(n for n in model.graph.node if n.op_type == "GatherBlockQuantized")
    head = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and "logits" in n.output)
    assert lookup.input[0] == head.input[1]  # stored once
    codes, scales = tensors[head.input[1]], tensors[head.input[2]]
    rows = (codes.astype(np.float32) - 128) * scales.reshape(*codes.shape[:2], 1)
    rows = rows.reshape(len(rows), -1)
    float_rows = next(
        numpy_helper.to_array(t)
        for t in load_graph(tiny_base).graph.initializer
        if t.name == "model.embed_tokens.weight"
    )
    assert np.abs(rows - float_rows).max() < np.abs(float_rows).max() / 100
    # The lookup itself, made an output.
    looked_up = next(n for n in model.graph.node if n.input[0] == lookup.output[0]).output[0]
    model.graph.output.extend([type(model.graph.output[0])(name=looked_up)])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    ids = np.array([[0, 5, 511 % len(rows), 5]])
    feeds = {"input_ids": ids}
    for value in session.get_inputs():
        if value.name == "attention_mask":
            feeds[value.name] = np.ones_like(ids)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(ids.shape[1])[None]
        elif value.name.startswith("past"):
            shape = [
                1 if d == "batch_size" else d if isinstance(d, int) else 0 for d in value.shape
            ]
            feeds[value.name] = np.zeros(shape, np.float32)
    got = session.run([looked_up], feeds)[0]
    np.testing.assert_allclose(got[0], rows[ids[0]], rtol=1e-6)


def _scores(folder: Path) -> list[float]:
    """Choices that share their beginnings, in one batch of distinct positions."""
    decoder = OnnxDecoder(folder, device="cpu")
    assert decoder.inputs.distinct
    words = [sentence.split(" ") for sentence in SENTENCES]
    texts = [(" ".join(w[:n]), f" {w[n]} {w[n + 1]}") for w in words for n in (1, 2, 3)]
    return [score.logprob for score in decoder.score(decoder.encoder.encode_pairs(texts))]


def test_the_engine_scores_it_like_the_plain_form(tiny_base: Path) -> None:
    """Merged products and a shared matrix change nothing but the embedding's 8 bits."""
    mixed = _scores(_mixed(tiny_base, "bits9-nearest").path)
    plain = _scores(apply_scheme(tiny_base, "int8-weight-only", progress=False))
    np.testing.assert_allclose(mixed, plain, atol=0.5)
    assert mixed != plain


@pytest.mark.parametrize("scheme", ["int4-weight-only", "int8-weight-only", "int4-weight-only-hqq"])
def test_merged_products_compute_the_same_bits(tiny_base: Path, scheme: str) -> None:
    plain, merged = (
        apply_scheme(tiny_base, name, progress=False) for name in (scheme, f"{scheme}-merged")
    )
    found = ModelDirectory.load(merged).recipe[-1]
    assert found["merged_products"] == 6  # q, k, v and gate, up, in two blocks
    counts = [
        sum(n.op_type == "MatMulNBits" for n in load_graph(d, weights=False).graph.node)
        for d in (plain, merged)
    ]
    assert counts[0] - counts[1] == 6
    assert _scores(plain) == _scores(merged)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bits5-nearest", r"5 bits .* cannot be had .* the least is 6\.\d+"),
        ("bits7-loss0.005-nearest", r"moves by .*the limit is 0\.005.*Set more bits"),
    ],
)
def test_what_cannot_be_had_is_refused(tiny_base: Path, words: str, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        _mixed(tiny_base, words)


def test_a_recipe_reaches_it_by_keys() -> None:
    named = Recipe.from_mapping(
        {
            "passes": [
                {"pass": "export"},
                {"pass": "graph"},
                {
                    "pass": "quantize",
                    "scheme": "mixed-weight-only",
                    "bits": 6.5,
                    "loss": 0.02,
                    "method": "best",
                    "block_size": 64,
                },
            ]
        }
    )
    assert named.passes[-1].name == "mixed-weight-only-bits6.5-loss0.02-best-block64"
    assert find_scheme("mixed-weight-only-gptq").name == "mixed-weight-only"
    with pytest.raises(UnknownNameError, match="bits"):
        find_scheme("mixed-weight-only", options={"bits": 3})
    with pytest.raises(InputError, match="twice"):
        find_scheme("mixed-weight-only-bits6-bits7")


def _bits(model: ModelProto) -> dict[bool, set[int]]:
    """Bits of the products, by whether they are the projection to the vocabulary."""
    found: dict[bool, set[int]] = {True: set(), False: set()}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            bits = next(a.i for a in node.attribute if a.name == "bits")
            found["logits" in node.output].add(bits)
    return found


@pytest.mark.parametrize("algorithm", ["", "-gptq"])
def test_both_ends_may_have_more_bits_than_the_rest(tiny_base: Path, algorithm: str) -> None:
    plain, ends = (
        ModelDirectory.load(apply_scheme(tiny_base, f"int4-weight-only{words}", progress=False))
        for words in (algorithm, f"{algorithm}-embedding8-head8")
    )
    assert _bits(load_graph(plain.path)) == {True: {4}, False: {4}}
    model = load_graph(ends.path)
    assert _bits(model) == {True: {8}, False: {4}}
    lookup = next(n for n in model.graph.node if n.op_type == "GatherBlockQuantized")
    head = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and "logits" in n.output)
    assert lookup.input[0] == head.input[1]  # one matrix for both
    assert ends.size_bytes < plain.size_bytes
    assert ends.manifest["parity"]["mean_kl"] < plain.manifest["parity"]["mean_kl"]


def test_an_embedding_in_8_bits_beside_a_head_in_4(tiny_base: Path) -> None:
    made = ModelDirectory.load(
        apply_scheme(tiny_base, "int4-weight-only-embedding8", progress=False)
    )
    assert made.recipe[-1]["embedding"] == "8 bits"
    assert _bits(load_graph(made.path)) == {True: {4}, False: {4}}
    whole = ModelDirectory.load(
        apply_scheme(tiny_base, "int8-weight-only-embedding8", progress=False)
    )
    assert whole.recipe[-1]["embedding"] == "8 bits, shared with the projection"
    assert whole.manifest["parity"]["mean_kl"] < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_bits": 4}, "embedding of 4 bits cannot be looked up: use 8 or 16"),
        ({"head_bits": 6}, "weights of 6 bits have no kernel"),
    ],
)
def test_ends_without_a_kernel_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize_weights(
            ModelProto(), bits=4, block_size=32, symmetric=True, accuracy_level=4, **options
        )
