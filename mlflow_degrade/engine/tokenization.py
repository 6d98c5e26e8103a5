"""Text to token ids, by the rules of lm-eval's Hugging Face backend, many strings at a time.

Scores are comparable with published ones only if context and continuation are cut at the same
token: spaces at the end of a context belong to the continuation, the pair is encoded as one string
and split at the length of the encoded context, an empty context is the tokenizer's BOS (or EOS),
and special tokens are added unless the text already starts with the BOS text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError, ModelError, UnsupportedModelError
from .lengths import stated_length
from .schedule import Row, Tokens
from .session import read_json

# Text to token ids for encoders and classifiers, with special tokens, cut at the end.

Text = str | tuple[str, str]
"""What is read at once: a text, or two of which the second is read in the light of the first."""

# RoBERTa and its relatives count positions from the padding id + 1.
_OFFSET_MODELS = ("camembert", "mpnet", "longformer", "ibert", "data2vec-text", "xmod")


class _Tokenizer:
    """The tokenizer of a model directory."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        except Exception as error:  # transformers raises whatever its converters raise
            raise ModelError(
                f"{folder} has no tokenizer that transformers can load ({error}): copy the source "
                "model's tokenizer files into it, or export the model again."
            ) from error

    def decode(self, ids: Tokens) -> str:
        """Text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


class EncoderText(_Tokenizer):
    """The tokenizer of an encoder's or classifier's model directory."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder)
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
        """Token ids of each text, and how many texts were cut to `max_length`."""
        rows, cut = self.rows(texts)
        return [list(row.tokens) for row in rows], cut

    def rows(self, texts: Sequence[Text]) -> tuple[list[Row], int]:
        """What the model reads of each text or pair of texts, and how many were cut."""
        # Of a pair the longer text loses its end, token by token.
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


class TextEncoder(_Tokenizer):
    """The tokenizer of a model directory, with the pair-splitting rules of lm-eval."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer in {folder} has no end-of-text token: set eos_token in its "
                f"tokenizer_config.json{_stated_end(folder, self.tokenizer)}."
            )
        bos = self.tokenizer.bos_token_id
        self.end_id: int = int(self.tokenizer.eos_token_id)
        """Id of the end-of-text token."""
        self.prefix_id: int = self.end_id if bos is None else int(bos)
        """Id of the token that stands for an empty context."""
        self.prefix_text: str = self.tokenizer.decode(self.prefix_id)
        """The text of that token."""

    def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool | None = None
    ) -> list[list[int]]:
        """Token ids of each text; fast tokenizers encode in parallel."""
        known: dict[str, list[int]] = {}
        for begins in (True, False):
            group = [t for t in dict.fromkeys(texts) if t.startswith(self.prefix_text) is begins]
            given = False if begins and add_special_tokens is None else add_special_tokens
            options = {} if given is None else {"add_special_tokens": given}
            if group:
                ids = self.tokenizer(group, verbose=False, **options)["input_ids"]
                known.update(zip(group, ids, strict=True))
        return [known[text] for text in texts]

    def encode_pairs(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of each (context, continuation)."""
        split = [_move_spaces(context, continuation) for context, continuation in pairs]
        filled = [pair for pair in split if pair[0]]
        contexts = self.encode([context for context, _ in filled])
        wholes = self.encode([context + continuation for context, continuation in filled])
        bare = self.encode(
            [continuation for context, continuation in split if not context],
            add_special_tokens=False,
        )
        encoded, without = iter(zip(contexts, wholes, strict=True)), iter(bare)
        result = []
        for context, continuation in split:
            if context:
                head, whole = next(encoded)
                pair = (head, whole[len(head) :])
            else:
                pair = self._after_nothing(next(without))
            if not pair[1]:
                raise InputError(
                    f"the continuation {continuation[:80]!r} after {context[-80:]!r} has no token "
                    "of its own, so it has no likelihood: give a non-empty continuation that does "
                    "not merge into the last token of its context."
                )
            result.append(pair)
        return result

    def _after_nothing(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """The pair for an empty context: after BOS, unless the text begins with it."""
        if ids[:1] == [self.prefix_id]:
            return ids[:1], ids[1:]
        return [self.prefix_id], ids


def _stated_end(folder: Path, tokenizer: Any) -> str:
    """The token that the model's own config takes for the end, as a clause."""
    for name in ("generation_config.json", "config.json"):
        stated = read_json(folder, name, needed=False).get("eos_token_id")
        first = stated[0] if isinstance(stated, list) and stated else stated
        if isinstance(first, int) and (token := tokenizer.convert_ids_to_tokens(first)):
            return f", to {token!r} as {name} has it (id {first})"
    return ""


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Move white space from the end of the context to the start of the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
