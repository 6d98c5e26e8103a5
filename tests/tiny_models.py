"""Small random models that have every part of a real one: config, weights, tokenizer.

They are made in a second, so that the fast suite runs the real export, quantization, evaluation
and registration instead of stand-ins.
"""

from __future__ import annotations

from pathlib import Path

SENTENCES = (
    "The harbour is quiet before the first boat leaves at five.",
    "Seven plus five is twelve, and twelve minus four is eight.",
    "She kept the letters in a drawer that nobody else opened.",
    "Iron rusts when water and air reach it for long enough.",
    "Question: which city is the capital of Norway? Answer: Oslo.",
    "The train to the coast stops at every village on Sundays.",
    "def area(width, height): return width * height",
    "Two children were counting the red cars that passed by.",
)
"""Text the tiny tokenizer is trained on; tests may use it as prompts."""


def make_tiny_tokenizer(path: Path, vocab: int = 512) -> int:
    """Train a byte-level BPE on `SENTENCES`, save it in `path`, return its size.

    Any text can be encoded (all 256 bytes are tokens), nothing is prepended, and the end of text
    is its own token, as in SmolLM2's tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(path)
    return len(fast)


def make_tiny_llama(
    path: str | Path,
    seed: int = 0,
    vocab: int = 512,
    *,
    hidden: int = 64,
    layers: int = 2,
    tied: bool = True,
    initializer_range: float = 0.25,
) -> Path:
    """Save a random Llama with its tokenizer as a Hugging Face directory.

    Parameters
    ----------
    path : path
        Directory to fill; made if absent.
    seed : int
        Same seed, same weights.
    vocab : int
        Upper bound of the tokenizer's size (at least 257); the model has exactly its size.
    hidden : int
        Hidden width, a multiple of 4.
    layers : int
        Decoder layers.
    tied : bool
        Whether the LM head is the embedding, as in SmolLM2.
    initializer_range : float
        Spread of weights, for a small model far above the usual 0.02: its distributions must be
        peaked for damage to show.

    Returns
    -------
    Path
        `path`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    size = make_tiny_tokenizer(path, vocab)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    model.save_pretrained(path)
    return path


LLAMA_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
"""Sizes of a tiny model, by the names that most families have for them."""


def make_tiny_decoder(
    family: str, path: str | Path, *, head: str = "AutoModelForCausalLM", **sizes: object
) -> Path:
    """Save a random decoder of one of transformers' families with its tokenizer.

    Parameters
    ----------
    family : str
        Its ``model_type``, such as ``"mistral"``.
    path : path
        Directory to fill; made if absent.
    head : str
        One of transformers' automatic classes.
    **sizes
        Keys of its config.

    Returns
    -------
    Path
        `path`.
    """
    import torch
    import transformers

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = make_tiny_tokenizer(path)
    config = transformers.AutoConfig.for_model(
        family,
        **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **sizes},
        vocab_size=vocabulary,
    )
    # Far above the usual 0.02: the distributions must be peaked for an error to show.
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, head).from_config(config).eval()
    model.save_pretrained(path)
    return path


def make_tiny_bert(
    path: str | Path,
    seed: int = 0,
    *,
    labels: tuple[str, ...] = (),
    pooling: tuple[str, ...] = (),
    hidden: int = 64,
) -> Path:
    """Save a random BERT with a WordPiece tokenizer: a sentence encoder, or a classifier.

    Parameters
    ----------
    path : path
        Directory to fill; made if absent.
    seed : int
        Same seed, same weights.
    labels : tuple of str
        Makes it a classifier with these labels.
    pooling : tuple of str
        Ways of pooling (``"cls_token"``, ``"mean_tokens"``, …) that sentence-transformers' files
        state, without scaling to length 1; no such files when empty.
    hidden : int
        Hidden width, a multiple of 4.

    Returns
    -------
    Path
        `path`.
    """
    import json

    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        PreTrainedTokenizerFast,
    )

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    # Words and letters; the library's trainer gives another vocabulary in every process.
    cut = pre_tokenizers.BertPreTokenizer()
    known = {word for text in SENTENCES for word, _ in cut.pre_tokenize_str(text.lower())}
    letters = sorted({letter for word in known for letter in word})
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *sorted(known)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = cut
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
    tokenizer.save_pretrained(path)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        # Far above the usual 0.02, so that texts differ and a damaged model shows.
        initializer_range=0.25,
        **({"id2label": dict(enumerate(labels))} if labels else {}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (BertForSequenceClassification if labels else BertModel)(config).eval()
    model.save_pretrained(path)
    if pooling:
        kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
        modules = [
            {"idx": i, "path": where, "type": f"sentence_transformers.models.{kind}"}
            for i, (where, kind) in enumerate(kinds)
        ]
        (path / "modules.json").write_text(json.dumps(modules))
        (path / "1_Pooling").mkdir(exist_ok=True)
        stated = {f"pooling_mode_{mode}": True for mode in pooling}
        (path / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    return path


def make_tiny_bert_for(kind: type, path: str | Path, **changes: object) -> Path:
    """Save a random BERT with the head of one of transformers' classes and changes of its config.

    Parameters
    ----------
    kind : type
        Such as ``transformers.BertForMaskedLM``.
    path : path
        Directory to fill; made if absent.

    Returns
    -------
    Path
        `path`.
    """
    import torch
    from transformers import BertConfig

    folder = make_tiny_bert(path)
    config = BertConfig.from_pretrained(folder, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        kind(config).eval().save_pretrained(folder)
    return folder


def make_tiny_encoder(family: str, path: str | Path, **sizes: object) -> Path:
    """Save a random encoder of one of transformers' families, with the tokenizer of a tiny BERT.

    Parameters
    ----------
    family : str
        Its ``model_type``, such as ``"roberta"``.
    path : path
        Directory to fill; made if absent.
    **sizes
        Keys of its config.

    Returns
    -------
    Path
        `path`.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = make_tiny_bert(path)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    config = AutoConfig.for_model(
        family, vocab_size=vocabulary, pad_token_id=0, initializer_range=0.25, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).eval().save_pretrained(folder)
    return folder
