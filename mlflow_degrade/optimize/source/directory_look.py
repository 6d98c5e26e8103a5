"""One look at the directory of a model before any work: what is in it, and what is wrong with it.

Models come as adapters, as pointers that git left, with shards missing, quantized by somebody else,
or as files of other frameworks. Libraries answer each of these somewhere in the middle of their
work, in words of their own. Here every kind is a sentence that says what was found and what helps.
Headers are read, no weights, except where two files may be two models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.cache import MANIFEST_FILE, cached_directory
from ...core.errors import ModelError, UnsupportedModelError
from ...engine.family import MODULES_FILE, is_decoder, require_text_model
from ...engine.tokenization import EncoderText, TextEncoder
from ..onnx_graph.files import GRAPH_FILE
from ..onnx_graph.packed_weights import CONFIG, named_base, refuse_quantized
from .gguf_files import GGUF, converted
from .model_directory import (
    TOKENIZER_FILES,
    has_tokenizer,
    missing_files,
    module_files,
)
from .onnx_choice import (
    BUILT,
    SUBFOLDER,
    built_graph,
    changed,
    compare_weights,
    damaged_graph,
    find_graphs,
    refuse_other_graphs,
    staged_graph,
)
from .quantized_checkpoints import multiplied_out
from .weight_files import (
    Weights,
    damage,
    damaged_json,
    find_weights,
    is_named,
    listed,
    lone_shards,
    read_object,
)

# What is no model by itself, or one for other frameworks: adapters, TensorFlow, Flax, pickles.

ADAPTER = "adapter_config.json"
"""Where peft describes an adapter."""

# What other frameworks and tools leave, and what helps: patterns, most telling first.
_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("tf_model.h5", "tf_model*.h5", "*.ckpt.index", "model.ckpt*", "saved_model.pb", "*.keras"),
        "TensorFlow weights",
        "Convert them where TensorFlow and transformers 4 are installed: "
        "from_pretrained(DIR, from_tf=True), then save_pretrained.",
    ),
    (("model_index.json",), "a pipeline of diffusers", "Nothing here scores images."),
    (
        ("flax_model*.msgpack",),
        "Flax weights",
        "Convert them where Flax and transformers 4 are installed: "
        "from_pretrained(DIR, from_flax=True), then save_pretrained.",
    ),
    (
        ("consolidated*.pth", "consolidated*.safetensors", "params.json"),
        "weights in the original layout of their authors",
        "Convert them with the script of transformers for this model (convert_…_weights_to_hf.py), "
        "or take the repository in transformers' layout.",
    ),
    (
        ("global_step*", "zero_to_fp32.py", "*_optim_states.pt", "mp_rank_*", "pytorch_model_fsdp*",
         "*.distcp", "__0_0.distcp"),
        "a sharded training checkpoint (DeepSpeed, FSDP or Megatron)",
        "Put it together first (zero_to_fp32.py for DeepSpeed, 'accelerate merge-weights' for "
        "FSDP), then save_pretrained.",
    ),
    (
        ("openvino_model*.xml", "*.mlpackage", "*.mlmodel", "*.tflite", "*.engine", "*.plan",
         "rust_model.ot", "*.nemo", "*.llamafile"),
        "a model compiled or converted for another runtime",
        "It cannot be turned back: give the PyTorch model that it was made from.",
    ),
    (
        ("qmodel.pt",),
        "weights quantized by HQQ",
        "A scheme and its baseline start from float weights: give the model they were made from.",
    ),
    (
        ("weights*.npz", "*.npz"),
        "arrays of NumPy or MLX",
        "Convert them to a transformers directory first, or give the model they were made from.",
    ),
    (
        ("*.safetensors",),
        "weights under a name that transformers does not look for",
        "If its tensors are named as transformers names them, name the file itself as the model.",
    ),
    (
        ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle"),
        "a pickle, not a directory that save_pretrained wrote",
        "Load it where its code is and save the model with save_pretrained; if it is a state dict "
        "named as transformers names it, name the file itself as the model.",
    ),
)  # fmt: skip
# Pickles that a training leaves beside its model.
_NO_MODELS = {
    "optimizer.bin", "optimizer.pt", "rng_state.pth", "scaler.pt", "scheduler.bin", "scheduler.pt",
    "training_args.bin",
}  # fmt: skip
# Adapters that put learned tokens in front of a prompt, and change no weight.
_PROMPT_ADAPTERS = {
    "ADAPTION_PROMPT", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
    "PROMPT_TUNING",
}  # fmt: skip


def refuse_adapter(folder: Path, name: str) -> None:
    """An adapter is no model: alone it lacks its base, beside one it is not said what is meant."""
    weights = sorted(p.name for p in folder.glob("adapter_model*"))
    if not (folder / ADAPTER).is_file():
        if weights and not find_weights(folder):
            raise ModelError(
                f"{name} holds an adapter ({listed(weights)}) without its {ADAPTER}: copy that as "
                "well, merge the adapter into its base, and give the result."
            )
        return
    stated = read_object(folder / ADAPTER)
    keys = ("base_model_name_or_path", "model_name")  # peft, adapters
    base = next((stated[key] for key in keys if stated.get(key)), None) or named_base(folder)
    kind = str(stated.get("peft_type") or "LORA").replace("LORA", "LoRA")
    merge = (
        "merge it: PeftModel.from_pretrained(base, "
        f"{str(folder)!r}).merge_and_unload().save_pretrained(OUT), the tokenizer beside it, and "
        "give OUT"
    )
    if find_weights(folder):
        raise ModelError(
            f"{name} holds a model ({find_weights(folder)[0].head.name}) and a {kind} adapter "
            f"({ADAPTER}, of {base or 'an unnamed base'}) in one directory, and does not say "
            f"whether the adapter belongs on top. If it does, {merge}; to take the model without "
            f"it, give {find_weights(folder)[0].head}."
        )
    whose = f"its base is {str(base)!r}" if base else f"{ADAPTER} does not name its base"
    if kind in _PROMPT_ADAPTERS:
        raise UnsupportedModelError(
            f"{name} is a {kind} adapter, not a model: {whose}. It puts learned vectors before the "
            "prompt, which cannot be merged into weights; nothing here reads it."
        )
    raise ModelError(f"{name} is a {kind} adapter, not a model: {whose}. Load the base, {merge}.")


def refuse_other_formats(folder: Path, name: str) -> None:
    """Name what lies in a folder without weights that are read, and how to convert it."""
    for patterns, what, remedy in _OTHERS:
        names = {p.name for pattern in patterns for p in folder.glob(pattern)} - _NO_MODELS
        if names:
            raise UnsupportedModelError(
                f"{name} holds {what} ({listed(names)}), and none that is read: "
                f"model.safetensors, pytorch_model.bin, their shards, or {GRAPH_FILE}. {remedy}"
            )


Layout = Literal["transformers", "onnx"]

_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md")


@dataclass(frozen=True)
class Found:
    """A directory that holds a model."""

    layout: Layout
    # The directory to read: the one that was given, or one in the cache with what was chosen.
    path: Path
    notes: tuple[str, ...] = ()  # What else was there, and why it was not taken.


def look(folder: Path, name: str, chosen: Path | None = None) -> Found:
    """Say what a directory holds, or refuse it with a sentence that helps."""
    if chosen is None and not missing_files(folder):
        # Made by this package: a digest covers every file, and is compared by whoever reads it.
        return Found("onnx", folder)
    with _called(name):
        return _look(folder, name, chosen)


@contextmanager
def _called(name: str) -> Iterator[None]:
    """Say which model an error is about, where it does not."""
    try:
        yield
    except ModelError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def _look(folder: Path, name: str, chosen: Path | None) -> Found:
    _refuse_empty(folder, name)
    _refuse_damaged_texts(folder)
    if chosen is not None and chosen.suffix == GGUF:
        return _from_gguf(chosen)
    if chosen is None or chosen.name.startswith("adapter_model"):
        refuse_adapter(folder, name)
    if (folder / CONFIG).is_file():
        require_text_model(folder, name)  # one of images has no tokenizer, and is not incomplete
    found = _built(folder, chosen) or _unquantized(_choice(folder, name, chosen))
    _refuse_unfit(found, name)
    return found


def _built(folder: Path, chosen: Path | None) -> Found | None:
    """What onnxruntime-genai's builder made, with a config as the engine reads it."""
    if find_weights(folder) or (built := built_graph(folder)) is None:
        return None
    file, config = built
    if chosen is not None and chosen != file:
        return None
    _refuse(damaged_graph(file))
    note = f"its config is made of {BUILT}, which onnxruntime-genai's builder wrote"
    return Found("onnx", staged_graph(file, folder, config), (note,))


