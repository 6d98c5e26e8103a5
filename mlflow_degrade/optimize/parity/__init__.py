"""How far a model is from the one it was made from."""

from ...core.moved import names_of

__getattr__ = names_of(__name__, "decoder")
