"""The one progress bar of everything that can be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
