"""The table of a recipe's passes: the figures that the model's family has, rounded for people."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from mlflow_degrade.optimize.parity.agreement import EncoderParity
from mlflow_degrade.optimize.parity.decoder import Parity
from mlflow_degrade.optimize.pass_table import PassResult
from mlflow_degrade.report.cost import pass_rows, passes_note, passes_view

_PASSES = (
    PassResult("export", Path(), 7426, 539_000_000, None, None, Parity(2e-5, 1e-9, 1.0, 432)),
    PassResult(
        "simulated-mxfp4", Path(), 817, 539_000_000, 72_000_000, 0.21, Parity(9.1, 0.5, 0.63, 432)
    ),
)
_COST = {
    "baseline": {"size/bytes": (539e6, "bytes")},
    "candidate": {"size/bytes": (209e6, "bytes")},
}


def _shown(*args: object) -> str:
    text = StringIO()
    Console(file=text, width=110).print(passes_view(*args))  # type: ignore[arg-type]
    return text.getvalue()


def test_decoders_show_divergence_and_what_a_format_would_take() -> None:
    titles, rows = pass_rows(_PASSES)
    assert titles == [
        "pass",
        "nodes",
        "size",
        "in float",
        "mean KL, nats",
        "same top token",
        "largest difference",
    ]
    assert rows[0] == ["export", "7,426", "539 MB", "100.0%", "1e-09", "100.0%", "2e-05"]
    assert rows[1][3] == "21.0%"
    assert rows[1][2] == "539 MB (72.0 MB simulated)"
    assert "on 432 positions. A distance is no verdict." in _shown(_PASSES)
    assert "Cost" not in _shown(_PASSES)


def test_encoders_show_cosines() -> None:
    result = PassResult(
        "export", Path(), 300, 90_000_000, None, None, EncoderParity(1e-6, 0.98, 0.99, 16)
    )
    titles, rows = pass_rows([result])
    assert titles[4:] == ["mean cosine", "least cosine", "largest difference"]
    assert rows[0][4:6] == ["0.99000", "0.98000"]
    assert "on 16 texts" in passes_note([result])


def test_cost_is_related_in_words() -> None:
    assert "2.58× smaller" in _shown(_PASSES, _COST)
    assert "- size: 2.58× smaller" in passes_note(_PASSES, _COST)
    assert passes_note(_PASSES).startswith("| pass | nodes |")
