"""Ctrl-C and SIGTERM, kept from what does not survive them half done."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted(work: str | None = None) -> Iterator[None]:
    """Let a block come to its end before SIGTERM or Ctrl-C counts.

    Work that is named may be long: the first signal is answered, a second one counts at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def later(signum: int, _frame: FrameType | None) -> None:
        arrived.append(signum)
        if work is None:
            return
        if len(arrived) == 1:
            print(f"\nStops after {work}; once more stops at once.", file=sys.stderr, flush=True)
        else:
            signal.signal(signum, kept[signal.Signals(signum)])
            signal.raise_signal(signum)

    numbers = (signal.SIGTERM, signal.SIGINT)
    kept = {number: signal.signal(number, later) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for signum in arrived[:1]:
            signal.raise_signal(signum)