def _unquantized(found: Found) -> Found:
    """Floats instead of weights that another library has quantized, where they can be read."""
    if found.layout != "transformers" or not (found.path / CONFIG).is_file():
        return found
    weights = find_weights(found.path)[0]
    _refuse(weights.damage)
    made = multiplied_out(found.path, read_object(found.path / CONFIG), weights)
    return found if made is None else Found("transformers", made[0], (*found.notes, made[1]))


def require_readable(folder: Path, name: str) -> None:
    """Refuse a directory that another library reads, where its files are damaged or missing."""
    # What only this package does not read is left to that library: adapters, packed weights.
    with _called(name):
        _refuse_empty(folder, name)
        _refuse_damaged_texts(folder)
        for weights in find_weights(folder)[:1]:
            _refuse(weights.damage)
        if not find_weights(folder):
            _refuse(lone_shards(folder))


def _choice(folder: Path, name: str, chosen: Path | None) -> Found:
    """Which of the files in a directory are the model."""
    graphs, weights = find_graphs(folder), find_weights(folder)
    root = next((p for p in graphs if p == folder / GRAPH_FILE), None)
    if chosen is not None:
        return _named(folder, chosen, weights)
    if root is not None and weights:
        return _of_both(folder, root, weights, name)
    if root is None and not weights:
        return _of_neither(folder, graphs, name)
    if root is not None:
        _refuse(damaged_graph(root))
        return Found("onnx", folder, _unread(folder, [p for p in graphs if p != root], root.name))
    kept, notes = _agreed(weights, name)
    beside = [*graphs, *folder.glob(f"*{GGUF}")]
    return Found("transformers", folder, (*notes, *_unread(folder, beside, kept.head.name)))


