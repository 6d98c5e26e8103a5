"""Every scheme on a tiny model: what it changes, what it keeps, and where it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tiny_models import SENTENCES

from mlflow_degrade.core.cache import cache_root
from mlflow_degrade.core.errors import (
    InexactKernelError,
    InputError,
    ParityError,
    QuantizationError,
    UnknownNameError,
)
from mlflow_degrade.engine.integer_probe import full_range
from mlflow_degrade.engine.providers import CPU, CUDA, session_options
from mlflow_degrade.optimize.embeddings import head_node
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.onnx_graph.files import (
    WEIGHTS_FILE,
    _structure_digest,
    _weight_digests,
    check_written,
    load_graph,
    save_graph,
)
from mlflow_degrade.optimize.parity.decoder import OnnxForward, parity
from mlflow_degrade.optimize.schemes import SCHEMES, apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

REDUCED = [name for name, scheme in SCHEMES.items() if scheme.rewrite is not None]

# Mean KL in nats on the tiny model, and float bytes over scheme bytes of its weight file. The KLs
# were measured (fp16 1.4e-5, bf16 .0014, int8 .0066, int4 .53, dynamic .012) and have room for
# other CPUs.
KL_BELOW = {
    "fp16": 1e-4,
    "bf16": 1e-2,
    "int8-weight-only": 0.03,
    "int4-weight-only": 1.5,
    "int4-weight-only-hqq": 1.5,
    "int4-weight-only-gptq": 1.5,
    "mixed-weight-only": 0.03,  # .01 where nothing is said
    "int8-dynamic": 0.03,
    "int8-static": 0.1,
    "int8-static-symmetric": 0.1,
    "fp8-static": 0.3,
}
SMALLER_BY = {
    "fp16": 1.95,
    "bf16": 1.95,
    "int8-weight-only": 2.0,
    "int4-weight-only": 2.5,
    "int4-weight-only-hqq": 2.5,
    "int4-weight-only-gptq": 2.5,
    "mixed-weight-only": 2.5,
    "int8-dynamic": 1.3,
    "int8-static": 2.4,
    "int8-static-symmetric": 2.4,
    "fp8-static": 2.4,
}


@pytest.fixture(params=REDUCED)
def made(request: pytest.FixtureRequest, tiny_base: Path) -> ModelDirectory:
    return ModelDirectory.load(apply_scheme(tiny_base, request.param, progress=False))


def test_the_saved_model_is_smaller_close_and_complete(
    made: ModelDirectory, tiny_base: Path
) -> None:
    made.verify()
    base = ModelDirectory.load(tiny_base)
    found = parity(tiny_base, made.path, SENTENCES)
    assert 0 < found.mean_kl < KL_BELOW[made.scheme]
    weights = (made.path / WEIGHTS_FILE).stat().st_size
    assert (tiny_base / WEIGHTS_FILE).stat().st_size / weights > SMALLER_BY[made.scheme]
    smoothing = ["smoothing"] if SCHEMES[made.scheme].smoothing != "never" else []
    passes = [step["pass"] for step in made.recipe]
    assert passes == ["export", "graph", *smoothing, made.scheme]
    assert made.source == base.source
    assert made.manifest["parity"]["mean_kl"] < KL_BELOW[made.scheme]
    assert made.manifest["versions"]["onnxruntime"] != "none"


def test_optimum_loads_it_and_generates_what_our_forward_predicts(made: ModelDirectory) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoTokenizer

    if made.scheme == "bf16":  # as docs/schemes.md says
        with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
            ORTModelForCausalLM.from_pretrained(made.path)
        return
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    batch = tokenizer(SENTENCES[0], return_tensors="pt")
    options = session_options()
    if made.scheme == "fp8-static":  # see `create_session`
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    model = ORTModelForCausalLM.from_pretrained(made.path, session_options=options)
    first = model(**batch).logits[0].float().numpy()
    ours = OnnxForward(made.path).logits(batch["input_ids"][0].numpy())
    np.testing.assert_allclose(first, ours, atol=1e-5)
    generated = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert generated.shape[1] == batch["input_ids"].shape[1] + 4
    assert int(generated[0, batch["input_ids"].shape[1]]) == int(ours[-1].argmax())


def test_no_two_schemes_give_the_same_model(tiny_base: Path) -> None:
    digests = {
        name: ModelDirectory.load(apply_scheme(tiny_base, name, progress=False)).digest
        for name in SCHEMES
    }
    assert len(set(digests.values())) == len(SCHEMES)


def test_fp32_is_the_model_itself(tiny_base: Path) -> None:
    assert apply_scheme(tiny_base, "fp32", progress=False) == tiny_base


def test_a_second_call_does_no_work(tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    first = apply_scheme(copy, "int8-weight-only", progress=False)
    (copy / WEIGHTS_FILE).write_bytes(b"")  # whatever read the weights again would fail
    assert apply_scheme(copy, "int8-weight-only", progress=False) == first


@pytest.mark.parametrize("name", ["int8-weight-only", "int4-weight-only"])
def test_every_product_with_a_constant_matrix_is_quantized(name: str, tiny_base: Path) -> None:
    made = apply_scheme(tiny_base, name, progress=False)
    graph = load_graph(made, weights=False)
    quantized = [n for n in graph.graph.node if n.op_type == "MatMulNBits"]
    assert len(quantized) == 2 * 7 + 1  # seven matrices in each of two layers, and the head
    assert head_node(graph).op_type == "MatMulNBits"
    attributes = {a.name: a.i for a in quantized[0].attribute}
    options = SCHEMES[name].options
    assert attributes["bits"] == options["bits"]
    assert attributes["block_size"] == options["block_size"]
    assert attributes["accuracy_level"] == 4
    stored = {t.name for t in graph.graph.initializer}
    assert not [n for n in graph.graph.node if n.op_type == "MatMul" and n.input[1] in stored]


def test_dynamic_keeps_nothing_in_float_where_nothing_hurts(tiny_base: Path) -> None:
    made = ModelDirectory.load(apply_scheme(tiny_base, "int8-dynamic", progress=False))
    assert made.recipe[-1]["kept_in_float"] == []
    assert made.recipe[-1]["nodes"] == {"MatMulInteger": 15}


@pytest.mark.parametrize("name", ["int8-dynamic", "int8-static"])
def test_full_range_weights_are_no_nearer(name: str, tiny_base: Path) -> None:
    """And where kernels saturate they are refused, or computed by the exact kernel."""
    made = ModelDirectory.load(apply_scheme(tiny_base, name, progress=False))
    codes = integer_weights(made)
    assert len(codes) == 15
    pairs = [np.add(code[0::2], code[1::2], dtype=int) for code in codes]
    assert max(np.abs(pair).max() for pair in pairs) <= 128
    full = f"{name}-vnni"
    if not full_range().exact:
        with pytest.raises(InputError, match="for want of VNNI"):
            apply_scheme(tiny_base, full, progress=False)
        if name == "int8-dynamic":  # its layers are tried inside nodes
            with pytest.raises(InexactKernelError, match="saturates"):
                apply_scheme(tiny_base, full, force=True, progress=False)
            return
    other = ModelDirectory.load(apply_scheme(tiny_base, full, force=True, progress=False))
    for code in integer_weights(other):  # a token that is never predicted may have no weights
        assert np.isin(np.abs(code.astype(int)).max(axis=0), (0, 127)).all()
    assert other.size_bytes == pytest.approx(made.size_bytes, rel=0.01)
    kl, full_kl = (model.manifest["parity"]["mean_kl"] for model in (made, other))
    assert kl < 2 * full_kl  # 7 bits have 4 times the squared error


def integer_weights(made: ModelDirectory) -> list[NDArray[np.int8]]:
    """Matrices of products in 8 bits."""
    stored = load_graph(made.path).graph.initializer
    return [numpy_helper.to_array(t) for t in stored if t.name.endswith("_Q8")]


@pytest.mark.slow
def test_biased_layers_are_quantized_too(tmp_path: Path) -> None:
    import torch
    from tiny_models import make_tiny_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    directory = tmp_path / "gpt2"
    directory.mkdir()
    size = make_tiny_tokenizer(directory)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=4, initializer_range=0.25)
    GPT2LMHeadModel(config).save_pretrained(directory)
    exported = export_onnx(resolve_model(str(directory)), progress=False)
    assert ModelDirectory.load(exported).manifest["parity"]["max_abs_logit_difference"] < 1e-3
    made = ModelDirectory.load(apply_scheme(exported, "int8-weight-only", progress=False))
    assert made.recipe[-1]["nodes"] == {"MatMulNBits": 2 * 4 + 1}


def test_unknown_schemes_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'int8-weight-only'"):
        find_scheme("int8-weight")


def test_dynamic_int8_is_refused_on_cuda_unless_forced() -> None:
    with pytest.raises(InputError, match=r"int8-dynamic.*CUDA.*'int8-weight-only'"):
        find_scheme("int8-dynamic", (CUDA, CPU))
    assert find_scheme("int8-dynamic", (CUDA, CPU), force=True).name == "int8-dynamic"
    assert find_scheme("int8-dynamic", (CPU,)).notes[CPU]


def test_a_quantized_model_is_not_quantized_again(tiny_base: Path) -> None:
    made = apply_scheme(tiny_base, "int8-weight-only", progress=False)
    with pytest.raises(QuantizationError, match="already 'int8-weight-only'"):
        apply_scheme(made, "int4-weight-only", progress=False)


def test_a_pass_that_finds_nothing_to_do_is_an_error_and_leaves_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quantized graph from elsewhere: nothing says so but its operators.
    given = tmp_path / "given"
    shutil.copytree(apply_scheme(tiny_base, "int8-weight-only", progress=False), given)
    manifest = json.loads((given / "degrade.json").read_text())
    (given / "degrade.json").write_text(json.dumps({**manifest, "scheme": "given"}))
    # A cache of its own: other tests may be filling theirs.
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(QuantizationError, match="quantized nothing"):
        apply_scheme(given, "int4-weight-only", progress=False)
    assert list((cache_root() / "scheme").iterdir()) == []


def test_a_file_that_does_not_read_back_is_an_error(tiny_base: Path, tmp_path: Path) -> None:
    graph = load_graph(tiny_base)
    weights, structure = _weight_digests(graph), _structure_digest(graph)
    save_graph(graph, tmp_path)
    check_written(tmp_path, weights, structure)
    data = bytearray((tmp_path / WEIGHTS_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(ParityError, match="does not read back"):
        check_written(tmp_path, weights, structure)
