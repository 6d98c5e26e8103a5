"""Names of formats: what they stand for, how large they are, what is wrong with others."""

from __future__ import annotations

import pytest

from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.optimize.formats.number_format import (
    FAMILIES,
    OPTIONS,
    NumberFormat,
    parse_format,
)

# Bits that the sources give for a weight of a large matrix, scales included.
BITS = {
    "mxfp8-e4m3": 8.25,
    "mxfp6-e3m2": 6.25,
    "mxfp4": 4.25,
    "mxint8": 8.25,
    "int4-group128": 4.125,
    "int4-group32": 4.5,
    "int4-group32-asym": 4.625,
    "int8-group32": 8.5,
    "int4-group64-split": 4.5,
    "int8-2:4": 5.0 + 32 / 1024,
    "int4-2:4": 3.0 + 32 / 1024,
    "fp32-2:4": 17.0,
    "fp32-prune50": 17.0,
    "int8-prune75": 3.0 + 32 / 1024,
    "ternary-group64": 1.85,
    "int3-group64-outliers0.5": 3.25 + 0.16 + 32 / 1024,
    "fp8-e4m3": 8 + 32 / 1024,
    "fp8-e4m3-tensor": 8 + 32 / 1024**2,
    "nvfp4": 4.5 + 32 / 1024**2,
}


@pytest.mark.parametrize("name", BITS)
def test_bits_of_a_weight_count_everything_that_is_stored(name: str) -> None:
    assert parse_format(name).bits_per_weight(1024, 1024) == pytest.approx(BITS[name], rel=1e-12)


def test_short_groups_have_a_scale_too() -> None:
    assert parse_format("int4-group128").bits_per_weight(10, 576) == 4 + 16 * 5 / 576
    assert parse_format("mxfp4").bits_per_weight(10, 16) == 4.5


@pytest.mark.parametrize("name", FAMILIES)
def test_families_parse_to_themselves(name: str) -> None:
    if name == "fp32":
        with pytest.raises(InputError, match="it would change nothing"):
            parse_format(name)
        return
    assert parse_format(name).name == name
    assert parse_format(f"{name}-mse").clip == "mse"


def test_options_come_in_any_order() -> None:
    found = parse_format("int3-outliers0.5-asym-group64-p99.9")
    assert found == NumberFormat(
        found.name,
        "int3",
        group=64,
        scale="float16",
        symmetric=False,
        clip="percentile",
        percentile=99.9,
        outliers=0.005,
    )
    assert parse_format("int8-tensor").group is None
    assert parse_format("int8-channel") == NumberFormat("int8-channel", "int8")
    assert parse_format("mxfp6-e3m2-2:4").pruned == "2:4"
    assert parse_format("fp32-prune50").pruned == 0.5
    assert all(text for text in OPTIONS.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mxfp6", "did you mean 'mxfp"),
        ("fp8-e4m3fn", "did you mean 'fp8-e4m3'"),
        ("int9", "unknown number format 'int9': did you mean 'int"),
        ("", "unknown number format ''"),
        ("int4-group", "unknown option of a number format 'group': did you mean 'group<n>'"),
        ("int4-asymm", "did you mean 'asym'"),
        ("int4-", "unknown option of a number format ''"),
        ("int4-group-128", "did you mean 'group<n>'"),
        ("int4-1:4", "did you mean '2:4'"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_format(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int4-tensor-group32", "'tensor' and 'group32', which are both about scales"),
        ("int4-mse-p99", "both about clipping"),
        ("int4-2:4-prune50", "both about pruning"),
        ("mxfp4-group16", "the scales of mxfp4 are part of it"),
        ("nvfp4-tensor", "the scales of nvfp4 are part of it"),
        ("fp8-e4m3-asym", "zero points are for integers"),
        ("mxint8-asym", "zero points are for integers"),
        ("ternary-asym", "zero points are for integers"),
        ("int2-split", "at least 3 bits"),
        ("fp6-e3m2-split", "at least 3 bits"),
        ("int4-asym-split", "no zero point"),
        ("mxint8-split", "float scales"),
        ("int4-split-mse", "replaces clipping"),
        ("int4-p40", "percentile 40 is not between 50 and 100"),
        ("int4-p101", "percentile 101"),
        ("int4-outliers50", "50% outliers"),
        ("int4-prune100", "100% pruned leaves nothing"),
        ("int4-group1", "groups of 1 inputs"),
        ("int4-group2.5", "groups of 2.5 inputs"),
        ("fp32-mse", "can only be pruned"),
        ("fp32-outliers1-2:4", "can only be pruned"),
    ],
)
def test_contradictions_are_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_format(name)
    assert message in str(caught.value)