def _named(folder: Path, chosen: Path, weights: tuple[Weights, ...]) -> Found:
    """The file that the user named, alone."""
    if chosen.suffix == ".onnx":
        _refuse(damaged_graph(chosen))
        if chosen == folder / GRAPH_FILE:
            return Found("onnx", folder)
        return Found("onnx", staged_graph(chosen, folder))
    taken = next((w for w in weights if chosen in (w.head, *w.files)), None)
    # A shard stands for its index; the index is found even beside a single file.
    own = taken or Weights(chosen)
    _refuse(own.damage)
    alone = [w.head for w in weights] == [own.head]
    if alone and not (folder / GRAPH_FILE).exists() and not (folder / ADAPTER).exists():
        return Found("transformers", folder)
    return Found("transformers", _staged_weights(folder, own))


def _staged_weights(folder: Path, weights: Weights) -> Path:
    """A folder in the cache that links to some of a folder's weights, and to what is no weights."""
    companions = {p for pattern in _COMPANIONS for p in folder.glob(pattern) if p.is_file()}
    companions -= {p for p in companions if p.name.endswith(".index.json")}
    companions -= {folder / MANIFEST_FILE, folder / ADAPTER}
    modules = [folder / module for module in module_files(folder)]
    files = sorted({*companions, *modules, *weights.files, weights.head})
    stated = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    single = weights.head.suffix != ".json"
    standard = "model.safetensors" if weights.head.suffix == ".safetensors" else "pytorch_model.bin"

    def fill(target: Path) -> None:
        for file in files:
            place = target / file.relative_to(folder)
            if single and file == weights.head:
                place = target / standard
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(file.absolute())

    return cached_directory("weights", ["weights", 1, str(weights.head), stated], fill)


