"""What a verdict that was reached on one processor says on this one."""

from __future__ import annotations

from ..errors import DegradeError
from ..origin import Origin, Processor
from ..results import Decision


class ProcessorWarning(UserWarning):
    """A model is loaded on another kind of processor than its verdict was reached on."""


def processor_notes(reached: Processor | None, kernels)...
