"""Sensitivity of layers: switches do what the scheme does, and planted damage is found."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_models import SENTENCES, make_tiny_bert, make_tiny_llama

from mlflow_degrade.core.cache import cache_root
from mlflow_degrade.core.errors import InputError, QuantizationError, UnknownNameError
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import WEIGHTS_FILE, load_graph, save_graph
from mlflow_degrade.optimize.parity.decoder import parity
from mlflow_degrade.optimize.passes.calibration import calibration_texts
from mlflow_degrade.optimize.passes.layer_ablation import LayerTrials
from mlflow_degrade.optimize.passes.mixed_precision import ExclusionRule
from mlflow_degrade.optimize.passes.sensitivity import measure_sensitivity
from mlflow_degrade.optimize.passes.sensitivity_report import SensitivityReport
from mlflow_degrade.optimize.passes.static import quantize_dynamically
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory, copy_companions
from mlflow_degrade.optimize.source.resolve import resolve_model
from mlflow_degrade.report.sensitivity import sensitivity_figure, sensitivity_view

OUTLIER = "/model/layers.1/mlp/down_proj/MatMul"
KINDS = {"q", "k", "v", "o", "gate", "up", "down"}


@pytest.fixture(scope="session")
def outlier_base(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    """A tiny Llama that computes what another does, with one huge channel before a down_proj."""
    import torch
    from transformers import LlamaForCausalLM

    folder = make_tiny_llama(tmp_path_factory.mktemp("models") / "outlier")
    model = LlamaForCausalLM.from_pretrained(folder)
    mlp = model.model.layers[1].mlp
    with torch.no_grad():
        mlp.up_proj.weight[7] *= 2000
        mlp.down_proj.weight[:, 7] /= 2000
    model.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
        exported = export_onnx(resolve_model(str(folder)), progress=False)
        return optimize_graph(exported, progress=False)


def trials(folder: Path, scheme: str, prompts: tuple[str, ...] = SENTENCES) -> LayerTrials:
    chosen = find_scheme(scheme)
    assert chosen.rewrite is not None
    base = chosen.start(ModelDirectory.load(folder), calibration_texts(), progress=False)
    seen = calibration_texts() if chosen.calibrated else None
    return LayerTrials(
        base, chosen.rewrite, chosen.options, prompts, calibration=seen, progress=False
    )


@pytest.mark.parametrize(
    "scheme",
    [
        *("int8-weight-only", "int4-weight-only", "int8-dynamic", "fp8-static"),
        "simulated-mxfp4+act-int8",
    ],
)
def test_with_every_switch_on_it_is_the_schemes_own_model(scheme: str, tiny_base: Path) -> None:
    made = apply_scheme(tiny_base, scheme, progress=False)
    assert not ModelDirectory.load(made).recipe[-1].get("kept_in_float")
    with trials(tiny_base, scheme) as found:
        # The scheme itself also halves the embedding, and onnxruntime fuses more outside an If.
        whole = found.distance({layer.name for layer in found.layers})
        assert whole == pytest.approx(parity(tiny_base, made, SENTENCES).mean_kl, rel=0.05)
        assert found.distance(()) < 1e-7


def test_part_of_the_switches_is_the_model_with_the_others_kept(
    tiny_base: Path, tmp_path: Path
) -> None:
    with trials(tiny_base, "int8-dynamic") as found:
        kept = {layer.name for layer in found.layers if layer.kind == "mlp/down_proj"}
        assert len(kept) == 2
        distance = found.distance({layer.name for layer in found.layers} - kept)
    graph = load_graph(tiny_base)
    quantize_dynamically(graph, keep=kept)
    assert {n.name for n in graph.graph.node if n.op_type == "MatMul"} >= kept
    save_graph(graph, tmp_path)
    copy_companions(tiny_base, tmp_path)
    assert distance == pytest.approx(parity(tiny_base, tmp_path, SENTENCES).mean_kl, rel=0.15)


def test_kinds_and_single_layers_are_all_there(tiny_base: Path) -> None:
    report = measure_sensitivity(tiny_base, "int4-weight-only", progress=False)
    assert {row.name.split("/")[-1].removesuffix("_proj") for row in report.kinds} == {
        *KINDS,
        "lm_head",
    }
    assert len(report.layers) == 2 * 7 + 1
    assert sum(row.weights for row in report.kinds) == sum(row.weights for row in report.layers)
    for row in report.kinds:
        assert row.without is not None
        assert 0 < row.alone < report.whole
        assert row.without < report.whole
        assert row.layers == sum(other.kind == row.kind for other in report.layers)
    ranked = report.ranked()
    assert ranked[0].per_weight == max(row.per_weight for row in report.layers)
    assert SensitivityReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_planted_damage_is_found_and_kept_in_float(outlier_base: Path) -> None:
    report = measure_sensitivity(outlier_base, "int8-dynamic-unsmoothed", progress=False)
    worst = max(report.layers, key=lambda row: row.alone)
    assert worst.name == OUTLIER
    made = ModelDirectory.load(
        apply_scheme(outlier_base, "int8-dynamic-unsmoothed", progress=False)
    )
    step = made.recipe[-1]
    assert step["kept_in_float"][0] == OUTLIER
    assert step["target_reached"]
    assert len(step["kept_in_float"]) <= 3
    assert step["nodes"] == {"MatMulInteger": 15 - len(step["kept_in_float"])}
    assert report.whole > 0.06 >= step["kept_distance"]
    assert made.manifest["parity"]["mean_kl"] == pytest.approx(step["kept_distance"], rel=0.1)
    # On texts that nothing was chosen by.
    assert parity(outlier_base, made.path, SENTENCES).mean_kl < 0.1
    assert made.sensitivity == report
    assert step["sensitivity"] == report.digest()


def test_smoothing_repairs_planted_damage(outlier_base: Path) -> None:
    report = measure_sensitivity(outlier_base, "int8-dynamic", progress=False)
    worst = next(row for row in report.layers if row.name == OUTLIER)
    unsmoothed = measure_sensitivity(outlier_base, "int8-dynamic-unsmoothed", progress=False)
    assert worst.alone < 0.05 * max(row.alone for row in unsmoothed.layers)
    made = ModelDirectory.load(apply_scheme(outlier_base, "int8-dynamic", progress=False))
    assert made.recipe[-1]["kept_in_float"] == []
    assert made.manifest["parity"]["mean_kl"] == pytest.approx(report.whole, rel=0.5)
    assert made.sensitivity == report


def test_a_target_out_of_reach_is_said_to_be_missed(outlier_base: Path) -> None:
    chosen = find_scheme("int8-dynamic")
    assert chosen.rewrite is not None
    base = ModelDirectory.load(outlier_base)
    rule = ExclusionRule(target={"mean KL, nats": 1e-9}, most=0.25)
    found = rule(base, "int8-dynamic", chosen.rewrite, {}, progress=False)
    assert not found.reached
    everything = sum(row.weights for row in found.report.layers)
    taken = sum(row.weights for row in found.report.layers if row.name in found.kept)
    assert 0 < taken <= 0.25 * everything


def test_answers_are_kept_and_an_interrupted_measurement_goes_on(
    tiny_base: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    report = measure_sensitivity(copy, "int8-weight-only", progress=False)
    (journal,) = (cache_root() / "sensitivity").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    # As a process leaves it that died while it wrote.
    journal.write_bytes(b"".join(lines[:10]) + lines[10][:20])
    assert measure_sensitivity(copy, "int8-weight-only", progress=False) == report
    (copy / WEIGHTS_FILE).write_bytes(b"")  # whatever read the weights again would fail
    assert measure_sensitivity(copy, "int8-weight-only", progress=False) == report
    assert not list(fresh_cache.glob(".switches-*"))


def test_encoders_are_measured_by_their_embeddings(tmp_path: Path) -> None:
    source = make_tiny_bert(tmp_path / "bert", pooling=("mean_tokens",))
    base = optimize_graph(export_onnx(resolve_model(str(source)), progress=False), progress=False)
    report = measure_sensitivity(base, "int4-weight-only", SENTENCES, progress=False)
    assert report.measure == "1 - cosine"
    assert report.texts == len(SENTENCES)
    assert {row.name for row in report.kinds} >= {"attention/self/query", "output/dense"}
    made = ModelDirectory.load(apply_scheme(base, "int4-weight-only", progress=False))
    again = measure_sensitivity(base, "int4-weight-only", progress=False, single_layers=False)
    assert 0 < again.whole < 4 * (1 - made.manifest["parity"]["mean_cosine"])


@pytest.mark.parametrize(
    ("scheme", "error", "message"),
    [
        ("fp16", InputError, "does not quantize layers one by one"),
        ("fp32", InputError, "does not quantize layers one by one"),
        ("int8-dynamo", UnknownNameError, "did you mean 'int8-dynamic'"),
    ],
)
def test_schemes_without_layers_are_refused(
    scheme: str, error: type[Exception], message: str, tiny_base: Path
) -> None:
    with pytest.raises(error, match=message):
        measure_sensitivity(tiny_base, scheme)


def test_bad_input_is_refused(tiny_base: Path) -> None:
    made = apply_scheme(tiny_base, "int8-weight-only", progress=False)
    with pytest.raises(QuantizationError, match="already 'int8-weight-only'"):
        measure_sensitivity(made, "int8-dynamic", progress=False)
    for prompts in ([], [""]):
        with pytest.raises(InputError, match="give longer texts"):
            measure_sensitivity(tiny_base, "int8-dynamic", prompts, progress=False)


def test_the_table_and_the_bars_show_the_worst_first(outlier_base: Path) -> None:
    report = measure_sensitivity(outlier_base, "int8-dynamic-unsmoothed", progress=False)
    text = StringIO()
    Console(file=text, width=110).print(sensitivity_view(report, layers=3))
    lines = text.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("kind of layer")) + 2
    assert lines[first].startswith("mlp/down_proj")
    assert sum("/MatMul" in line for line in lines) == 3
    panels: list[Any] = sensitivity_figure(report).axes
    assert [label.get_text() for label in panels[0].get_yticklabels()][-1] == "mlp/down_proj"
    assert panels[1].get_yticklabels()[-1].get_text() == OUTLIER
    widths = [bar.get_width() for bar in panels[1].patches]
    assert widths == sorted(widths)
    assert np.isclose(widths[-1], max(row.alone for row in report.layers))
