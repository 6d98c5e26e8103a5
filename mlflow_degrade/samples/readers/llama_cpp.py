"""Output of llama.cpp's ``llama-perplexity``: the running perplexity after each chunk."""

from __future__ import annotations

import math
import re
from pathlib import Path

from ...core.errors import SampleSchemaError
from ..table import SampleScores
from ._reader import Reader, note

_SUFFIXES = (".txt", ".log", ".out")
_CHUNK = re.compile(r"\[(\d+)\](\d+\.\d+|nan|inf)")
_START = re.compile(r"\[1\]\d+\.\d+,\s*\[2\]")
# The value is printed with four digits behind the point.
_ROUNDING = 0.5e-4


def _text(path: Path) -> str | None:
    if not path.is_file() or path.suffix not in _SUFFIXES:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    return text if _START.search(text) else None


def _read(path: Path) -> SampleScores:
    running = {int(number): value for number, value in _CHUNK.findall(_text(path) or "")}
    if list(running) != list(range(1, len(running) + 1)):
        raise SampleSchemaError(f"{path} lacks chunks: the output was cut or mixed with another.")
    sums = [0.0]
    for number, value in running.items():
        perplexity = float(value)
        if not math.isfinite(perplexity):
            raise SampleSchemaError(f"{path}: perplexity is {value} after chunk {number}.")
        sums.append(number * math.log(perplexity))
    error = len(running) * _ROUNDING / float(running[len(running)])
    note(
        f"{path}: scores are nats per token of each chunk, from the running perplexity; it is "
        f"rounded, which the last chunks show most (±{error:.1g})."
    )
    return SampleScores.from_records(
        {
            "task": "perplexity",
            "doc_id": str(number),
            "metric": "nll",
            "score": sums[number] - sums[number - 1],
        }
        for number in running
    )


READER = Reader(
    name="llama.cpp",
    what="output of llama-perplexity, as .txt or .log",
    recognizes=lambda path: _text(path) is not None,
    read=_read,
)
