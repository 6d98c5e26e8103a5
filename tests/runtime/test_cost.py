"""The quick cost measurement gives every figure for every model."""

from __future__ import annotations

import pytest
from engine_models import ModelDir

from mlflow_degrade.errors import InputError
from mlflow_degrade.runtime.cost import measure_cost


def test_all_models_are_measured_alike(model_dir: ModelDir) -> None:
    folders = {"baseline": model_dir("fp32"), "candidate": model_dir("int8-weight-only")}
    found = measure_cost(folders, device="cpu", seconds=0)
    assert list(found) == ["baseline", "candidate"]
    assert found["baseline"].keys() == found["candidate"].keys()
    for label, folder in folders.items():
        figures = found[label]
        size = sum(f.stat().st_size for f in folder.glob("model.onnx*"))
        assert figures["size/bytes"] == (size, "bytes")
        for name in ("first_token", "next_token"):
            p50, p90 = (figures[f"latency/{name}_ms_p{p}"][0] for p in (50, 90))
            assert 0 < p50 <= p90
        assert figures["throughput/decode_tokens_per_second"][0] > 0
        # Reading a prompt at once is what makes prefill cheaper per token than decoding.
        assert (
            figures["throughput/prefill_tokens_per_second"][0]
            > figures["throughput/decode_tokens_per_second"][0]
        )


def test_no_model_is_an_error() -> None:
    with pytest.raises(InputError, match="no model"):
        measure_cost({})
