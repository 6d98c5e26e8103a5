"""From paired scores to a verdict: policies, tests, reasons, and the samples a decision needs."""

from ..core.moved import names_of

__getattr__ = names_of(__name__, "verdict")
