"""What a recipe says while it runs: its steps on standard error, the verdict on standard output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, and say how long it took."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]▸ {title}[/bold]")
    start = time.monotonic()
    yield
    console.print(f"  [dim]{time.monotonic() - start:.1f} s[/dim]")


def say(text: str) -> None:
    """One indented line on standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"  {text}", markup=False)
