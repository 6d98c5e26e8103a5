"""Scoring and generation over ONNX Runtime: all that a served model carries along."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
