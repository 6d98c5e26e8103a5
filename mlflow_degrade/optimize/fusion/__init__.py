"""The same numbers by fewer nodes."""

from ...core.moved import names_of

__getattr__ = names_of(__name__, "decoder")
