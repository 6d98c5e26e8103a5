"""From a name to files: what a directory holds, and which of it is meant."""

from ...core.moved import names_of

__getattr__ = names_of(__name__, "resolve")
