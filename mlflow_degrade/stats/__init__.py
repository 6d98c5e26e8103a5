"""Statistics of paired comparisons: numbers in, frozen results out, no input or output.

Only NumPy and SciPy are used. Everything is in proportions (0.01 is one percentage point); d is
always candidate minus baseline, oriented so that more is better. The public names are in
``__init__.pyi``, and looked up when first used.
"""

from pkgutil import iter_modules
from typing import Any

from lazy_loader import attach_stub

from ..core.moved import names_of

_look_up, __dir__, __all__ = attach_stub(__name__, __file__)
__all__.sort(key=str.casefold)
# Names that were public before are in a module of their topic.
_former = names_of(__name__, *(module.name for module in iter_modules(__path__)))


def __getattr__(name: str) -> Any:
    return _look_up(name) if name in __all__ else _former(name)
