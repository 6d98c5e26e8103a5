"""Turn a GGUF file into a directory that Transformers loads.

Transformers can read GGUF files itself, but the tokenizer it derives puts a BOS token in front of
every text although the file says not to, takes ``<|im_start|>`` for the end of a text and cleans
up spaces when decoding. Log-likelihoods depend on every one of these, so the tokenizer is rebuilt
here from the vocabulary and the merges, or taken from files that lie beside, and the weights are
read with the `gguf` library.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.cache import cached_directory, digest_file, require_space
from ...core.errors import MissingExtraError, ModelError, UnsupportedModelError
from .model_directory import TOKENIZER_FILES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GGUF = ".gguf"
"""How such files end."""

_VERSION = 1
_CONTROL_TOKEN, _USER_TOKEN = 3, 4  # gguf.TokenType
_BESIDE = (
    *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip

# How texts are cut before merges apply, by the name that GGUF files give it: llama.cpp's
# src/llama-vocab.cpp, which has them from the tokenizers of these models.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Cut:
    """How a family of tokenizers cuts texts."""

    pattern: str | None = None  # None: digits one by one where asked, and GPT-2's own
    digits: bool = False
    composed: bool = False  # Unicode's NFC first
    whole_words: bool = False  # a word that is a token needs no merges
    begins: bool = False  # BOS where the file does not say


_CUTS = {
    "smollm": _Cut(digits=True),
    "gpt-2": _Cut(),
    "qwen2": _Cut(_WORDS % r"\p{N}", composed=True),
    "llama-bpe": _Cut(_WORDS % r"\p{N}{1,3}", whole_words=True, begins=True),
}
# Architectures by GGUF's name: whether rows of queries and keys are stored as rotated pairs.
_ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}


def converted(source: Path) -> Path:
    """The directory that a GGUF file becomes, made once."""
    # Tokenizer files beside it are taken instead of what the file itself says, where they agree.
    beside = [path for name in _BESIDE if (path := source.parent / name).is_file()]
    key = ["gguf", _VERSION, *([p.name, digest_file(p)] for p in (source, *beside))]

    def fill(target: Path) -> None:
        # Floats of 4 bytes, from as few as 1.5 bits.
        require_space(target, 8 * source.stat().st_size, f"converting {source.name}")
        convert_gguf(source, target, tokenizer=source.parent if beside else None)

    return cached_directory("gguf", key, fill)


def convert_gguf(
    source: Path,
    target: Path,
    advance: Callable[[int, int], None] = lambda _more, _done: None,
    *,
    tokenizer: Path | None = None,
) -> None:
    """Write fp32 weights, configuration and tokenizer of a GGUF model."""
    try:
        import torch
        from gguf import GGUFReader
        from transformers import AutoModelForCausalLM, GenerationConfig
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "gguf", "cpu") from error

    try:
        reader = GGUFReader(source)
        facts = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # its reader indexes into whatever the file holds
        raise ModelError(
            f"{source.name} is no GGUF file, or cut off ({type(error).__name__}: {error}): copy or "
            "download it again."
        ) from error
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    _check_supported(source, facts, {tensor.name for tensor in reader.tensors}, tokenizer)
    config = _config(facts, tied)
    # On the meta device nothing is allocated or initialized: every weight comes from the file.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = _weights(source, reader, model, advance)
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"{source.name} does not hold a plain {config.model_type} model: {error}. "
            f"{_elsewhere(facts)}"
        ) from error
    if tied:
        model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(target)
    if tokenizer is None:
        _tokenizer(facts).save_pretrained(target)
        return
    for path in (tokenizer / name for name in _BESIDE):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    _check_tokenizer(source, target, facts)


def _elsewhere(facts: Mapping[str, Any]) -> str:
    """What to do with a file that is not read here, which names its model."""
    names = ("general.base_model.0.repo_url", "general.source.url", "general.name")
    base = next((str(facts[name]) for name in names if facts.get(name)), None)
    return (
        f"Give the float model{f' ({base})' if base else ' it was made from'}; or, where "
        "transformers reads it, from_pretrained(DIR, gguf_file=FILE, dtype=torch.float32) and "
        "save_pretrained, with the original tokenizer beside it."
    )


def _check_supported(
    source: Path, facts: dict[str, Any], tensors: set[str], tokenizer: Path | None
) -> None:
    kind = facts.get("general.architecture")
    if kind not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{source.name} holds a model of architecture {kind!r}; read are "
            f"{', '.join(_ARCHITECTURES)}. {_elsewhere(facts)}"
        )
    parts = facts.get("split.count", 1)
    width = facts.get(f"{kind}.attention.key_length") or (
        facts[f"{kind}.embedding_length"] // facts[f"{kind}.attention.head_count"]
    )
    turned = facts.get(f"{kind}.rope.dimension_count", width)
    odd = [
        why
        for why, found in (
            (f"is one of {parts} parts: join them first (gguf-split --merge)", parts > 1),
            ("has experts", facts.get(f"{kind}.expert_count")),
            ("rescales its rotary frequencies", "rope_freqs.weight" in tensors),
            ("rescales its rotary positions",
             facts.get(f"{kind}.rope.scaling.type", "none") != "none"),
            ("rotates a part of each head", turned != width),
            ("has an attention window", facts.get(f"{kind}.attention.sliding_window")),
        )
        if found
    ]  # fmt: skip
    if odd:
        raise UnsupportedModelError(
            f"{source.name} {odd[0]}, which is not read here. {_elsewhere(facts)}"
        )
    if tokenizer is not None:
        return
    found = (facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre"))
    if found[0] != "gpt2" or found[1] not in _CUTS:
        raise UnsupportedModelError(
            f"{source.name} has a tokenizer of (model, pre-tokenizer) {found}; rebuilt is 'gpt2' "
            f"with {', '.join(_CUTS)}. Put the files of the original tokenizer (tokenizer.json, "
            "tokenizer_config.json) beside it, which are then taken."
        )


def _config(facts: dict[str, Any], tied: bool) -> Any:
    from transformers import AutoConfig

    kind = facts["general.architecture"]
    own = {name.removeprefix(f"{kind}."): value for name, value in facts.items()}
    heads = own["attention.head_count"]
    width = own.get("attention.key_length")
    config = AutoConfig.for_model(
        kind,
        vocab_size=own.get("vocab_size", len(facts["tokenizer.ggml.tokens"])),
        hidden_size=own["embedding_length"],
        intermediate_size=own["feed_forward_length"],
        num_hidden_layers=own["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=own.get("attention.head_count_kv", heads),
        max_position_embeddings=own["context_length"],
        # The file stores float32: the shortest decimal that means the same float32 is the
        # number the model's authors wrote.
        rms_norm_eps=float(f"{own['attention.layer_norm_rms_epsilon']:.7g}"),
        rope_theta=float(own.get("rope.freq_base", 10000.0)),
        tie_word_embeddings=tied,
        bos_token_id=facts.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=facts.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=facts.get("tokenizer.ggml.padding_token_id"),
        **({} if width is None else {"head_dim": width}),
    )
    config.dtype = "float32"
    return config


def _weights(
    source: Path, reader: Any, model: Any, advance: Callable[[int, int], None]
) -> dict[str, npt.NDArray[np.float32]]:
    """Dequantized tensors under the names Transformers gives them."""
    import gguf
    import numpy as np

    config = model.config
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[config.model_type], config.num_hidden_layers)
    wanted = {}
    for name in model.state_dict():
        module, _, end = name.rpartition(".")
        if (theirs := names.get_name(module)) is not None:
            wanted[f"{theirs}.{end}"] = name
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }
    weights = {}
    advance(len(reader.tensors), 0)
    for tensor in reader.tensors:
        name = wanted.get(tensor.name)
        if name is None:
            raise UnsupportedModelError(
                f"{source.name} holds a tensor {tensor.name!r} that a plain {config.model_type} "
                "lacks: convert it with its own tools and pass the directory as the model."
            )
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        part = name.split(".")[-2]
        if part in heads and _ARCHITECTURES[config.model_type]:
            array = _rotary_halves(array, heads[part])
        # A copy: unquantized tensors are views of the mapped file, which is about to be removed.
        weights[name] = np.array(array, dtype=np.float32, order="C")
        advance(0, 1)
    return weights


def _rotary_halves(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorder the rows of a query or key projection from rotated pairs to rotated halves."""
    # GGUF files keep the two components that a rotary embedding turns together in neighbouring
    # rows (2i, 2i + 1) of each head, Transformers keeps them in rows i and i + head_dim / 2.
    rows, *columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, *columns)
    return pairs.swapaxes(1, 2).reshape(rows, *columns)


