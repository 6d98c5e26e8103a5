"""Schemes that round weights to a number format: ``simulated-<format>``.

There is one for each format that `mlflow_degrade.optimize.formats.names.parse_format` reads. More
is rounded by what follows it: ``+ends`` (embedding and projection to the vocabulary), ``+act-int8``
(activations), ``+kv-int8`` (key-value cache).
"""

from __future__ import annotations

from ..errors import InputError, UnknownNameError
from ..runtime.providers import TENSORRT
from .formats.names import parse_format
from .scheme import Scheme
from .simulate import simulate_format
from .simulate_values import VALUE_FORMATS, require_value_format

SIMULATED = "simulated-"
"""What the names of simulated schemes begin with; a number format follows."""

_ROUNDED_VALUES = {"act": ("activations", "activations"), "kv": ("cache", "key-value cache")}
_CONTRACTED = (
    "TensorRT may compute a product and a difference in one step, and rounding while running "
    "depends on the bits of each: use device 'cuda' or 'cpu'"
)
_ADDITIONS = ("ends", *(f"{what}-{e}" for what in _ROUNDED_VALUES for e in VALUE_FORMATS))


def simulated_scheme(name: str) -> Scheme:
    """The scheme of a number format.

    Parameters
    ----------
    name : str
        Beginning with `SIMULATED`.

    Raises
    ------
    UnknownNameError
        When there is no such format or addition.
    InputError
        When the format makes no sense, or an addition is said twice.

    Examples
    --------
    >>> simulated_scheme("simulated-mxfp4+kv-int8").summary.partition(";")[0]
    'weights rounded to mxfp4, key-value cache to int8'
    """
    number_format, *further = name.removeprefix(SIMULATED).split("+")
    if number_format != "fp32" or not further:  # weights may stay when other values are rounded
        parse_format(number_format)
    options: dict[str, str | bool] = {"number_format": number_format}
    summary = f"weights rounded to {number_format}"
    for word in further:
        what, _, element = word.partition("-")
        if what in _ROUNDED_VALUES and element:
            require_value_format(element)
            option, said = _ROUNDED_VALUES[what]
        elif word == "ends":
            option, said = "ends", "embedding and projection too"
        else:
            raise UnknownNameError("addition to a simulated scheme", word, _ADDITIONS)
        if option in options:
            raise InputError(f"scheme {name!r} says {what!r} twice: keep one.")
        options[option] = element or True
        summary += f", {said}" + (f" to {element}" if element else "")
    text = f"{summary}; stored and computed in float32: quality only"
    running = any(option in options for option, _ in _ROUNDED_VALUES.values())
    refused = {TENSORRT: _CONTRACTED} if running else {}
    return Scheme(name, text, simulate_format, options, simulated=True, refused=refused)
