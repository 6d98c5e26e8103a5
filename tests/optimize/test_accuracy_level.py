"""The level that is measured is the one that is written, and never one that is wrong here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflow_degrade.core.errors import UnknownNameError
from mlflow_degrade.engine.graph_editor import attribute
from mlflow_degrade.engine.integer_probe import KernelCheck
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.passes import accuracy_level
from mlflow_degrade.optimize.passes.sensitivity import measure_sensitivity
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory


def _levels(folder: Path) -> set[int]:
    nodes = load_graph(folder, weights=False).graph.node
    return {attribute(n, "accuracy_level") or 0 for n in nodes if n.op_type == "MatMulNBits"}


def test_what_is_measured_is_written_and_recorded(tiny_base: Path) -> None:
    made = apply_scheme(tiny_base, "int8-weight-only-tuned", progress=False)
    step = ModelDirectory.load(made).recipe[-1]
    found = step["level_measured"]
    assert _levels(made) == {found["accuracy_level"]} == {step["accuracy_level"]}
    assert set(found["milliseconds"]) == {"0", "4"}
    assert all(t > 0 for times in found["milliseconds"].values() for t in times.values())
    assert found["machine"]["onnxruntime"]
    # 8 bits have no kernel that keeps activations in float: each call unpacks the whole matrix.
    assert found["accuracy_level"] == 4


def test_it_is_measured_once_for_a_machine(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_scheme(tiny_base, "int4-weight-only-tuned", progress=False)
    monkeypatch.setattr(accuracy_level, "_measured", lambda *_: pytest.fail("measured again"))
    found = apply_scheme(tiny_base, "int4-weight-only-tuned", progress=False)
    assert found == apply_scheme(tiny_base, "int4-weight-only-tuned", progress=False)


def test_a_level_whose_kernel_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = accuracy_level.check_kernel

    def wrong(*given: Any) -> KernelCheck:
        return replace(real(*given), wrong=7)

    monkeypatch.setattr(accuracy_level, "check_kernel", wrong)
    found = accuracy_level._measured({(64, 64): 3}, 8, 32, True)
    assert found["accuracy_level"] == 0
    assert "results are wrong" in found["left_out"]["4"]


def test_a_level_can_be_pinned(tiny_base: Path) -> None:
    pinned = apply_scheme(tiny_base, "int4-weight-only-level0", progress=False)
    assert _levels(pinned) == {0}
    assert "level_measured" not in ModelDirectory.load(pinned).recipe[-1]
    assert _levels(apply_scheme(tiny_base, "int4-weight-only", progress=False)) == {4}
    named = find_scheme("int4-weight-only", options={"accuracy_level": "measured"})
    assert named.name == "int4-weight-only-tuned"
    with pytest.raises(UnknownNameError, match=r"accuracy_level.*measured"):
        find_scheme("int4-weight-only", options={"accuracy_level": 2})


def test_layers_are_measured_at_the_chosen_level(tiny_base: Path) -> None:
    found = measure_sensitivity(
        tiny_base, "int8-weight-only-tuned", single_layers=False, progress=False
    )
    plain = measure_sensitivity(tiny_base, "int8-weight-only", single_layers=False, progress=False)
    assert json.dumps(found.to_dict()["kinds"]) == json.dumps(plain.to_dict()["kinds"])