def _tokenizer(facts: dict[str, Any]) -> Any:
    """Byte-level BPE from the file's vocabulary and merges."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import GPT2TokenizerFast

    own = {name.removeprefix("tokenizer.ggml."): value for name, value in facts.items()}
    cut = _CUTS[own["pre"]]
    tokens: list[str] = own["tokens"]
    merges = [tuple(merge.split(" ")) for merge in own["merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut.whole_words))
    first: Any = pre_tokenizers.Digits(individual_digits=True) if cut.digits else None
    if cut.pattern is not None:
        first = pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated")
    usual = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.pattern is None)
    backend.pre_tokenizer = usual if first is None else pre_tokenizers.Sequence([first, usual])
    if cut.composed:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, own["token_type"], strict=True))
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t, k in kinds if k == _CONTROL_TOKEN]
    )
    backend.add_tokens([AddedToken(t, normalized=False) for t, k in kinds if k == _USER_TOKEN])
    begins = bool(own.get("add_bos_token", cut.begins))
    named = {
        f"{role}_token": tokens[own[f"{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if own.get(f"{key}_token_id") is not None
    }
    if begins and "bos_token" in named:
        bos = named["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    # GPT-2's class would take <|endoftext|> for a role that the file leaves empty.
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token")) | named
    return GPT2TokenizerFast(
        tokenizer_object=backend,
        **roles,
        add_prefix_space=False,
        add_bos_token=begins,
        clean_up_tokenization_spaces=False,
        model_max_length=facts[f"{facts['general.architecture']}.context_length"],
        chat_template=facts.get("tokenizer.chat_template"),
    )


def _check_tokenizer(source: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Raise unless the tokenizer of a directory has the file's tokens at the file's ids."""
    from transformers import AutoTokenizer

    try:
        vocabulary = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    except Exception as error:  # transformers raises whatever its converters raise
        raise ModelError(
            f"the tokenizer beside {source.name} cannot be loaded ({error}): copy it again, or "
            "take it away where the file's own can be rebuilt."
        ) from error
    tokens = facts["tokenizer.ggml.tokens"]
    other = [t for t, i in vocabulary.items() if i >= len(tokens) or tokens[i] != t]
    if len(other) > len(vocabulary) // 100:
        raise ModelError(
            f"the tokenizer beside {source.name} is another one: {len(other)} of its "
            f"{len(vocabulary)} tokens, e.g. {other[0]!r}, are not the file's. Copy the tokenizer "
            "of the model that the file was made from."
        )
