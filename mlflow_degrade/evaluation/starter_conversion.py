"""Turn the GGUF file of a Llama model into a directory that Transformers loads.

Transformers can read GGUF files itself, but the tokenizer it derives puts a BOS token in front of
every text although the file says not to, takes ``<|im_start|>`` for the end of a text and cleans
up spaces when decoding. Log-likelihoods depend on every one of these, so the tokenizer is rebuilt
here from the vocabulary and the merges, and the weights are read with the `gguf` library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
_PRE_TOKENIZER = "smollm"

_LAYER_MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)


def convert_gguf(
    source: Path, target: Path, advance: Callable[[int, int], None] = lambda _done, _all: None
) -> None:
    """Write fp32 weights, configuration and tokenizer of a GGUF Llama model.

    Parameters
    ----------
    source : Path
        A GGUF file of architecture ``llama`` with tied embeddings and a ``smollm`` tokenizer.
    target : Path
        An existing directory; receives ``model.safetensors``, ``config.json``,
        ``generation_config.json``, the tokenizer files and the chat template.
    advance : callable, optional
        Called with (tensors read, tensors in all) after each tensor.

    Raises
    ------
    MissingExtraError
        When torch, transformers or gguf are not installed.
    UnsupportedModelError
        When the file is of another architecture or tokenizer.
    """
    try:
        import torch
        from gguf import GGUFReader
        from transformers import GenerationConfig, LlamaForCausalLM
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "gguf", "cpu") from error

    reader = GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    _check_supported(source, facts, {tensor.name for tensor in reader.tensors})
    config = _config(facts)
    # On the meta device nothing is allocated or initialized: every weight comes from the file.
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = _weights(reader, config, advance)
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(target)
    _tokenizer(facts).save_pretrained(target)


def _check_supported(source: Path, facts: dict[str, Any], tensors: set[str]) -> None:
    found = (
        facts.get("general.architecture"),
        facts.get("tokenizer.ggml.model"),
        facts.get("tokenizer.ggml.pre"),
    )
    if found != ("llama", "gpt2", _PRE_TOKENIZER):
        raise UnsupportedModelError(
            f"{source.name} holds (architecture, tokenizer, pre-tokenizer) {found}; only "
            f"('llama', 'gpt2', {_PRE_TOKENIZER!r}) is handled: convert it with its own tools "
            "and pass the directory as the model."
        )
    if "output.weight" in tensors:
        raise UnsupportedModelError(
            f"{source.name} has an output matrix of its own; only tied embeddings are handled: "
            "convert it with its own tools and pass the directory as the model."
        )


def _config(facts: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=facts["llama.vocab_size"],
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=facts["llama.attention.head_count"],
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        max_position_embeddings=facts["llama.context_length"],
        # The file stores float32: the shortest decimal that means the same float32 is the
        # number the model's authors wrote.
        rms_norm_eps=float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.7g}"),
        rope_theta=float(facts["llama.rope.freq_base"]),
        tie_word_embeddings=True,
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )


def _weights(
    reader: Any, config: Any, advance: Callable[[int, int], None]
) -> dict[str, npt.NDArray[np.float32]]:
    """Dequantized tensors under the names Transformers gives them."""
    import gguf
    import numpy as np

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    modules = ["model.embed_tokens", "model.norm"]
    modules += [
        f"model.layers.{layer}.{part}"
        for layer in range(config.num_hidden_layers)
        for part in _LAYER_MODULES
    ]
    wanted = {f"{names.get_name(module)}.weight": f"{module}.weight" for module in modules}
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }
    weights = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        name = wanted.get(tensor.name)
        if name is None:
            raise UnsupportedModelError(
                f"the GGUF file holds a tensor {tensor.name!r} that a plain Llama lacks: "
                "convert it with its own tools and pass the directory as the model."
            )
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        part = name.split(".")[-2]
        if part in heads:
            array = _rotary_halves(array, heads[part])
        # A copy: unquantized tensors are views of the mapped file, which is about to be removed.
        weights[name] = np.array(array, dtype=np.float32, order="C")
        advance(done, len(reader.tensors))
    return weights


def _rotary_halves(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorder the rows of a query or key projection from rotated pairs to rotated halves.

    GGUF files keep the two components that a rotary embedding turns together in neighbouring
    rows (2i, 2i + 1) of each head, Transformers keeps them in rows i and i + head_dim / 2.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(facts: dict[str, Any]) -> Any:
    """Byte-level BPE in which every digit is a token of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2TokenizerFast

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    bpe = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    control = [
        token
        for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True)
        if kind == _CONTROL_TOKEN
    ]
    backend.add_special_tokens([AddedToken(token, special=True) for token in control])
    return GPT2TokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[facts["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[facts["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[facts["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[facts["tokenizer.ggml.padding_token_id"]],
        add_prefix_space=False,
        add_bos_token=False,
        clean_up_tokenization_spaces=False,
        model_max_length=facts["llama.context_length"],
        chat_template=facts["tokenizer.chat_template"],
    )
