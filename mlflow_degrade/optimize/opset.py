"""Which version of ONNX's own operators a graph declares, and declaring a newer one."""

from __future__ import annotations

from typing import Any

from ..errors import QuantizationError

OLDEST = 18
"""Oldest operator set that can be raised."""


def opset(model: Any) -> int:
    """Version of ONNX's own operators that a graph uses; 0 where it says none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def require_opset(model: Any, least: int, what: str) -> None:
    """Raise `QuantizationError` when a graph uses older operators than `what` needs."""
    if (found := opset(model)) < least:
        raise QuantizationError(
            f"the graph uses ONNX opset {found}, {what} needs {least} or newer: export the model "
            "again."
        )


def raise_opset(model: Any, version: int) -> None:
    """Declare a newer operator set, in place.

    Parameters
    ----------
    model : onnx.ModelProto
        Of opset 18 (`OLDEST`) or newer.
    version : int
        At most 23; what the graph has is kept where that is newer.

    Notes
    -----
    From 18 to 23 operators only gained types and attributes with defaults: the nodes stay.
    """
    from onnx import helper

    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, version)
    # The format that the operators' version came with, in which their types are known.
    oldest = helper.find_min_ir_version_for([helper.make_opsetid("", version)])
    model.ir_version = max(model.ir_version, oldest)
