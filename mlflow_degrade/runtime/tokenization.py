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

from ..errors import InputError, ModelError
from .session import read_json


class TextEncoder:
    """The tokenizer of a model directory, with the pair-splitting rules of lm-eval.

    Parameters
    ----------
    folder : Path
        A model directory with tokenizer files.

    Raises
    ------
    ModelError
        The directory has no usable tokenizer, or one without an end-of-text token.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        except Exception as error:  # transformers raises whatever its converters raise
            raise ModelError(
                f"{folder} has no tokenizer that transformers can load ({error}): copy the source "
                "model's tokenizer files into it, or export the model again."
            ) from error
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
        """Token ids of each text; fast tokenizers encode in parallel.

        Parameters
        ----------
        texts : sequence of str
            Any number of texts; repeated ones are encoded once.
        add_special_tokens : bool, optional
            By default the tokenizer decides, except that a text which already starts with the BOS
            text gets none.
        """
        known: dict[str, list[int]] = {}
        prefixed = [t for t in dict.fromkeys(texts) if self._has_prefix(t, add_special_tokens)]
        plain = [t for t in dict.fromkeys(texts) if not self._has_prefix(t, add_special_tokens)]
        flag = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        for group, options in ((prefixed, {"add_special_tokens": False}), (plain, flag)):
            if group:
                ids = self.tokenizer(group, verbose=False, **options)["input_ids"]
                known.update(zip(group, ids, strict=True))
        return [known[text] for text in texts]

    def _has_prefix(self, text: str, add_special_tokens: bool | None) -> bool:
        return add_special_tokens is None and text.startswith(self.prefix_text)

    def encode_pairs(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of each (context, continuation).

        Parameters
        ----------
        pairs : iterable of (str, str)
            Context and continuation as lm-eval hands them over; the space between them, if any,
            is at either side.

        Returns
        -------
        list of (list of int, list of int)
            The context has at least one token, and the continuation too.

        Raises
        ------
        InputError
            A continuation that has no token of its own.
        """
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

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


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
