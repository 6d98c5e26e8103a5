"""The parts of ``on_a_gpu.py``: what each runs, in which order, and for how long at most."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .setting import Setting

Row = dict[str, Any]
"""Column → text, number, or [estimate, low, high]."""

Found = Iterator[tuple[str, Row]]
"""Title of a table and one of its rows, each as soon as it is known."""


class Part(NamedTuple):
    """One part: a module of this package with a function ``run``.

    Attributes
    ----------
    name : str
        Of the module.
    seconds : int
        When it is ended.
    needed_by : str
        A part that begins when this one has ended; until then it runs beside the others.
    """

    name: str
    seconds: int
    needed_by: str = ""

    @property
    def run(self) -> Callable[[Setting], Found]:
        """What it does."""
        found: Callable[[Setting], Found] = importlib.import_module(f"{__name__}.{self.name}").run
        return found


PARTS = (
    Part("attention", 15),
    Part("placement", 70),
    Part("recipe", 90),
    Part("scores", 60),
    Part("throughput", 60),
    Part("generation", 50),
    Part("large", 55),
    Part("limits", 20),
)
"""In order; together no more than seven minutes."""

PREPARATION = Part("large_model", 330, needed_by="large")
"""Exporting a large model takes minutes of the CPU: it begins with the first part."""
