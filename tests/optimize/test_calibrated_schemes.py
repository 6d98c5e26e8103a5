"""Schemes that look at activations, and the words that vary a scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_models import TinyModel, tiny_encoder
from tiny_models import SENTENCES

from mlflow_degrade.core.cache import cache_root
from mlflow_degrade.core.errors import InputError, QuantizationError, UnknownNameError
from mlflow_degrade.engine.providers import CPU, CUDA, TENSORRT
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.parity.prompts import PARITY_PROMPTS
from mlflow_degrade.optimize.passes.calibration import CALIBRATION_PROMPTS, Calibration
from mlflow_degrade.optimize.passes.static import CALIBRATIONS
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory

__all__ = ["tiny_encoder"]

TEXTS = CALIBRATION_PROMPTS[:12]


def made(base: Path, scheme: str) -> ModelDirectory:
    return ModelDirectory.load(apply_scheme(base, scheme, calibration=TEXTS, progress=False))


def test_what_a_model_is_tuned_on_does_not_judge_it() -> None:
    assert not set(CALIBRATION_PROMPTS) & set(PARITY_PROMPTS)
    assert len(set(CALIBRATION_PROMPTS)) == len(CALIBRATION_PROMPTS)


def test_moments_are_those_of_the_activations(tiny_base: Path) -> None:
    calibration = Calibration(tiny_base, TEXTS)
    graph = load_graph(tiny_base, weights=False)
    widths = {t.name: t.dims[0] for t in graph.graph.initializer if len(t.dims) == 2}
    names = {
        n.input[0]: int(widths[n.input[1]])
        for n in graph.graph.node
        if n.op_type == "MatMul" and n.input[1] in widths
    }
    assert sorted(set(names.values())) == [64, 128]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for values in calibration.observe(list(names)):
        for name, value in values.items():
            rows[name].append(value.astype(np.float64))
    for name, moment in calibration.second_moments(names):
        everything = np.concatenate(rows[name])
        assert everything.shape == (calibration.n_tokens, names[name])
        expected = everything.T @ everything / calibration.n_tokens
        np.testing.assert_allclose(moment, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_long_texts_are_cut_to_what_the_model_reads(tiny_encoder: TinyModel) -> None:
    calibration = Calibration(tiny_encoder.made("fp32"), ["word " * 500] * 8)
    assert calibration.n_tokens == 8 * 64


@pytest.mark.parametrize("scheme", ["int4-weight-only-gptq", "int8-static"])
def test_too_little_text_is_refused_and_leaves_nothing(
    scheme: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="calibration set is empty"):
        apply_scheme(tiny_base, scheme, calibration=[], progress=False)
    with pytest.raises(InputError, match=r"1 calibration texts have \d+ tokens, the least is 256"):
        apply_scheme(tiny_base, scheme, calibration=SENTENCES[:1], progress=False)
    assert list((cache_root() / "scheme").glob("*")) == []


@pytest.mark.slow
def test_other_texts_give_another_model(tiny_base: Path) -> None:
    first = made(tiny_base, "int4-weight-only-gptq")
    again = apply_scheme(
        tiny_base, "int4-weight-only-gptq", calibration=CALIBRATION_PROMPTS[12:24], progress=False
    )
    assert ModelDirectory.load(again).digest != first.digest
    assert first.recipe[-1]["calibration_tokens"] == Calibration(tiny_base, TEXTS).n_tokens


@pytest.mark.slow
def test_every_way_to_choose_ranges_gives_its_own_model(tiny_base: Path) -> None:
    names = [f"int8-static-{method}" for method in CALIBRATIONS]
    models = [made(tiny_base, name) for name in (*names, "int8-static-symmetric-minmax")]
    assert len({model.digest for model in models}) == len(models)
    for model in models:
        assert model.manifest["parity"]["mean_kl"] < 0.2
        assert model.recipe[-1]["nodes"]["QuantizeLinear"] > 0
    signed = load_graph(models[-1].path)
    zeros = [t for t in signed.graph.initializer if t.name.endswith("_zero_point")]
    assert zeros
    assert all(t.raw_data == b"\0" for t in zeros)


def test_static_scores_do_not_depend_on_the_batch(tiny_encoder: TinyModel) -> None:
    from mlflow_degrade.engine.encoder import OnnxEncoder

    base = tiny_encoder.made("fp32")
    encoder = OnnxEncoder(made(base, "int8-static-minmax").path, device="cpu")
    together = encoder.vectors(SENTENCES)
    encoder.unpadded = True
    np.testing.assert_allclose(together, encoder.vectors(SENTENCES), atol=1e-5)


def test_words_after_a_name_change_options() -> None:
    scheme = find_scheme("int4-weight-only-gptq-block64")
    assert scheme.options["block_size"] == 64
    assert scheme.options["algorithm"] == "gptq"
    assert scheme.calibrated
    both = find_scheme("int8-weight-only-asym-block16").options
    assert (both["symmetric"], both["block_size"]) == (False, 16)
    assert find_scheme("int8-static-minmax").options["calibration_method"] == "minmax"
    with pytest.raises(UnknownNameError, match=r"'block33'.*did you mean 'block32'"):
        find_scheme("int4-weight-only-block33")
    with pytest.raises(InputError, match="block_size twice"):
        find_scheme("int4-weight-only-block64-block16")


def test_a_block_size_that_does_not_divide_is_refused(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path))
    for name in ("int8-weight-only-block128", "int4-weight-only-hqq-block128"):
        with pytest.raises(
            QuantizationError, match=r"128 do not divide the 64 inputs.*16, 32 or 64"
        ):
            apply_scheme(tiny_base, name, progress=False)
    assert list((cache_root() / "scheme").glob("*")) == []
    graph = load_graph(apply_scheme(tiny_base, "int4-weight-only-block64", progress=False))
    sizes = {a.i for n in graph.graph.node for a in n.attribute if a.name == "block_size"}
    assert sizes == {64}


def test_refusals_say_what_to_use_instead() -> None:
    with pytest.raises(InputError, match=r"TensorRT takes no zero points.*'int8-static-symmetric'"):
        find_scheme("int8-static", (TENSORRT, CUDA, CPU))
    assert find_scheme("int8-static-symmetric-entropy", (TENSORRT, CUDA, CPU))
    with pytest.raises(InputError, match="'int8-static-symmetric'"):
        find_scheme("int8-dynamic", (TENSORRT, CUDA, CPU))
    for name in ("simulated-mxfp4+act-int8", "simulated-fp32+kv-int8"):
        with pytest.raises(InputError, match=r"depends on the bits.*'cuda' or 'cpu'"):
            find_scheme(name, (TENSORRT, CUDA, CPU))
        assert find_scheme(name, (CUDA, CPU))
    assert find_scheme("simulated-mxfp4", (TENSORRT, CUDA, CPU))
    assert "CUDA's kernel" in find_scheme("int4-weight-only-gptq").notes[TENSORRT]
    for name in ("int8-static-minmax", "int8-static-symmetric"):
        with pytest.raises(InputError, match=r"no CUDA kernels.*'int8-weight-only'"):
            find_scheme(name, (CUDA, CPU))
        assert find_scheme(name, (CUDA, CPU), force=True)
