"""Directories of models that are broken or foreign, through every command that reads one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import onnx
import pytest
import torch
from recipe_cases import invoke
from safetensors.torch import load_file, save_file

from mlflow_degrade.cli import run
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.source.resolve import resolve_model
from mlflow_degrade.workflows.optimize import ExportOptions, export_model

WEIGHTS = "model.safetensors"


def _changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _compiled(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file(
        {f"_orig_mod.{k}": v for k, v in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )


def _pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\nsize 99\n")


def _quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def _adapter(folder: Path) -> None:
    for name in (WEIGHTS, "config.json"):
        (folder / name).unlink()
    stated = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    save_file({"x": torch.zeros(2)}, folder / "adapter_model.safetensors")


BROKEN = {
    "pointer": (_pointer, "Git LFS pointer"),
    "quantized": (_quantized, "is quantized already (GPTQ, 4 bits"),
    "adapter": (_adapter, "is a LoRA adapter, not a model: its base is 'org/base'"),
    "compiled": (_compiled, "begin with '_orig_mod.'"),
}


@pytest.fixture
def broken(workshop: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(case: str) -> Path:
        folder = tmp_path / case
        shutil.copytree(workshop / "model", folder)
        BROKEN[case][0](folder)
        return folder

    return make


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("recipe", ["quantize", "export", "optimize"])
def test_recipes(
    case: str,
    recipe: str,
    store: mlflow.MlflowClient,
    workshop: Path,
    broken: Callable[[str], Path],
) -> None:
    tasks = ["--tasks", "tiny_boats", "--include-path", str(workshop / "tasks")]
    arguments = ["--model", str(broken(case)), *(tasks if recipe == "quantize" else [])]
    result = invoke(recipe, *arguments)
    assert result.exit_code == 3, result.output
    assert BROKEN[case][1] in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert {found.info.status for found in store.search_runs(["0"])} == {"FAILED"}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("command", ["placement", "sensitivity", "bench", "onnx", "hf"])
@pytest.mark.usefixtures("store")
def test_commands(
    case: str,
    command: str,
    workshop: Path,
    broken: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    if command == "hf" and case in ("quantized", "adapter"):
        pytest.skip("transformers reads those itself")
    folder = str(broken(case))
    arguments = {
        "bench": ["bench", folder, str(workshop / "model")],
        "onnx": ["evaluate", "--model", "onnx", "--model-args", f"pretrained={folder}"],
        "hf": ["evaluate", "--model", "hf", "--model-args", f"pretrained={folder}"],
    }.get(command, [command, folder])
    if command in ("onnx", "hf"):
        arguments += ["--tasks", "tiny_boats", "--include-path", str(workshop / "tasks")]
    assert run(arguments) == 3
    err = capfd.readouterr().err
    assert BROKEN[case][1] in " ".join(err.split())
    assert "Traceback" not in err


def test_a_stale_onnx_file_is_asked_about_and_the_choice_is_recorded(
    store: mlflow.MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(workshop / "model", folder)
    # As another exporter left it: no manifest, the weights within the graph.
    exported = export_onnx(resolve_model(str(folder)), progress=False)
    onnx.save(onnx.load(exported / "model.onnx"), folder / "model.onnx")
    same = export_model(ExportOptions(model=str(folder), device="cpu"))
    tags = store.get_run(same.run_id).data.tags
    assert tags["degrade.source_notes"].startswith("model.onnx is taken, not model.safetensors")

    def trained(weights: dict[str, torch.Tensor]) -> None:
        for weight in weights.values():
            weight.mul_(1.05)

    _changed(folder, trained)
    arguments = ["--model", str(folder), "--device", "cpu"]
    result = invoke("export", *arguments)
    assert result.exit_code == 3, result.output
    assert "holds two models" in " ".join(result.output.split())
    chosen = export_model(ExportOptions(model=str(folder / WEIGHTS), device="cpu"))
    assert "degrade.source_notes" not in store.get_run(chosen.run_id).data.tags
    assert chosen.passes[0].folder != same.passes[0].folder
