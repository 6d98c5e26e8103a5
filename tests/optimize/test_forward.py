"""The plain forward passes: closing one frees its memory at once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlflow_degrade.optimize.parity.decoder import OnnxForward, TorchForward


@pytest.fixture
def _no_collector() -> Iterator[None]:
    # A full collection takes .3 s once PyTorch and transformers are imported, which is longer than
    # a small model's whole comparison: nothing may wait for it.
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("kind", [OnnxForward, TorchForward])
def test_memory_is_free_once_nothing_holds_the_model(
    kind: type[OnnxForward | TorchForward], tiny_export: Path, tiny_llama_dir: Path
) -> None:
    model = kind(tiny_export if kind is OnnxForward else tiny_llama_dir)
    if isinstance(model, OnnxForward):
        held = [weakref.ref(model._session)]
    else:
        held = [weakref.ref(parameter) for parameter in model._model.parameters()]
    model.logits_with_past(np.arange(1, 9), 4)
    assert all(reference() is not None for reference in held)
    del model
    assert [reference() for reference in held if reference() is not None] == []
