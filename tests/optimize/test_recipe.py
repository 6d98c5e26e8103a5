"""Recipes as data: what a file may hold, what is refused and how, and that words mean options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlflow_degrade.core.cache import cache_root
from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.engine.integer_probe import full_range
from mlflow_degrade.engine.providers import CPU, CUDA
from mlflow_degrade.optimize.pass_table import PASSES, QuantizePass
from mlflow_degrade.optimize.passes.calibration import CALIBRATION_PROMPTS
from mlflow_degrade.optimize.recipe import Recipe, load_recipe, preset_files, run_recipe
from mlflow_degrade.optimize.schemes import SCHEMES, apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory

PRESETS = list(preset_files().values())
_EXPORTS = {"plain", "basic", "fused"}

EXPORT, GRAPH = {"pass": "export"}, {"pass": "graph"}


def quantize(scheme: Any, **options: Any) -> dict[str, Any]:
    return {"pass": "quantize", "scheme": scheme, **options}


def recipe(*passes: Any) -> Recipe:
    return Recipe.from_mapping({"passes": list(passes)})


def names(found: Recipe) -> list[str]:
    return [each.name for each in found.passes]


@pytest.mark.parametrize("file", PRESETS, ids=lambda f: f.stem)
def test_every_preset_is_read_and_written_back(file: Path) -> None:
    found = Recipe.from_yaml(file)
    found.check((CPU,))
    assert found.name == file.stem
    assert Recipe.from_mapping(yaml.safe_load(yaml.safe_dump(found.as_dict())), file.stem) == found
    assert file.read_text().startswith("# ")  # each says what it is for
    if file.stem not in _EXPORTS:
        assert found.quantization is not None
        assert found.name == found.quantization.name  # a preset is called what it makes
        assert names(found.before_quantization) == ["export", "graph fused"]


def test_every_scheme_worth_gating_has_a_preset() -> None:
    assert set(preset_files()) >= set(SCHEMES) - {"fp32"}


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([], "lists no pass: begin with 'pass: export'"),
        ([GRAPH], "first pass is 'graph': begin with 'pass: export'"),
        ([EXPORT, EXPORT], r"pass 2 \(export\) cannot follow export.*Keep one"),
        ([EXPORT, GRAPH, GRAPH], r"pass 3 \(graph fused\) cannot follow graph fused.*Keep one"),
        (
            [EXPORT, quantize("fp16"), quantize("int8-weight-only")],
            r"pass 3 \(int8-weight-only\) cannot follow fp16: a scheme starts from.*float32",
        ),
        ([EXPORT, quantize("fp16"), GRAPH], "cannot follow fp16: the order is export, graph, quan"),
        ([{"pass": "exprot"}], r"pass 1: unknown pass 'exprot': did you mean 'export'\? Known: ex"),
        ([{"pass": ["export"]}], "unknown pass"),
        ([{}], "pass 1: it has no key 'pass'. Known passes: export, graph, quantize"),
        (["export"], "pass 1: 'export' is no mapping"),
        ([{**EXPORT, "dtyp": "fp32"}], r"pass 1 \(export\): unknown key 'dtyp': did you mean 'dt"),
        (
            [{**EXPORT, "dtype": "fp23"}],
            "unknown data type of an export 'fp23': did you mean 'fp32'",
        ),
        ([{**EXPORT, "dtype": "fp16"}, GRAPH], "cannot follow export fp16: .*'scheme: fp16'"),
        ([{**EXPORT, "dtype": "bf16"}, GRAPH], "cannot follow export bf16: .*'scheme: bf16'"),
        ([EXPORT, {**GRAPH, "level": "fussed"}], r"pass 2 \(graph\): unknown graph opt.*'fused'"),
        ([EXPORT, {**GRAPH, "level": 3}], "level = 3"),
        ([EXPORT, {**GRAPH, "kind": "graph"}], "unknown key 'kind'"),
        ([EXPORT, {"pass": "quantize"}], r"pass 2 \(quantize\): the key 'scheme' is missing"),
        ([EXPORT, quantize("int8-weight")], "did you mean 'int8-weight-only'"),
        ([EXPORT, quantize(None)], "scheme = None"),
        ([EXPORT, quantize("simulated-mxfp5")], "unknown number format 'mxfp5': did you mean 'mx"),
        ([EXPORT, quantize("fp16", block_size=32)], "'fp16': 'block_size'.*Known: pass, scheme"),
        (
            [EXPORT, quantize("int4-weight-only", blok_size=32)],
            "'blok_size': did you mean 'block_size'",
        ),
        (
            [EXPORT, quantize("int4-weight-only", block_size=33)],
            "unknown block_size .*'33': did you mean '32'",
        ),
        ([EXPORT, quantize("int8-weight-only", symmetric=0)], "'0': Known: false, true"),
        ([EXPORT, quantize("int8-static", calibration_method="mean")], "Known: entropy, minmax"),
        ([EXPORT, quantize("int4-weight-only-block64", block_size=32)], "block_size twice"),
        ([EXPORT, quantize("int8-weight-only-asym", symmetric=True)], "symmetric twice"),
        ([EXPORT, quantize("int8-static", calibratoin="a.txt")], "did you mean 'calibration'"),
        ([EXPORT, quantize("int8-static", calibration="none.txt")], "none.txt cannot be read"),
    ],
    ids=lambda value: str(value)[-48:],
)
def test_what_is_wrong_is_named(passes: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Recipe.from_mapping({"passes": passes}, "mine")
    assert str(caught.value).startswith("mine")


def test_every_mistake_is_told_at_once() -> None:
    wrong = [{"pass": "exprot"}, {"pass": "graph", "lvel": "basic"}]
    with pytest.raises(InputError) as caught:
        Recipe.from_mapping({"passes": wrong})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "recipe, pass 1",
        "recipe, pass 2 (graph)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a mapping with a list of 'passes'"),
        ("- pass: export", "a mapping with a list of 'passes'"),
        ("passes: export", "a mapping with a list of 'passes'"),
        ("passes: [{pass: export}]\npases: []", "unknown key 'pases': did you mean 'passes'"),
        ("passes: [", "not valid YAML"),
        (
            "passes:\n- pass: quantize\n  scheme: fp16\n  scheme: int8-static",
            "'scheme' is given twice, in lines 3 and 4; keep one of the two",
        ),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        Recipe.from_yaml(file)
    assert str(file) in str(caught.value)


def test_recipes_are_found_by_preset_or_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("passes: [{pass: export}]")
    assert names(load_recipe(tmp_path / "mine.yaml")) == ["export"]
    assert load_recipe("plain").file == preset_files()["plain"]
    with pytest.raises(UnknownNameError, match=r"preset 'plane': did you mean 'plain'.*\.yaml"):
        load_recipe("plane")
    with pytest.raises(InputError, match=r"other\.yaml cannot be read"):
        load_recipe(tmp_path / "other.yaml")


def _passes() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from([EXPORT, GRAPH, quantize("fp16"), quantize("int4-weight-only")])


@given(st.lists(_passes(), max_size=5))
def test_any_list_is_a_recipe_in_order_or_refused(passes: list[dict[str, Any]]) -> None:
    places = [list(PASSES).index(each["pass"]) for each in passes]
    if places[:1] == [0] and places == sorted(set(places)):
        found = recipe(*passes)
        assert Recipe.from_mapping(found.as_dict()) == found
        assert [each.kind for each in found.passes] == [each["pass"] for each in passes]
    else:
        with pytest.raises(InputError):
            recipe(*passes)


_VARIED = [scheme for scheme in SCHEMES.values() if scheme.variants]


@given(st.data())
def test_options_and_words_are_the_same_scheme(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from(_VARIED))
    chosen = {
        option: data.draw(st.sampled_from(values))
        for option, values in base.choices.items()
        if data.draw(st.booleans())
    }
    # What is refused on this processor has the same names.
    found = find_scheme(base.name, options=chosen, force=True)
    usual = {**base.options, "smoothing": base.smoothing}
    assert {**found.options, "smoothing": found.smoothing} == {**usual, **chosen}
    step = quantize(base.name, **chosen)
    if found.options.get("target") == "vnni" and not full_range().exact:
        with pytest.raises(InputError, match="for want of VNNI"):
            QuantizePass.model_validate(step).chosen()
    else:
        assert QuantizePass.model_validate(step).chosen() == found
    # The words of its name in any order, and those that change nothing, are that scheme too.
    words = found.name.removeprefix(base.name).split("-")[1:]
    idle = [w for w, change in base.variants.items() if change.items() <= usual.items()]
    free = [w for w in idle if not base.variants[w].keys() & chosen.keys()]
    spoken = data.draw(st.permutations(words + free))
    assert find_scheme("-".join([base.name, *spoken]), force=True) == found


def test_names_that_were_used_before_keep_their_place_in_the_cache() -> None:
    for name in ("int8-weight-only-block16-asym", "int4-weight-only-gptq-block64", *SCHEMES):
        assert find_scheme(name).name == name


def test_a_recipe_is_what_the_functions_do(tiny_llama_dir: Path, tiny_base: Path) -> None:
    found = recipe(EXPORT, GRAPH, quantize("int4-weight-only", block_size=64))
    made = run_recipe(tiny_llama_dir, found, progress=False)
    assert made == apply_scheme(tiny_base, "int4-weight-only-block64", progress=False)
    assert run_recipe(tiny_llama_dir, found.before_quantization, progress=False) == tiny_base
    steps = [step["pass"] for step in ModelDirectory.load(made).recipe]
    assert steps == ["export", "graph", "int4-weight-only-block64"]


def test_an_onnx_model_is_exported_already(tiny_base: Path) -> None:
    assert run_recipe(tiny_base, recipe(EXPORT), progress=False) == tiny_base


def test_an_export_has_a_data_type(tiny_llama_dir: Path, tiny_export: Path) -> None:
    made = run_recipe(tiny_llama_dir, recipe({**EXPORT, "dtype": "bf16"}), progress=False)
    assert made == apply_scheme(tiny_export, "bf16", progress=False)


def test_what_is_refused_is_refused_before_any_work(fresh_cache: Path) -> None:
    found = Recipe.of_scheme("int8-dynamic")
    with pytest.raises(InputError, match=r"refused on CUDA.*'int8-weight-only'"):
        run_recipe("no/such-model", found, providers=(CUDA, CPU))
    found.check((CUDA, CPU), force=True)
    assert not fresh_cache.exists()
    with pytest.raises(UnknownNameError, match="did you mean 'int8-weight-only'"):
        Recipe.of_scheme("int8-weight")


def test_calibration_texts_lie_beside_the_recipe(
    tiny_llama_dir: Path, tiny_base: Path, tmp_path: Path
) -> None:
    texts = [text.replace("\n", " ") for text in CALIBRATION_PROMPTS[:12]]
    (tmp_path / "prompts.txt").write_text("\n\n".join(texts), encoding="utf-8")
    file = tmp_path / "mine.yaml"
    passes = [EXPORT, GRAPH, quantize("int8-static", calibration="prompts.txt")]
    file.write_text(yaml.safe_dump({"passes": passes}))
    made = run_recipe(tiny_llama_dir, Recipe.from_yaml(file), progress=False)
    expected = apply_scheme(tiny_base, "int8-static", calibration=texts, progress=False)
    assert made == expected
    (tmp_path / "prompts.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"prompts\.txt is empty: give texts"):
        Recipe.from_yaml(file)
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"prompts\.txt cannot be read: it is not text in UTF-8"):
        Recipe.from_yaml(file)
    file.write_text(yaml.safe_dump({"passes": [EXPORT, quantize("fp16", calibration="x.txt")]}))
    with pytest.raises(InputError, match="calibration"):
        Recipe.from_yaml(file)


@pytest.mark.slow
def test_an_interrupted_recipe_goes_on_where_it_stopped(
    tiny_llama_dir: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_degrade.optimize import schemes

    found = Recipe.of_scheme("int8-weight-only")
    save = schemes.save_graph

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schemes, "save_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(tiny_llama_dir, found, progress=False)
    assert cache_root() == fresh_cache
    assert list((fresh_cache / "scheme").iterdir()) == []
    finished = {p: p.stat().st_mtime_ns for p in fresh_cache.glob("*/*/model.onnx")}
    assert {p.parents[1].name for p in finished} == {"export", "graph"}
    monkeypatch.setattr(schemes, "save_graph", save)
    made = run_recipe(tiny_llama_dir, found, progress=False)
    assert made.parent == fresh_cache / "scheme"
    assert all(p.stat().st_mtime_ns == time for p, time in finished.items())
