"""Exports against their PyTorch source, their layout on disk, and what stops one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_models import SENTENCES, make_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_degrade.core.errors import (
    ModelError,
    QuantizationError,
    StorageError,
    UnsupportedModelError,
)
from mlflow_degrade.optimize.embeddings import head_node
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import MAX_IR, MAX_OPSET, load_graph
from mlflow_degrade.optimize.parity.decoder import OnnxForward
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model


def test_logits_equal_pytorch_with_and_without_a_cache(
    tiny_llama_dir: Path, tiny_export: Path
) -> None:
    # Transformers is asked directly here, not through the package's own forward pass.
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    exported = OnnxForward(tiny_export)
    for text in SENTENCES:
        batch = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            want = model(**batch).logits[0].numpy()
        tokens = batch["input_ids"][0].numpy()
        np.testing.assert_allclose(exported.logits(tokens), want, atol=1e-3, rtol=0)
        split = exported.logits_with_past(tokens, 3)
        np.testing.assert_allclose(split, want, atol=1e-3, rtol=0)


def test_optimum_generates_what_pytorch_generates(tiny_llama_dir: Path, tiny_export: Path) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_export)
    batch = tokenizer(SENTENCES[0], return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    want = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).generate(**batch, **options)
    got = ORTModelForCausalLM.from_pretrained(tiny_export).generate(**batch, **options)
    assert got.tolist() == want.tolist()


def test_the_directory_is_complete_and_every_weight_is_external(tiny_export: Path) -> None:
    directory = ModelDirectory.load(tiny_export)
    directory.verify()
    assert directory.scheme == "fp32"
    assert directory.source["kind"] == "local"
    assert directory.recipe[0]["task"] == "text-generation-with-past"
    assert directory.manifest["parity"]["max_abs_logit_difference"] < 1e-3
    names = {path.name for path in tiny_export.iterdir()}
    assert {"model.onnx", "model.onnx.data", "config.json", "generation_config.json"} < names
    assert not any(path.is_dir() for path in tiny_export.iterdir())
    graph = load_graph(tiny_export, weights=False)
    assert graph.ir_version <= MAX_IR
    assert all(o.version <= MAX_OPSET for o in graph.opset_import if o.domain == "")
    large = [t for t in graph.graph.initializer if int(np.prod(t.dims)) > 1024]
    assert large
    for tensor in large:
        assert {e.value for e in tensor.external_data if e.key == "location"} == {"model.onnx.data"}
    assert (tiny_export / "model.onnx").stat().st_size < 1_000_000
    onnx.checker.check_model(str(tiny_export / "model.onnx"))


def test_the_tokenizer_is_copied_byte_for_byte(tiny_llama_dir: Path, tiny_export: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tiny_export / name).read_bytes() == (tiny_llama_dir / name).read_bytes()


def test_tied_embeddings_stay_tied(tiny_export: Path, tmp_path: Path) -> None:
    source = make_tiny_llama(tmp_path / "model", seed=3, tied=False)
    untied = export_onnx(resolve_model(str(source)), progress=False)
    for directory, tied in ((tiny_export, True), (untied, False)):
        graph = load_graph(directory, weights=False)
        stored = {t.name for t in graph.graph.initializer}
        assert (head_node(graph).input[1] in stored) is not tied
        assert ModelDirectory.load(directory).recipe[0]["tied_embeddings"] is tied


def test_a_second_export_does_no_work_and_the_working_directory_stays_empty(
    tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve_model(str(make_tiny_llama(tmp_path / "model", seed=5)))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    first = export_onnx(source, progress=False)
    assert first.is_relative_to(fresh_cache)
    assert list(Path.cwd().iterdir()) == []
    shutil.rmtree(source.path)  # whatever needed it would fail now
    assert export_onnx(source, progress=False) == first


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 1.5])
def test_an_interrupted_export_leaves_nothing_half_done(
    delay: float, tmp_path: Path, fresh_cache: Path
) -> None:
    directory = make_tiny_llama(tmp_path / "model", seed=7, layers=12)
    script = (
        "import sys, torch, optimum.exporters.onnx\n"
        "from mlflow_degrade.optimize.export import export_onnx\n"
        "from mlflow_degrade.optimize.source.resolve import resolve_model\n"
        "source = resolve_model(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "export_onnx(source)\n"
    )
    # In a process of its own, as a user's Ctrl-C would hit it. The export comes to its end first:
    # torch's tracer may end the process, or make another error of it.
    with subprocess.Popen(
        [sys.executable, "-c", script, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "Stops after the export of" in said
    assert said.rstrip().endswith("KeyboardInterrupt")
    # Whole or not at all.
    kept = {path.parent.name for path in fresh_cache.rglob("degrade.json")}
    assert {path.parent.name for path in fresh_cache.rglob("model.onnx")} == kept


def test_an_onnx_model_made_elsewhere_is_brought_to_the_layout(
    tiny_export: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny_export, foreign)
    (foreign / "degrade.json").unlink()
    (foreign / "model.onnx.data").unlink()
    onnx.save(load_graph(tiny_export), foreign / "model.onnx")  # weights inside the graph
    adopted = ModelDirectory.load(export_onnx(resolve_model(str(foreign)), progress=False))
    assert adopted.scheme == "given"
    assert adopted.manifest["parity"]["max_abs_logit_difference"] == 0
    weights = (adopted.path / "model.onnx.data").stat().st_size
    assert weights == (tiny_export / "model.onnx.data").stat().st_size


def _foreign(made: Path, folder: Path) -> Path:
    """A model directory without its manifest: what other tools write."""
    shutil.copytree(made, folder)
    (folder / "degrade.json").unlink()
    return folder


def test_an_onnx_model_that_is_cut_off_is_a_model_error(tiny_export: Path, tmp_path: Path) -> None:
    folder = _foreign(tiny_export, tmp_path / "foreign")
    weights = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"is cut off: model\.onnx reads 416,512 bytes"):
        export_onnx(resolve_model(str(folder)), progress=False)
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"no ONNX model, or its graph or weights are cut off"):
        export_onnx(resolve_model(str(folder)), progress=False)


def test_an_onnx_model_newer_than_the_runtime_is_refused(tiny_export: Path, tmp_path: Path) -> None:
    folder = _foreign(tiny_export, tmp_path / "foreign")
    model = load_graph(folder)
    model.ir_version = MAX_IR + 1
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UnsupportedModelError, match=f"IR version {MAX_IR + 1}.*set ir_version to"):
        export_onnx(resolve_model(str(folder)), progress=False)


def test_what_was_quantized_elsewhere_is_not_quantized_again(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = _foreign(apply_scheme(tiny_base, "int8-weight-only", progress=False), tmp_path / "q")
    made = export_onnx(resolve_model(str(folder)), progress=False)
    assert optimize_graph(made, progress=False) == made
    with pytest.raises(QuantizationError, match="already 'quantized elsewhere'"):
        apply_scheme(made, "int4-weight-only", progress=False)


@pytest.mark.slow
def test_nodes_need_no_names(tiny_base: Path, tmp_path: Path) -> None:
    folder = _foreign(tiny_base, tmp_path / "anonymous")
    model = load_graph(folder)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, folder / "model.onnx")
    made = export_onnx(resolve_model(str(folder)), progress=False)
    for scheme in ("int4-weight-only-gptq", "int8-dynamic"):
        apply_scheme(made, scheme, progress=False)
    with pytest.raises(QuantizationError, match=r"64 inputs of [^:]+_output_0: use blocks of 16"):
        apply_scheme(made, "int8-weight-only-block128", progress=False)


def test_a_finished_directory_is_its_own_export(tiny_export: Path) -> None:
    assert export_onnx(resolve_model(str(tiny_export)), progress=False) == tiny_export


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mamba", "state_size": 16}, r"'mamba'.*states \(state_size = 16\)"),
        ({"model_type": "phimoe", "num_local_experts": 8}, r"'phimoe'.*experts = 8\).*mixtral"),
    ],
)
def test_unsupported_architectures_are_named(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    directory = make_tiny_llama(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UnsupportedModelError, match=said):
        export_onnx(resolve_model(str(directory)), progress=False)


def test_a_config_without_an_architecture_is_refused(tmp_path: Path) -> None:
    directory = make_tiny_llama(tmp_path / "model")
    (directory / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="model_type"):
        export_onnx(resolve_model(str(directory)), progress=False)


def test_damaged_weights_are_a_model_error_and_leave_nothing(
    tmp_path: Path, fresh_cache: Path
) -> None:
    directory = make_tiny_llama(tmp_path / "model")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model"):
        export_onnx(resolve_model(str(directory)), progress=False)
    assert [path for path in fresh_cache.rglob("*") if path.is_file()] == []


def test_no_space_is_found_out_before_the_work(
    tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve_model(str(make_tiny_llama(tmp_path / "model", seed=8)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(StorageError, match="MLFLOW_DEGRADE_CACHE"):
        export_onnx(source, progress=False)
    assert [path for path in fresh_cache.rglob("*") if path.is_file()] == []
