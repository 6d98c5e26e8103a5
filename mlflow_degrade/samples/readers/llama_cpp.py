"""Output of llama.cpp's ``llama-perplexity``: the running perplexity after each chunk."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError
from ._reader import note, record_reader

_SUFFIXES = (".txt", ".log", ".out")
_CHUNK = re.compile(r"\[(\d+)\](\d+\.\d+|nan|inf)")
_START = re.compile(r"\[1\]\d+\.\d+,\s*\[2\]")
# The value is printed with four digits behind the point.
_ROUNDING = 0.5e-4


def _text(path: Path) -> str:
    if not path.is_file() or path.suffix not in _SUFFIXES:
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text if _START.search(text) else ""


def _records(path: Path, text: str) -> Iterator[dict[str, Any]]:
    running = {int(number): value for number, value in _CHUNK.findall(text)}
    if list(running) != list(range(1, len(running) + 1)):
        raise SampleSchemaError(f"{path} lacks chunks: the output was cut or mixed with another.")
    before = 0.0
    for number, value in running.items():
        perplexity = float(value)
        if not math.isfinite(perplexity):
            raise SampleSchemaError(f"{path}: perplexity is {value} after chunk {number}.")
        so_far = number * math.log(perplexity)
        score = so_far - before
        yield {"task": "perplexity", "doc_id": str(number), "metric": "nll", "score": score}
        before = so_far
    error = len(running) * _ROUNDING / float(running[len(running)])
    note(
        f"{path}: scores are nats per token of each chunk, from the running perplexity; it is "
        f"rounded, which the last chunks show most (±{error:.1g})."
    )


READER = record_reader("llama.cpp", "output of llama-perplexity, as .txt or .log", _text, _records)
