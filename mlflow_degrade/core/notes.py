"""Sentences for people about what was decided for them, on standard error."""

from __future__ import annotations

import functools
import sys


@functools.cache
def say_note(text: str) -> None:
    """One line, once: a job comes by the same decision at several steps."""
    print(f"note: {text}", file=sys.stderr)
