"""One look at a model's directory: each kind of broken or foreign one has a sentence of its own."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_bert, make_tiny_llama

from mlflow_degrade.core.errors import ModelError, UnsupportedModelError
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.source.resolve import resolve_model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 123456\n"
WEIGHTS, CONFIG = "model.safetensors", "config.json"

Change = Callable[[Path], object]


def _config(folder: Path, name: str = CONFIG, **changes: object) -> None:
    stated = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**stated, **changes}))


def _rename(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def _write(name: str, content: str | bytes = b"x" * 40) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def _cut(name: str, kept: float = 0.5) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(kept * len(data))])

    return change


def _without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def _both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def _quantized(method: str | None = None, **stated: object) -> Change:
    named = {} if method is None else {"quant_method": method}
    return lambda folder: _config(folder, quantization_config={**named, **stated})


def _weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def apply(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def _packed(name: str, tensor: torch.Tensor) -> Change:
    layer = "model.layers.0.mlp.up_proj."
    return _weights(lambda w: {**w, layer + name: tensor})


def _sharded(lost: str = "") -> Change:
    def change(folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / WEIGHTS).unlink()
        model.save_pretrained(folder, max_shard_size="100KB")
        if lost:
            (folder / sorted(p.name for p in folder.glob(lost))[0]).unlink()

    return change


def _adapter(folder: Path, kind: str = "LORA", base: str | None = "org/base-7b") -> None:
    stated = {"peft_type": kind, "base_model_name_or_path": base, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    save_file({"base_model.lora_A.weight": torch.zeros(4, 4)}, folder / "adapter_model.safetensors")


def _adapter_alone(kind: str = "LORA", base: str | None = "org/base-7b") -> Change:
    return _both(_without(CONFIG, WEIGHTS), lambda folder: _adapter(folder, kind, base))


def _pickled(name: str = "pytorch_model.bin", keep: bool = False) -> Change:
    def change(folder: Path) -> None:
        torch.save(load_file(folder / WEIGHTS), folder / name)
        if not keep:
            (folder / WEIGHTS).unlink()

    return change


def _pickled_module(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.save(AutoModelForCausalLM.from_pretrained(folder), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _added_tokens(*tokens: str, special: bool = False, **roles: str) -> Change:
    def change(folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(list(tokens), special_tokens=special)
        tokenizer.add_special_tokens(roles)
        tokenizer.save_pretrained(folder)

    return change


def _no_end(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        stated = json.loads((folder / name).read_text())
        (folder / name).write_text(
            json.dumps({k: v for k, v in stated.items() if k != "eos_token"})
        )


def _dangling(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/gone")

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "empty": (lambda f: [p.unlink() for p in f.iterdir()], "is an empty directory"),
    # adapters
    "lora": (_adapter_alone(), "is a LoRA adapter.*'org/base-7b'.*merge_and_unload"),
    "lora without a base": (_adapter_alone(base=None), "does not name its base"),
    "ia3": (_adapter_alone("IA3"), "is a IA3 adapter.*merge"),
    "prompt tuning": (_adapter_alone("PROMPT_TUNING"), "cannot be merged"),
    "adapter without config": (
        _both(_adapter_alone(), _without("adapter_config.json")),
        r"without its adapter_config\.json",
    ),
    "adapter beside a base": (_adapter, "a LoRA adapter.*in one directory.*give .*safetensors"),
    "adapter beside config": (_both(_without(WEIGHTS), _adapter), "is a LoRA adapter"),
    # shards
    "missing shard": (_sharded("model-00002*"), "names 5 files, of which 1 is not.*model-00002"),
    "no index": (_sharded("*.index.json"), r"of 5 files of weights, but not model\.safetensors\.i"),
    "pointer shard": (
        _both(_sharded(), _write("model-00003-of-00005.safetensors", POINTER)),
        "model-00003.* is a Git LFS pointer",
    ),
    "index that is none": (
        _both(_sharded(), _write("model.safetensors.index.json", "[]")),
        "holds no JSON object",
    ),
    # files that are not what they are called
    "pointer": (_write(WEIGHTS, POINTER), "Git LFS pointer.*123,456 bytes.*git lfs pull"),
    "pointer tokenizer": (_write("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
    "pointer config": (_write(CONFIG, POINTER), "config.json is a Git LFS pointer"),
    "pointer bin": (
        _both(_without(WEIGHTS), _write("pytorch_model.bin", POINTER)),
        "pytorch_model.bin is a Git LFS pointer",
    ),
    "annex": (_write(WEIGHTS, "/annex/objects/SHA256E-s12--ab.safetensors\n"), "git annex get"),
    "web page": (_write(WEIGHTS, "<!DOCTYPE html><html>log in</html>"), "is a web page"),
    "empty file": (_write(WEIGHTS, b""), r"is empty \(0 bytes\)"),
    "link to nothing": (_dangling(WEIGHTS), "link to a file that does not exist"),
    "tokenizer link": (_dangling("tokenizer.json"), "link to a file that does not exist"),
    "cut off": (_cut(WEIGHTS), "is cut off: its header describes"),
    "cut off in its header": (_cut(WEIGHTS, 0.001), "cut off within its header"),
    "too long": (lambda f: (f / WEIGHTS).open("ab").write(b"xx"), "bytes after its end"),
    "no safetensors": (_write(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), "no safetensors file"),
    "cut off pickle": (_both(_pickled(), _cut("pytorch_model.bin")), "is cut off"),
    "no pickle": (
        _both(_without(WEIGHTS), _write("pytorch_model.bin", b"\0" * 2000)),
        "was not written by torch.save",
    ),
    "whole module": (_pickled_module, "cannot be read as tensors alone.*save_pretrained"),
    "config no json": (_write(CONFIG, "{"), "config.json is no JSON"),
    "config with a byte order mark": (
        lambda f: (f / CONFIG).write_text("\ufeff" + (f / CONFIG).read_text()),
        "config.json is no JSON",
    ),
    "config a list": (_write(CONFIG, "[]"), "holds no JSON object"),
    "no model_type": (
        lambda f: (f / CONFIG).write_text('{"architectures": ["LlamaForCausalLM"]}'),
        "names no model_type",
    ),
    # quantized by others
    "gptq": (_quantized("gptq", bits=4, group_size=128), r"already \(GPTQ, 4 bits, by quantiz"),
    "awq": (_quantized("awq", bits=4, version="gemm"), r"already \(AWQ, 4 bits"),
    "bitsandbytes": (
        _quantized("bitsandbytes", load_in_4bit=True),
        r"already \(bitsandbytes, 4 bits.*dequantize",
    ),
    "bitsandbytes unnamed": (_quantized(load_in_8bit=True), r"\(bitsandbytes, 8 bits"),
    "compressed": (_quantized("compressed-tensors", config_groups={}), "run_compressed=False"),
    "compressed unnamed": (_quantized(config_groups={}), "compressed-tensors"),
    "fp8": (_quantized("fp8", weight_block_size=[128, 128]), r"already \(fp8,"),
    "hqq": (_quantized("hqq", quant_config={}), r"already \(HQQ"),
    "aqlm": (_quantized("aqlm", nbits_per_codebook=16), r"already \(AQLM"),
    "mlx": (lambda f: _config(f, quantization={"group_size": 64, "bits": 4}), "MLX, 4 bits"),
    "unknown method": (_quantized("next-year"), r"already \(next-year"),
    "base in the card": (
        _both(
            _quantized("gptq", bits=4),
            _write("README.md", "---\nlicense: mit\nbase_model:\n- org/float-7b\n---\n# A model\n"),
        ),
        "Give the float model, org/float-7b",
    ),
    "gptq by its tensors": (
        _both(
            _packed("qweight", torch.zeros(8, 64, dtype=torch.int32)),
            lambda f: _config(f, "quantize_config.json", bits=4),
        ),
        r"GPTQ, by its quantize_config\.json",
    ),
    "packed": (_packed("weight_packed", torch.zeros(8, 8, dtype=torch.int32)), "compressed-tens"),
    "absmax": (_packed("weight.absmax", torch.zeros(8)), "bitsandbytes, 4 bits, by its tensors"),
    "scales of fp8": (_packed("weight_scale_inv", torch.ones(1, 1)), "fp8 with block scales"),
    "fp8 alone": (
        _weights(lambda w: {k: v.to(torch.float8_e4m3fn) for k, v in w.items()}),
        r"already \(fp8, by its tensors",
    ),
    "integers": (
        _weights(lambda w: {k: v.to(torch.int8) if v.ndim > 1 else v for k, v in w.items()}),
        r"already \(integers, by its tensors",
    ),
    # other frameworks and layouts
    "tensorflow": (_rename(WEIGHTS, "tf_model.h5"), "TensorFlow weights.*from_tf=True"),
    "flax": (_rename(WEIGHTS, "flax_model.msgpack"), "Flax weights.*from_flax=True"),
    "tf checkpoint": (_rename(WEIGHTS, "model.ckpt.index"), "TensorFlow weights"),
    "original": (_rename(WEIGHTS, "consolidated.00.pth"), "original layout"),
    "mistral": (_rename(WEIGHTS, "consolidated.safetensors"), "original layout"),
    "deepspeed": (
        _both(_without(WEIGHTS), lambda f: (f / "global_step500").mkdir()),
        "sharded training checkpoint.*zero_to_fp32",
    ),
    "openvino": (
        _both(_rename(WEIGHTS, "openvino_model.bin"), _write("openvino_model.xml")),
        "for another runtime",
    ),
    "mlx arrays": (_rename(WEIGHTS, "weights.npz"), "NumPy or MLX"),
    "hqq file": (_rename(WEIGHTS, "qmodel.pt"), "HQQ"),
    "variant": (_rename(WEIGHTS, "model.fp16.safetensors"), "under a name.*name the file itself"),
    "pickle": (_both(_pickled("model.pt")), "a pickle.*save_pretrained"),
    "only training states": (
        _both(_rename(WEIGHTS, "optimizer.pt"), _write("training_args.bin")),
        "lacks weights",
    ),
    "diffusers": (
        _both(_without(CONFIG, WEIGHTS), _write("model_index.json", "{}")),
        "pipeline of diffusers",
    ),
    # tokens
    "tokenizer that is none": (_write("tokenizer.json", "{}"), "no tokenizer that transformers"),
    "no end token": (_no_end, r"no end-of-text token.*'<\|endoftext\|>' as generation_config"),
    "rows too few": (lambda f: _config(f, vocab_size=300), "beyond the 300 rows"),
    "added word": (_added_tokens("<think>"), "1 tokens beyond.*'<think>'.*resize_token_embedd"),
    "added bos": (_added_tokens(bos_token="<s>"), "'<s>'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence_that_helps(
    case: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    change, said = REFUSED[case]
    folder = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, folder)
    change(folder)
    with pytest.raises(ModelError, match=f"(?s){said}") as caught:
        resolve_model(str(folder), progress=False)
    assert str(folder) in str(caught.value)  # says which model
    assert "\n" not in str(caught.value).strip()


ACCEPTED: dict[str, Change] = {
    "shards": _sharded(),
    "pickle": _pickled(),
    # Models are published whose tokenizers mark padding or images by ids that have no row.
    "marker beyond": _added_tokens("<image>", special=True),
    "pad beyond": _added_tokens(pad_token="[PAD]"),
    "null quantization": lambda f: _config(f, quantization_config=None),
    "half": _weights(lambda w: {k: v.half() for k, v in w.items()}),
    "bfloat16": _weights(lambda w: {k: v.bfloat16() for k, v in w.items()}),
    "training states": _both(_write("training_args.bin"), _write("optimizer.pt")),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_whole_models_are_accepted(case: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, folder)
    ACCEPTED[case](folder)
    found = resolve_model(str(folder), progress=False)
    assert (found.layout, found.path, found.notes) == ("transformers", folder, ())


def test_an_encoder_needs_no_end_token_but_its_padding_has_a_row(tmp_path: Path) -> None:
    folder = make_tiny_bert(tmp_path / "bert")
    assert resolve_model(str(folder), progress=False).layout == "transformers"
    _added_tokens(pad_token="<pad>")(folder)
    with pytest.raises(ModelError, match="'<pad>'"):
        resolve_model(str(folder), progress=False)


def test_a_model_below_is_named(tiny_llama_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama_dir, tmp_path / "run" / "checkpoint-500")
    with pytest.raises(ModelError, match=r"There is one in .*checkpoint-500: give that one"):
        resolve_model(str(tmp_path / "run"))
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / ("1" * 40)
    shutil.copytree(tiny_llama_dir, snapshot)
    with pytest.raises(ModelError, match=f"There is one in {snapshot}"):
        resolve_model(str(tmp_path / "models--org--tiny"))


# --- more than one model in a directory ----------------------------------------------------------


def _graph(export: Path, target: Path, name: str = "model.onnx") -> Path:
    """An export as somebody else's: one ONNX file under any name, without a manifest."""
    target.mkdir(exist_ok=True)
    model = onnx.load(export / "model.onnx")
    for tensor in model.graph.initializer:
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
    onnx.save(model, target / name)
    return target / name


