"""Text to token ids for encoders and classifiers, with special tokens, cut at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError
from .plan import Tokens
from .session import read_json

# RoBERTa and its relatives count positions from the padding id + 1.
_OFFSET_MODELS = ("camembert", "mpnet", "longformer", "ibert", "data2vec-text", "xmod")


class EncoderText:
    """The tokenizer of an encoder's or classifier's model directory.

    Parameters
    ----------
    folder : Path
        A model directory with tokenizer files.
    config : dict
        Its ``config.json``.

    Attributes
    ----------
    max_length : int
        Most tokens of a text, special ones included: the least of what sentence-transformers'
        file, the tokenizer and the model's position embeddings allow.
    pad_id : int
        Id that fills up a batch.

    Raises
    ------
    ModelError
        The directory has no usable tokenizer.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        except Exception as error:  # transformers raises whatever its converters raise
            raise ModelError(
                f"{folder} has no tokenizer that transformers can load ({error}): copy the source "
                "model's tokenizer files into it, or export the model again."
            ) from error
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        positions = int(config.get("max_position_embeddings") or 512)
        kind = str(config.get("model_type"))
        if "roberta" in kind or kind in _OFFSET_MODELS:
            positions -= int(config.get("pad_token_id") or 0) + 1
        stated = read_json(folder, "sentence_bert_config.json", needed=False).get("max_seq_length")
        limits = (positions, int(self.tokenizer.model_max_length), int(stated or positions))
        self.max_length = min(limit for limit in limits if limit > 0)

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Token ids of each text, and how many texts were cut to `max_length`.

        Raises
        ------
        InputError
            A text has no token.
        """
        known = list(dict.fromkeys(texts))
        if not known:
            return [], 0
        ids = dict(zip(known, self.tokenizer(known, verbose=False)["input_ids"], strict=True))
        long = [text for text in known if len(ids[text]) > self.max_length]
        if long:
            cut = self.tokenizer(long, truncation=True, max_length=self.max_length)["input_ids"]
            ids.update(zip(long, cut, strict=True))
        empty = [text for text in known if not ids[text]]
        if empty:
            raise InputError(f"the text {empty[0]!r} has no token: leave it out.")
        shortened = set(long)
        return [ids[text] for text in texts], sum(text in shortened for text in texts)

    def decode(self, ids: Tokens) -> str:
        """Text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
