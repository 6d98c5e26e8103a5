"""Checkpoints whose weights are not all there: transformers would fill them at random."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_bert, make_tiny_llama

from mlflow_degrade.core.cache import cache_root
from mlflow_degrade.core.errors import ModelError
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.source.resolve import resolve_model

_LAYER = "model.layers.1.mlp.up_proj.weight"


_Weights = dict[str, Any]


def _changed(
    source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Path:
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return target


def _without(weights: _Weights, name: str) -> _Weights:
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "begin with '_orig_mod.'"),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, "begin with 'module.'"),
        (lambda w: _without(w, _LAYER), f"they lack {_LAYER}"),
        (lambda w: _without(w, "model.norm.weight"), "they lack model.norm.weight"),
        (lambda w: {**w, _LAYER.replace("1", "2"): w[_LAYER] + 0}, "without a place for them"),
        (lambda w: {**w, _LAYER: w[_LAYER][:-4].clone()}, "another shape|size mismatch"),
    ],
)
def test_refused_before_anything_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[_Weights], _Weights],
    message: str,
) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    model = _changed(make_tiny_llama(tmp_path / "whole"), tmp_path / "model", change)
    with pytest.raises(ModelError, match=message):
        export_onnx(resolve_model(str(model)), progress=False)
    assert not list(cache_root().glob("export*/*"))


def test_what_nothing_reads_may_be_absent(tmp_path: Path) -> None:
    encoder = make_tiny_bert(tmp_path / "whole")
    model = _changed(
        encoder,
        tmp_path / "model",
        lambda w: {k: v for k, v in w.items() if not k.startswith("pooler.")},
    )
    assert export_onnx(resolve_model(str(model)), progress=False)


def test_a_classifier_without_its_head_is_refused(tmp_path: Path) -> None:
    whole = make_tiny_bert(tmp_path / "whole", labels=("no", "yes"))
    model = _changed(
        whole,
        tmp_path / "model",
        lambda w: {k: v for k, v in w.items() if not k.startswith("classifier.")},
    )
    with pytest.raises(ModelError, match=r"they lack classifier\.bias"):
        export_onnx(resolve_model(str(model)), progress=False)
