"""One call of the engine's graph on rows of tokens, with or without a past."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine_graph import ARGMAX, POSITIONS, TARGET_LOGPROBS, TARGETS
from .plan import Row
from .session import DecoderInputs
from .stepping import right_padded

Cache = list[NDArray[Any]]
"""Keys and values of every layer, in the order of the graph's inputs."""


class Answers:
    """What the model said about one row.

    Parameters
    ----------
    found : mapping of int to (mapping of int to float, int)
        Position → log-probabilities by token, and the most likely token.
    """

    def __init__(self, found: Mapping[int, tuple[Mapping[int, float], int]]) -> None:
        self._found = found

    @classmethod
    def combined(cls, parts: Iterable[tuple[int, Answers]]) -> Answers:
        """Answers of a row from those of its parts and where each part starts."""
        return cls(
            {start + position: said for start, part in parts for position, said in part.items()}
        )

    def items(self) -> Iterable[tuple[int, tuple[Mapping[int, float], int]]]:
        """Positions with what was said there."""
        return self._found.items()

    def at(self, position: int, token: int) -> tuple[float, bool]:
        """Log-probability of `token` after `position`, and whether it is the most likely."""
        values, winner = self._found[position]
        return values[token], token == winner

    def first_non_finite(self) -> int:
        """First position with a log-probability that is not a finite number."""
        return next(
            position
            for position, (values, _) in sorted(self._found.items())
            if not all(map(math.isfinite, values.values()))
        )


def run_rows(
    session: Any,
    inputs: DecoderInputs,
    rows: Sequence[Row],
    length: int,
    *,
    multiple: int,
    past: Cache | None = None,
    keep_cache: bool = False,
) -> tuple[list[Answers], Cache]:
    """Run rows, right-padded to one length, and read what is wanted of each.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        On the graph of `mlflow_degrade.runtime.engine_graph`.
    inputs : DecoderInputs
        What it takes.
    rows : sequence of Row
        What is run.
    length : int
        At least that of the longest row.
    multiple : int
        The number of wanted positions is padded to a multiple of this.
    past : list of ndarray, optional
        Caches of what stands before the rows: as many tokens for each, all of them real.
    keep_cache : bool
        Whether the caches after the rows are returned.

    Returns
    -------
    answers : list of Answers
        Per row.
    cache : list of ndarray
        Past and rows; empty unless `keep_cache`.
    """
    places = [(b * length + p, tokens) for b, r in enumerate(rows) for p, tokens in _sorted(r)]
    # A segment that is only read wants nothing, but the graph wants to be fed.
    count = max(1, -(-len(places) // multiple)) * multiple
    positions = np.zeros(count, np.int64)
    targets = np.zeros((count, max((len(t) for _, t in places), default=1)), np.int64)
    for i, (position, tokens) in enumerate(places):
        positions[i] = position
        targets[i, : len(tokens)] = tokens
    ids, mask = right_padded([row.tokens for row in rows], length)
    if past is None:
        past = [np.empty(c.empty_shape(len(rows)), c.dtype) for c in inputs.cache]
    before = past[0].shape[inputs.cache[0].length_axis] if past else 0
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": ids,
        "attention_mask": np.pad(mask, ((0, 0), (before, 0)), constant_values=1),
        POSITIONS: positions,
        TARGETS: targets,
    }
    if inputs.position_ids:
        everywhere = np.arange(before, before + length, dtype=np.int64)
        feeds["position_ids"] = np.tile(everywhere, (len(rows), 1))
    for spec, value in zip(inputs.cache, past, strict=True):
        feeds[spec.name] = value

    binding = session.io_binding()
    # The binding reads the arrays where they are: `feeds` keeps them alive.
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for name in (TARGET_LOGPROBS, ARGMAX):
        binding.bind_output(name, "cpu")
    if keep_cache:
        for spec in inputs.cache:
            binding.bind_output(spec.output, "cpu")
    session.run_with_iobinding(binding)
    logprobs, best, *cache = (value.numpy() for value in binding.get_outputs())

    answers, start = [], 0
    for row in rows:
        stop = start + len(row.wanted)
        answers.append(_answers(row, logprobs[start:stop], best[start:stop]))
        start = stop
    return answers, cache


def _answers(row: Row, logprobs: NDArray[np.float32], best: NDArray[np.int64]) -> Answers:
    return Answers(
        {
            position: (dict(zip(tokens, values.tolist(), strict=False)), int(winner))
            for (position, tokens), values, winner in zip(_sorted(row), logprobs, best, strict=True)
        }
    )


def _sorted(row: Row) -> list[tuple[int, list[int]]]:
    return sorted(row.wanted.items())
