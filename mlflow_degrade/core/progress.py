"""How far a job has come: its steps, counted and with an estimate, and the one progress bar."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from .cache import cache_root

VERBOSE = "MLFLOW_DEGRADE_VERBOSE"
"""Variable that asks for the notes of the engine; ``mlflow-degrade --verbose`` sets it."""

# What is worth an estimate; and steps that found their work done before are no measure of it.
_LONG_SECONDS = 20.0
_TIMES = "step-seconds.json"
_steps: ContextVar[list[int] | None] = ContextVar("steps", default=None)


def verbose() -> bool:
    """Whether what the engine found about itself is to be said as well."""
    return os.environ.get(VERBOSE, "").lower() not in ("", "0", "false", "no")


@contextmanager
def counted_steps(total: int) -> Iterator[None]:
    """Number the steps that are announced inside: 1 of 7, 2 of 7, …"""
    token = _steps.set([0, total])
    try:
        yield
    finally:
        _steps.reset(token)


def step_heading(title: str) -> str:
    """What announces a step: its number where steps are counted, and how long it took before."""
    counted, known = _steps.get(), _known_times().get(title)
    number = ""
    if counted is not None:
        counted[0] += 1
        # A job with a step more than it said would otherwise count 8 of 7.
        number = f"{counted[0]} of {max(counted)}  "
    return f"{number}{title}" + ("" if known is None else f" (took {duration(known)} before)")


def remember_step(title: str, seconds: float) -> None:
    """Keep how long a step took on this machine, for the next announcement of it."""
    if seconds < _LONG_SECONDS:
        return
    path = cache_root() / _TIMES
    # An estimate is worth no error: where the cache cannot be written there is none.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{os.getpid()}.{_TIMES}")
        scratch.write_text(json.dumps(_known_times() | {title: round(seconds)}), encoding="utf-8")
        os.replace(scratch, path)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Examples
    --------
    >>> duration(42), duration(325), duration(7300)
    ('42 s', '5 min', '2 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _known_times() -> dict[str, float]:
    try:
        known = json.loads((cache_root() / _TIMES).read_text(encoding="utf-8"))
        return {str(title): float(seconds) for title, seconds in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


@contextmanager
def progress_bar(
    title: str, visible: bool = True, *, in_bytes: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; the function adds to its total and to what is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as progress:
        bar = progress.add_task(title, total=None)
        total = 0

        def change(more: int, done: int) -> None:
            nonlocal total
            total += more
            progress.update(bar, total=total or None, advance=done)

        yield change