def _of_both(folder: Path, root: Path, weights: tuple[Weights, ...], name: str) -> Found:
    """A ``model.onnx`` and weights: taken where they are one model, asked where they may be two."""
    if problem := damage(root):
        if weights[0].damage is None:
            kept, notes = _agreed(weights, name)
            return Found("transformers", folder, (*notes, f"{kept.head.name} is taken: {problem}"))
        _refuse(problem)
    head = weights[0].head
    if problem := weights[0].damage:
        raise ModelError(
            f"{name}: {problem} {GRAPH_FILE} lies beside it and cannot be compared with it; to "
            f"take that, give {root} as the model."
        )
    kept, notes = _agreed(weights, name)
    found = compare_weights(root, kept)
    if found.same:
        return Found(
            "onnx",
            folder,
            (*notes, f"{GRAPH_FILE} is taken, not {head.name} beside it: {found.why}"),
        )
    raise ModelError(
        f"{name} holds two models, as far as can be told: {GRAPH_FILE} (written "
        f"{changed(root)}) and {head.name} (written {changed(kept.files[0])}). Of {GRAPH_FILE}: "
        f"{found.why}. Say which is meant by naming the file as the model: {root} or {head}."
    )


def _of_neither(folder: Path, graphs: tuple[Path, ...], name: str) -> Found:
    """A folder with neither ``model.onnx`` nor weights that transformers would read."""
    _refuse(lone_shards(folder))
    inner = next((p for p in graphs if p == folder / SUBFOLDER / GRAPH_FILE), None)
    if inner is not None:
        _refuse(damaged_graph(inner))
        own = (inner.parent / CONFIG).is_file()
        if not own and not (folder / CONFIG).is_file():
            _refuse_incomplete(folder, name)
        where = inner.parent if own else folder
        others = [p for p in graphs if p != inner]
        notes = _unread(folder, others, f"{SUBFOLDER}/{GRAPH_FILE}")
        return Found("onnx", staged_graph(inner, where), notes)
    files = sorted(p for p in folder.glob(f"*{GGUF}") if "mmproj" not in p.name)
    if len(files) == 1:
        return _from_gguf(files[0])
    if files:
        raise ModelError(
            f"{name} holds {len(files)} GGUF files ({listed(p.name for p in files)}). Say which is "
            f"meant by naming the file as the model, e.g. {files[0]}; of one in parts, put the "
            "parts together first (gguf-split --merge)."
        )
    if graphs:
        refuse_other_graphs(name, graphs, folder)
    refuse_other_formats(folder, name)
    _refuse_incomplete(folder, name)
    raise AssertionError("a folder without weights is incomplete")


def _from_gguf(file: Path) -> Found:
    _refuse(damage(file))
    path = converted(file)
    note = (
        f"{file.name} is a GGUF file: its weights, rounded as they are, are brought to float32, so "
        "that the baseline is already quantized once"
    )
    return Found("transformers", path, (note,))


def _agreed(weights: tuple[Weights, ...], name: str) -> tuple[Weights, list[str]]:
    """The weights that transformers takes, if all that lie there hold the same numbers."""
    taken, *others = weights
    _refuse(taken.damage)
    notes = []
    for other in others:
        why, differing = other.damage, None
        if why is None:
            try:
                why, differing = "it holds the same numbers", taken.difference(other)
            except ModelError as error:
                why = str(error)
        if differing is not None:
            raise ModelError(
                f"{name} holds two models: {taken.head.name} (written {changed(taken.files[0])}) "
                f"and {other.head.name} (written {changed(other.files[0])}) differ, e.g. in "
                f"{differing}. Say which is meant by naming the file as the model: {taken.head} or "
                f"{other.head}."
            )
        notes.append(f"{taken.head.name} is taken, not {other.head.name} beside it: {why}")
    return taken, notes


def _unread(folder: Path, others: list[Path], taken: str) -> tuple[str, ...]:
    names = listed(path.relative_to(folder).as_posix() for path in others)
    return (f"{taken} is taken; not read: {names}",) if others else ()


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise ModelError(problem)


def _refuse_empty(folder: Path, name: str) -> None:
    if not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir()):
        raise ModelError(
            f"{name} is an empty directory: {folder} holds no file. Save model and tokenizer into "
            "it with save_pretrained, or give another."
        )


