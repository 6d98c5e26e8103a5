"""What is registered, why, and what may be promoted: evidence, signatures, verification, gates."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
