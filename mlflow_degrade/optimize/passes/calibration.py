"""Activations of a float model on real texts: what enters its matrix products.

Passes that round with the data in mind (GPTQ, static int8) look at a model from outside: the
tensors they ask for become outputs of a copy of its graph, and the texts run through it one at a
time and unpadded, so that no padding is ever counted. The weights stay in the model's own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError
from ...engine.engine_graph import DerivedGraph
from ...engine.family import is_decoder
from ...engine.providers import CPU
from ...engine.schedule import one_text
from ...engine.session import open_derived, read_json, run_error
from ...engine.tokenization import EncoderText
from ..onnx_graph.files import load_graph
from ..parity.prompts import own_texts

# Texts on which activations are observed, for passes that round with them in mind.

CALIBRATION_PROMPTS: tuple[str, ...] = tuple(own_texts("calibration"))
"""Ninety-six short texts, about three thousand tokens in all."""


MIN_TOKENS = 256
"""Fewest tokens that say anything about the distribution of an activation."""

_MAX_TOKENS = 256  # of one text: what is observed is kept whole for as long as the text runs
_HESSIAN_BYTES = 1 << 30  # of sums that are held at once; more layers take more passes
_ROWS = 1024  # tokens that are gathered before a product: small products waste the cores


class Calibration:
    """A float model directory and the texts on which it is observed."""

    def __init__(self, directory: str | Path, texts: Sequence[str] | None = None) -> None:
        self.directory = Path(directory)
        chosen = calibration_texts(texts)
        self._ids = _tokenize(self.directory, chosen)
        self.n_tokens = sum(map(len, self._ids))
        if self.n_tokens < MIN_TOKENS:
            raise InputError(
                f"the {len(chosen)} calibration texts have {self.n_tokens} tokens, the least is "
                f"{MIN_TOKENS}: give more texts, of the kind that the model will read."
            )

    def observe(self, names: Sequence[str]) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        """Values of some tensors of the graph, text by text."""
        from onnx import TensorProto, helper

        model = load_graph(self.directory, weights=False)
        given = {value.name for value in model.graph.output}
        for name in names:
            if name not in given:
                value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                model.graph.output.append(value)
        derived = DerivedGraph(model.SerializeToString(), self.directory, "", False)
        session = open_derived(derived, (CPU,))
        for ids in self._ids:
            feeds = one_text(session, self.directory, ids)
            try:
                found = session.run(list(names), feeds)
            except Exception as error:
                raise run_error(error, self.directory) from error
            yield {
                name: value.reshape(-1, value.shape[-1])
                for name, value in zip(names, found, strict=True)
                if value.size
            }

    def second_moments(
        self, widths: Mapping[str, int]
    ) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Mean outer product of each tensor's rows with themselves."""
        waiting = list(widths)
        while waiting:
            group, size = [waiting.pop(0)], 0
            size = 8 * widths[group[0]] ** 2
            while waiting and size + 8 * widths[waiting[0]] ** 2 <= _HESSIAN_BYTES:
                size += 8 * widths[waiting[0]] ** 2
                group.append(waiting.pop(0))
            yield from self._moments(group, widths)

    def _moments(
        self, group: list[str], widths: Mapping[str, int]
    ) -> Iterator[tuple[str, NDArray[np.float64]]]:
        sums = {name: np.zeros((widths[name],) * 2) for name in group}
        held: dict[str, list[NDArray[np.float32]]] = {name: [] for name in group}
        count = 0

        def add() -> None:
            for name, parts in held.items():
                if parts:
                    rows = np.concatenate(parts)
                    sums[name] += rows.T @ rows
                    parts.clear()

        for values in self.observe(group):
            for name, rows in values.items():
                held[name].append(rows)
            count += max(map(len, values.values()), default=0)
            if count >= _ROWS:
                add()
                count = 0
        if count:
            add()
        for name in group:
            yield name, sums.pop(name) / self.n_tokens


def calibration_texts(texts: Sequence[str] | None = None) -> tuple[str, ...]:
    """The texts to calibrate on: the given ones, or the package's own."""
    chosen = CALIBRATION_PROMPTS if texts is None else tuple(texts)
    if not chosen:
        raise InputError(
            "the calibration set is empty: give texts of the kind that the model will read, or "
            "None for the package's own."
        )
    return chosen


def _tokenize(directory: Path, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    config = read_json(directory, "config.json", needed=True)
    if is_decoder(directory):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        ids = tokenizer(list(texts), verbose=False)["input_ids"]
        limit = int(config.get("max_position_embeddings") or _MAX_TOKENS)
    else:
        text = EncoderText(directory, config)
        ids, limit = text.encode(texts)[0], text.max_length
    limit = min(limit, _MAX_TOKENS)
    return [np.asarray(i[:limit], np.int64) for i in ids if len(i) > 0]
