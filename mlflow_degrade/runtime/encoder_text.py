"""Text to token ids for encoders and classifiers, with special tokens, cut at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError, UnsupportedModelError
from .lengths import stated_length
from .plan import Row, Tokens
from .session import read_json

Text = str | tuple[str, str]
"""What is read at once: a text, or two of which the second is read in the light of the first."""

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
        # Models that look for the last token of a text, or count positions, go by their config.
        stated_pad = config.get("pad_token_id")
        own = self.tokenizer.pad_token_id if stated_pad is None else stated_pad
        self.pad_id = max(0, int(own or 0))
        positions = stated_length(config) or 512
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
        rows, cut = self.rows(texts)
        return [list(row.tokens) for row in rows], cut

    def rows(self, texts: Sequence[Text]) -> tuple[list[Row], int]:
        """What the model reads of each text or pair of texts, and how many were cut.

        Of a pair the longer text loses its end, token by token.

        Raises
        ------
        InputError
            A text has no token.
        UnsupportedModelError
            The tokenizer tells more than two parts of a pair apart.
        """
        known = list(dict.fromkeys(texts))
        found: dict[Text, Row] = {}
        shortened = set()
        for paired in (False, True):
            group = [text for text in known if isinstance(text, tuple) is paired]
            found.update(zip(group, self._tokenize(group, paired), strict=True))
            long = [text for text in group if len(found[text].tokens) > self.max_length]
            cut = self._tokenize(long, paired, truncation=True, max_length=self.max_length)
            found.update(zip(long, cut, strict=True))
            shortened.update(long)
        for text, row in found.items():
            if not row.tokens:
                raise InputError(f"the text {text!r} has no token: leave it out.")
        return [found[text] for text in texts], sum(text in shortened for text in texts)

    def _tokenize(self, texts: Sequence[Text], paired: bool, **options: Any) -> list[Row]:
        if not texts:
            return []
        columns = [list(c) for c in zip(*texts, strict=True)] if paired else [list(texts)]
        made = self.tokenizer(*columns, return_token_type_ids=paired, verbose=False, **options)
        kinds = made["token_type_ids"] if paired else [()] * len(texts)
        return [
            Row(tuple(ids), second=self._second(types))
            for ids, types in zip(made["input_ids"], kinds, strict=True)
        ]

    def _second(self, types: Sequence[int]) -> int:
        """Where the second text begins, by the kind of each token."""
        first = list(types).index(1) if 1 in types else 0
        if first and list(types) != [0] * first + [1] * (len(types) - first):
            raise UnsupportedModelError(
                f"the tokenizer in {self.tokenizer.name_or_path} gives the tokens of a pair of "
                f"texts the kinds {sorted(set(types))} in another order than first and second: "
                "the engine reads no pairs with it."
            )
        return first

    def decode(self, ids: Tokens) -> str:
        """Text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
