"""The comparison of two saved models, and the graph pass that relies on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from scipy.special import log_softmax, rel_entr, softmax
from tiny_models import SENTENCES, make_tiny_llama

from mlflow_degrade.core.errors import (
    InputError,
    ModelError,
    NonFiniteLogitsError,
    ParityError,
    UnknownNameError,
)
from mlflow_degrade.optimize.embeddings import head_node
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import WEIGHTS_FILE, load_graph, save_graph
from mlflow_degrade.optimize.parity.decoder import _kl_and_agreement, check_parity, parity
from mlflow_degrade.optimize.parity.prompts import PARITY_PROMPTS
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory


def _changed(base: Path, target: Path, change: float) -> Path:
    """A copy of a model directory with one norm's weights multiplied."""
    shutil.copytree(base, target)
    model = load_graph(target)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("norm.weight"):
            values = numpy_helper.to_array(tensor) * np.float32(change)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            break
    (target / WEIGHTS_FILE).unlink()
    save_graph(model, target)
    return target


def test_kl_and_agreement_against_scipy() -> None:
    rng = np.random.default_rng(1)
    want = rng.normal(0, 4, (150, 33)).astype(np.float32)  # more rows than one chunk
    got = (want + rng.normal(0, 1, want.shape)).astype(np.float32)
    kl, same = _kl_and_agreement(want, got)
    p, q = softmax(want.astype(float), axis=1), softmax(got.astype(float), axis=1)
    assert kl == pytest.approx(rel_entr(p, q).sum(), rel=1e-9)
    assert same == (p.argmax(1) == q.argmax(1)).sum()
    # Far out in the tail p underflows and the logarithms must not.
    wide = np.array([[0.0, -1e4]], np.float32)
    assert _kl_and_agreement(wide, -wide)[0] == pytest.approx(
        (np.exp(log_softmax(wide)) * (log_softmax(wide) - log_softmax(-wide))).sum()
    )


def test_a_model_equals_itself(tiny_base: Path) -> None:
    found = parity(tiny_base, tiny_base)
    assert found.max_abs_logit_difference == 0
    assert found.mean_kl == 0
    assert found.top1_agreement == 1
    assert found.n_positions > 16 * 20
    assert "positions" in str(found)


def test_a_small_damage_is_measured_and_refused(tiny_export: Path, tmp_path: Path) -> None:
    damaged = _changed(tiny_export, tmp_path / "damaged", 1.01)
    found = parity(tiny_export, damaged, SENTENCES)
    assert found.max_abs_logit_difference > 1e-3
    assert 0 < found.mean_kl < 0.1
    with pytest.raises(ParityError, match=r"does not reproduce.*0\.001"):
        check_parity(tiny_export, damaged, SENTENCES)
    loose = check_parity(tiny_export, damaged, SENTENCES, tolerance=10)
    assert loose.max_abs_logit_difference >= found.max_abs_logit_difference


def test_an_error_in_the_cache_alone_is_found(tiny_export: Path, tmp_path: Path) -> None:
    # Without a past nothing is read from the cache; swapping the two layers' keys only shows then.
    swapped = tmp_path / "swapped"
    shutil.copytree(tiny_export, swapped)
    model = load_graph(swapped)
    names = {"past_key_values.0.key": "past_key_values.1.key"}
    names |= {there: here for here, there in names.items()}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    (swapped / WEIGHTS_FILE).unlink()
    save_graph(model, swapped)
    assert parity(tiny_export, swapped, SENTENCES).max_abs_logit_difference == 0
    with pytest.raises(ParityError, match="with a key-value cache"):
        check_parity(tiny_export, swapped, SENTENCES)


def test_not_a_number_is_an_error(tiny_export: Path, tmp_path: Path) -> None:
    broken = _changed(tiny_export, tmp_path / "broken", np.nan)
    with pytest.raises(NonFiniteLogitsError, match="NaN or infinite"):
        parity(tiny_export, broken, SENTENCES)


def test_another_vocabulary_is_another_model(tiny_llama_dir: Path, tmp_path: Path) -> None:
    other = make_tiny_llama(tmp_path / "other", vocab=300)
    with pytest.raises(ModelError, match="not the same model"):
        parity(tiny_llama_dir, other, SENTENCES)


def test_texts_must_have_tokens(tiny_export: Path) -> None:
    with pytest.raises(InputError, match="two tokens"):
        parity(tiny_export, tiny_export, ["", "."])


def test_the_prompts_are_many_kinds_of_text() -> None:
    assert len(PARITY_PROMPTS) == len(set(PARITY_PROMPTS)) == 16
    assert all(len(text) > 60 for text in PARITY_PROMPTS)


def test_the_optimized_graph_is_smaller_and_computes_the_same(
    tiny_export: Path, tiny_base: Path
) -> None:
    done = ModelDirectory.load(tiny_base)
    step = done.recipe[-1]
    assert step["pass"] == "graph"
    assert "skipped" not in step
    assert step["nodes_after"] == len(load_graph(tiny_base, weights=False).graph.node)
    assert step["nodes_after"] < 0.6 * step["nodes"]
    found = parity(tiny_export, tiny_base)
    assert found.max_abs_logit_difference < 1e-4
    assert (tiny_base / WEIGHTS_FILE).read_bytes() == (tiny_export / WEIGHTS_FILE).read_bytes()
    stored = {t.name for t in load_graph(tiny_base, weights=False).graph.initializer}
    assert head_node(load_graph(tiny_base, weights=False)).input[1] not in stored  # still tied


def test_what_was_optimized_or_quantized_is_left_alone(tiny_base: Path) -> None:
    assert optimize_graph(tiny_base, progress=False) == tiny_base
    assert optimize_graph(tiny_base, "none", progress=False) == tiny_base
    quantized = apply_scheme(tiny_base, "int8-weight-only", progress=False)
    assert optimize_graph(quantized, progress=False) == quantized


def test_unknown_levels_are_named(tiny_base: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'basic'"):
        optimize_graph(tiny_base, "basics")
