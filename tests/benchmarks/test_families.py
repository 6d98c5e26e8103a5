"""The sweep over families, on a few of them: rows that say what is fused, right and quantized."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "benchmarks"))

from families import sweep_decoder, sweep_encoder, table  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("family", "exported", "fused"),
    [
        ("gpt2", "by Optimum", "attention 2"),
        ("gpt_oss", "by Optimum", "no: attention has sinks"),
        ("mixtral", "as Llama", "attention 2, norms 5, rotary 4"),
    ],
)
def test_decoders_are_right_from_export_to_scores(
    family: str, exported: str, fused: str, tmp_path: Path
) -> None:
    row = sweep_decoder(family, tmp_path, ("int8-weight-only",))
    assert row.exported == exported
    assert row.fused.startswith(fused)
    assert row.parity is not None
    assert row.engine is not None
    assert row.parity < 1e-4
    assert row.engine < 1e-3
    size, share = row.schemes[0].split(", ")
    assert float(size) < 0.5
    assert float(share.rstrip("%")) < 30
    assert "products" not in share


def test_what_is_refused_is_named(tmp_path: Path) -> None:
    row = sweep_decoder("jamba", tmp_path, ())
    assert row.exported.startswith("no: a 'jamba' model is not exported")
    assert row.parity is None


def test_encoders_are_fused(tmp_path: Path) -> None:
    row = sweep_encoder("modernbert", tmp_path, ("int8-weight-only",))
    assert "Attention 2" in row.fused
    assert row.parity is not None
    assert row.parity < 1e-4
    assert "`modernbert`" in table("encoders", [row], ["int8-weight-only"])
