"""A space is a recipe with lists: what it expands to, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.engine.providers import CUDA
from mlflow_degrade.optimize.search_space import SearchSpace, load_space, space_files


def _space(*quantize: dict[str, Any], graph: Any = "fused") -> SearchSpace:
    passes = [{"pass": "export"}, {"pass": "graph", "level": graph}]
    return SearchSpace.from_mapping(
        {"passes": [*passes, *({"pass": "quantize", **q} for q in quantize)]}
    )


def _names(space: SearchSpace) -> list[str]:
    return [candidate.name for candidate in space.candidates]


def test_every_combination_is_a_candidate_once() -> None:
    space = _space({"scheme": ["int8-weight-only", "int4-weight-only-hqq"], "block_size": [32, 64]})
    assert _names(space) == [
        "int8-weight-only",
        "int8-weight-only-block64",
        "int4-weight-only-hqq",
        "int4-weight-only-hqq-block64",
    ]
    assert space.choices == {
        "scheme": ("int8-weight-only", "int4-weight-only-hqq"),
        "block_size": (32, 64),
    }
    assert space.baseline.quantization is None


def test_a_key_counts_for_the_schemes_that_have_it() -> None:
    space = _space(
        {
            "scheme": ["int8-weight-only", "int8-dynamic"],
            "symmetric": [True, False],
            "smoothing": ["never", "where possible"],
        }
    )
    assert _names(space) == [
        "int8-weight-only",
        "int8-weight-only-asym",
        "int8-dynamic-unsmoothed",
        "int8-dynamic",
    ]


def test_what_does_the_same_is_one_candidate_and_one_digest() -> None:
    # 32 is the scheme's own block size, and words after a name are its options.
    space = _space(
        {"scheme": "int4-weight-only", "block_size": [32, 64]},
        {"scheme": ["int4-weight-only", "int4-weight-only-block64"]},
    )
    assert _names(space) == ["int4-weight-only", "int4-weight-only-block64"]
    other = _space({"scheme": ["int4-weight-only-block64", "int4-weight-only"]})
    assert other.digest() == space.digest()
    assert _space({"scheme": "int4-weight-only"}).digest() != space.digest()


def test_null_is_what_the_scheme_does_by_itself() -> None:
    space = _space({"scheme": "int8-dynamic", "target": [None, "vnni"]})
    assert _names(space) == ["int8-dynamic", "int8-dynamic-vnni"]
    assert space.choices["target"] == (None, "vnni")


def test_the_graph_varies_and_the_baseline_has_its_first_value() -> None:
    space = _space({"scheme": "int8-weight-only"}, graph=["fused", "none"])
    assert _names(space) == [
        "int8-weight-only, graph.level fused",
        "int8-weight-only, graph.level none",
    ]
    assert [each.name for each in space.baseline.passes] == ["export", "graph fused"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"passes": [{"pass": "export"}]}, "no pass 'quantize'"),
        ({"passes": [], "trials": 3}, "unknown key 'trials'"),
        ([], "a mapping with a list of 'passes'"),
        ({"passes": ["export"]}, "pass 1: 'export' is no mapping"),
        (
            {"passes": [{"pass": "quantize", "scheme": "fp16"}, {"pass": "export"}]},
            "alternatives and come last",
        ),
        ({"passes": [{"pass": "quantize"}]}, "the key 'scheme' is missing"),
        ({"passes": [{"pass": "quantize", "scheme": []}]}, "scheme = []: give at least one value"),
        ({"passes": [{"pass": "quantize", "scheme": "fp32"}]}, "is the baseline itself"),
        (
            {"passes": [{"pass": "quantize", "scheme": "simulated-mxfp4"}]},
            "has no cost to measure",
        ),
        ({"passes": [{"pass": "quantize", "scheme": "int8-weigh"}]}, "did you mean 'int8-weight"),
        (
            {"passes": [{"pass": "quantize", "scheme": "int8-weight-only", "blok_size": [32]}]},
            "did you mean 'block_size'",
        ),
        (
            {"passes": [{"pass": "quantize", "scheme": "int8-weight-only", "block_size": [33]}]},
            "block_size = 33 is no value of scheme 'int8-weight-only'",
        ),
        (
            {"passes": [{"pass": "quantize", "scheme": "int8-weight-only"}]},
            "begin with 'pass: export'",
        ),
    ],
)
def test_a_mistake_is_named(values: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        SearchSpace.from_mapping(values)
    assert says in str(caught.value)


def test_a_mistake_names_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("passes:\n  - pass: export\n  - pass: graph\n    level: [fusd]\n")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_space(file)
    file.write_text("passes: []\npasses: []\n")
    with pytest.raises(InputError, match="given twice, in lines 1 and 2"):
        load_space(file)


def test_what_is_refused_on_the_device_is_left_out_with_its_reason() -> None:
    space = _space({"scheme": ["int8-dynamic", "int8-weight-only"]})
    left, refused = space.feasible((CUDA,))
    assert _names(left) == ["int8-weight-only"]
    assert "no CUDA kernels" in refused["int8-dynamic"]
    with pytest.raises(InputError, match=r"none of the 1 candidates .* is feasible on CUDA"):
        _space({"scheme": "int8-dynamic"}).feasible((CUDA,))
    assert len(_space({"scheme": "int8-dynamic"}).feasible((CUDA,), force=True)[0].candidates) == 1


def test_packaged_spaces_are_spaces() -> None:
    assert list(space_files()) == ["decoder", "encoder"]
    for name in space_files():
        assert 5 < len(load_space(name).candidates) < 30
    with pytest.raises(UnknownNameError, match="did you mean 'decoder'"):
        load_space("decodr")