@pytest.fixture
def both(tiny_llama_dir: Path, tiny_export: Path, tmp_path: Path) -> Path:
    """Weights, and the ONNX file that was exported from them."""
    folder = tmp_path / "both"
    shutil.copytree(tiny_llama_dir, folder)
    _graph(tiny_export, folder)
    return folder


def test_an_onnx_file_of_the_weights_beside_it_is_taken_and_said(
    both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = resolve_model(str(both))
    assert (found.layout, found.path) == ("onnx", both)
    assert "model.onnx is taken, not model.safetensors beside it: its 15 matr" in found.notes[0]
    assert capsys.readouterr().err.count(found.notes[0]) == 1
    resolve_model(str(both))
    assert found.notes[0] not in capsys.readouterr().err  # said once
    manifest = json.loads((export_onnx(found, progress=False) / "degrade.json").read_text())
    assert manifest["source"]["notes"] == list(found.notes)


LAYER = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {k: v + 0.5 for k, v in w.items()},  # trained on
        lambda w: {**w, LAYER: w[LAYER] + torch.eye(64) * 1e-3},  # one matrix, e.g. a merged LoRA
        lambda w: {**w, "model.norm.weight": w["model.norm.weight"] * 1.01},
        lambda w: {**w, LAYER.replace("1", "2"): w[LAYER] + 1},  # more layers
    ],
)
def test_an_onnx_file_of_other_weights_asks(
    both: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    _weights(change)(both)
    with pytest.raises(ModelError, match="two models") as caught:
        resolve_model(str(both))
    for name in ("model.onnx", "model.safetensors"):
        assert str(both / name) in str(caught.value)


def test_the_file_that_is_named_is_the_model(both: Path, tmp_path: Path) -> None:
    _weights(lambda w: {k: v * 1.01 for k, v in w.items()})(both)
    graph = resolve_model(str(both / "model.onnx"), progress=False)
    assert (graph.layout, graph.path) == ("onnx", both)
    weights = resolve_model(str(both / WEIGHTS), progress=False)
    assert weights.layout == "transformers"
    assert not (weights.path / "model.onnx").exists()
    # The same digest as the same files by themselves: nothing that was done is done again.
    (both / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    assert resolve_model(str(both), progress=False).digest == weights.digest


def test_half_precision_copies_are_the_same_weights(both: Path) -> None:
    _weights(lambda w: {k: v.bfloat16() for k, v in w.items()})(both)
    assert resolve_model(str(both), progress=False).layout == "onnx"


def test_what_cannot_be_compared_asks(both: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(both / "model.onnx", both / "q.onnx", weight_type=QuantType.QInt8)
    (both / "q.onnx").replace(both / "model.onnx")
    with pytest.raises(ModelError, match=r"quantized, so that they cannot.*naming the file"):
        resolve_model(str(both))


def test_a_pointer_beside_good_files(both: Path) -> None:
    (both / "model.onnx").write_text(POINTER)
    found = resolve_model(str(both), progress=False)
    assert found.layout == "transformers"
    assert "safetensors is taken: model.onnx is a Git LFS pointer" in found.notes[0]
    (both / WEIGHTS).write_text(POINTER)
    with pytest.raises(ModelError, match="Git LFS pointer"):
        resolve_model(str(both))


def test_weights_in_two_formats(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, folder)
    _pickled(keep=True)(folder)
    found = resolve_model(str(folder), progress=False)
    assert found.notes == (
        "model.safetensors is taken, not pytorch_model.bin beside it: it holds the same numbers",
    )
    _weights(lambda w: {**w, LAYER: w[LAYER] * 1.01})(folder)
    with pytest.raises(ModelError, match=f"two models.*differ, e.g. in {LAYER}") as caught:
        resolve_model(str(folder))
    assert str(folder / "pytorch_model.bin") in str(caught.value)
    pickle = resolve_model(str(folder / "pytorch_model.bin"), progress=False)
    assert [p.name for p in pickle.path.glob("*.bin")] == ["pytorch_model.bin"]
    assert not (pickle.path / WEIGHTS).exists()
    assert resolve_model(str(folder / WEIGHTS), progress=False).digest != pickle.digest


def test_shards_beside_one_file(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, folder)
    _sharded()(folder)
    old = make_tiny_llama(tmp_path / "old", seed=5)
    shutil.copy(old / WEIGHTS, folder)
    with pytest.raises(ModelError, match=r"model\.safetensors .*and model\.safetensors\.index"):
        resolve_model(str(folder))
    found = resolve_model(str(folder / "model-00002-of-00005.safetensors"), progress=False)
    assert len(list(found.path.glob("*.safetensors"))) == 5


def test_a_base_is_taken_without_the_adapter_beside_it(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, folder)
    _adapter(folder)
    found = resolve_model(str(folder / WEIGHTS), progress=False)
    assert not list(found.path.glob("adapter*"))
    with pytest.raises(ModelError, match="LoRA adapter"):
        resolve_model(str(folder / "adapter_model.safetensors"))


def test_a_variant_is_read_by_its_name(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, folder)
    _rename(WEIGHTS, "model.fp16.safetensors")(folder)
    found = resolve_model(str(folder / "model.fp16.safetensors"), progress=False)
    assert (found.path / WEIGHTS).is_file()


# --- ONNX files ----------------------------------------------------------------------------------


@pytest.fixture
def companions(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """Config and tokenizer, no weights."""
    folder = tmp_path / "hub"
    shutil.copytree(tiny_llama_dir, folder)
    (folder / WEIGHTS).unlink()
    return folder


def test_the_subfolder_of_repositories(companions: Path, tiny_export: Path) -> None:
    _graph(tiny_export, companions / "onnx")
    _graph(tiny_export, companions / "onnx", "model_fp16.onnx")
    found = resolve_model(str(companions), progress=False)
    assert found.layout == "onnx"
    assert found.notes == ("onnx/model.onnx is taken; not read: onnx/model_fp16.onnx",)
    assert {"model.onnx", CONFIG, "tokenizer.json"} <= {p.name for p in found.path.iterdir()}
    named = resolve_model(str(companions / "onnx" / "model_fp16.onnx"), progress=False)
    assert named.layout == "onnx"
    assert named.notes == ()
    made = export_onnx(named, progress=False)
    assert json.loads((made / "degrade.json").read_text())["scheme"] == "given"


def test_an_export_with_weights_in_a_file_of_their_own(companions: Path, tiny_export: Path) -> None:
    (companions / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(tiny_export / name, companions / "onnx")
    found = resolve_model(str(companions), progress=False)
    assert (found.path / "model.onnx.data").is_file()
    data = companions / "onnx" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.onnx\.data is cut off"):
        resolve_model(str(companions))
    data.unlink()
    with pytest.raises(ModelError, match=r"keeps its weights in model\.onnx\.data, which is not"):
        resolve_model(str(companions))


def test_onnx_files_beside_weights_are_said(
    tiny_llama_dir: Path, tiny_export: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, folder)
    _graph(tiny_export, folder, "model_quantized.onnx")
    found = resolve_model(str(folder), progress=False)
    assert found.layout == "transformers"
    assert found.notes == ("model.safetensors is taken; not read: model_quantized.onnx",)


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        (["model_quantized.onnx"], ModelError, "only model_quantized.onnx. Name the file itself"),
        (["model_fp16.onnx", "model_q4.onnx"], ModelError, "only model_fp16.onnx, model_q4.onnx"),
        (["decoder_model_merged.onnx"], UnsupportedModelError, "merged decoder"),
        (
            ["decoder_model.onnx", "decoder_with_past_model.onnx"],
            UnsupportedModelError,
            "the parts, or the merged decoder",
        ),
    ],
)
def test_other_onnx_files_alone(
    names: list[str],
    error: type[ModelError],
    said: str,
    companions: Path,
    tiny_export: Path,
) -> None:
    for name in names:
        _graph(tiny_export, companions, name)
    with pytest.raises(error, match=said):
        resolve_model(str(companions))


def test_a_merged_decoder_under_any_name(companions: Path, tiny_export: Path) -> None:
    file = _graph(tiny_export, companions)
    model = onnx.load(file)
    switch = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    model.graph.input.append(switch)
    onnx.save(model, file)
    with pytest.raises(ModelError, match="is a merged decoder"):
        resolve_model(str(companions))


@pytest.mark.parametrize("content", [POINTER.encode(), b"", b"\xff" * 64])
def test_an_onnx_file_that_is_none(content: bytes, companions: Path) -> None:
    (companions / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"LFS pointer|is empty|no ONNX model"):
        resolve_model(str(companions))


# --- before the export ---------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_found_before_the_export(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optimum.exporters.onnx

    folder = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, folder)
    _weights(lambda w: {f"_orig_mod.{k}": v for k, v in w.items()})(folder)

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the export has begun")

    monkeypatch.setattr(optimum.exporters.onnx, "main_export", too_late)
    with pytest.raises(ModelError, match=r"begin with '_orig_mod\.'"):
        export_onnx(resolve_model(str(folder)), progress=False)