def _refuse_damaged_texts(folder: Path) -> None:
    """Config and tokenizer files that are pointers, empty or no JSON."""
    for file in (CONFIG, ADAPTER, "generation_config.json", "tokenizer_config.json"):
        if is_named(folder / file):
            _refuse(damaged_json(folder / file))
    for path in filter(is_named, (folder / name for name in TOKENIZER_FILES)):
        _refuse(damage(path))


def _refuse_unfit(found: Found, name: str) -> None:
    """Everything that a directory with a model of either layout has to have."""
    folder = found.path
    if not (folder / CONFIG).is_file():
        _refuse_incomplete(folder, name)
    config = read_object(folder / CONFIG)
    if found.layout == "transformers":
        weights = find_weights(folder)[0]
        _refuse(weights.damage)
        refuse_quantized(folder, config, weights, name)
        if not config.get("model_type"):
            raise ModelError(
                f"{name}: config.json names no model_type, so that nothing tells how its weights "
                "are to be read: copy the config that save_pretrained wrote, or add the key."
            )
    if not has_tokenizer(folder):
        _refuse_incomplete(folder, name)
    _check_tokenizer(folder, config, name)


def _refuse_incomplete(folder: Path, name: str) -> None:
    """Name what is missing, and where it may be."""
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    if not find_weights(folder) and not find_graphs(folder):
        missing.append("weights (*.safetensors or pytorch_model*.bin)")
    if not has_tokenizer(folder):
        missing.append("a tokenizer (tokenizer.json)")
    if (folder / MODULES_FILE).is_file() and CONFIG in missing:
        raise ModelError(
            f"{name} is in an old layout of sentence-transformers, whose weights have a folder of "
            "their own: SentenceTransformer(DIR).save(OUT) with a current version puts them beside "
            "modules.json."
        )
    inner = sorted(
        p.parent for depth in ("*", "*/*", "*/*/*") for p in folder.glob(f"{depth}/{CONFIG}")
    )
    inner = [path for path in inner if find_weights(path) or find_graphs(path)]
    if inner and CONFIG in missing:
        newest = max(inner, key=lambda path: (path / CONFIG).stat().st_mtime)
        count = "is one" if len(inner) == 1 else f"are {len(inner)} below it, the newest"
        raise ModelError(
            f"{name} is not a model's own directory: {folder} lacks {', '.join(missing)}. There "
            f"{count} in {newest}: give that one."
        )
    raise ModelError(
        f"{name} is not a complete model: {folder} lacks {', '.join(missing)}. Save model and "
        "tokenizer with save_pretrained into the same directory."
    )


def _check_tokenizer(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """Load it, and see that the embedding has a row for what it can say."""
    from ...core.progress import quiet_work

    with quiet_work(f"Reading the tokenizer of {name}", progress=False):
        if is_decoder(folder):
            tokenizer = TextEncoder(folder).tokenizer
        else:
            tokenizer = EncoderText(folder, dict(config)).tokenizer
    rows = config.get("vocab_size") or dict(config.get("text_config") or {}).get("vocab_size")
    if not isinstance(rows, int):
        return
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    # Markers that no text is made of, such as a padding token or one for images, may lie there:
    # several published models have such. What begins or ends texts, or a chat, may not.
    template = str(tokenizer.chat_template or "")
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.cls_token}
    used |= {tokenizer.sep_token, tokenizer.mask_token}
    if not is_decoder(folder):
        used.add(tokenizer.pad_token)  # what fills up a batch is read, and masked
    marks = set(tokenizer.all_special_tokens) | {
        str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
    }
    reached = {
        token: i
        for token, i in beyond.items()
        if token not in marks or token in used or token in template
    }
    if reached:
        token, index = max(reached.items(), key=lambda item: item[1])
        raise ModelError(
            f"{name}: the tokenizer has {len(reached)} tokens beyond the {rows:,} rows of the "
            f"model's embedding (vocab_size in config.json), e.g. {token!r} with id {index:,}: a "
            "text with one of them cannot be read. Take the tokenizer that belongs to the model, "
            "or, where tokens were added, call resize_token_embeddings(len(tokenizer)) before "
            "training and save both again."
        )
