"""What a scheme is: a pass over a graph with its options, and where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError, UnknownNameError
from .exclusion import ExclusionRule


@dataclass(frozen=True)
class Scheme:
    """One named optimization.

    Attributes
    ----------
    name : str
        What users write.
    summary : str
        One line for tables and help.
    rewrite : callable or None
        Changes an ``onnx.ModelProto`` in place, given `options`; returns findings for the
        manifest. None for the identity.
    options : mapping
        Keyword arguments of `rewrite`; part of the key in the cache.
    exclusion : ExclusionRule, optional
        Decides which layers stay in float; `rewrite` takes their names as ``keep``.
    proof : tuple of str
        Operators of which the result must contain at least one; empty where weights change type
        only.
    refused : mapping
        Execution provider to the reason why the scheme should not be used there and what to use.
    notes : mapping
        Execution provider to a remark worth showing there.
    simulated : bool
        Whether weights are only rounded: the file is neither smaller nor faster.
    calibrated : bool
        Whether `rewrite` takes a `mlflow_degrade.optimize.calibration.Calibration`.
    variants : mapping
        Words that may follow the name, each once and in any order, to the options they change.
    """

    name: str
    summary: str
    rewrite: Callable[..., dict[str, Any]] | None
    options: Mapping[str, Any] = field(default_factory=dict)
    exclusion: ExclusionRule | None = None
    proof: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False
    calibrated: bool = False
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def variant(self, name: str) -> Scheme:
        """This scheme with the options that the words after its name stand for.

        Parameters
        ----------
        name : str
            The scheme's name, or that followed by words from `variants`.

        Returns
        -------
        Scheme

        Raises
        ------
        UnknownNameError
            When a word is none of `variants`.
        InputError
            When two words change the same option.

        Examples
        --------
        >>> blocks = {"block64": {"block_size": 64}}
        >>> base = Scheme("int4", "4 bits", None, {"block_size": 32}, variants=blocks)
        >>> base.variant("int4-block64").options
        {'block_size': 64}
        """
        if name == self.name:
            return self
        options, changed = dict(self.options), set[str]()
        words = name.removeprefix(f"{self.name}-").split("-")
        for word in words:
            if word not in self.variants:
                raise UnknownNameError(f"variant of scheme {self.name!r}:", word, self.variants)
            change = self.variants[word]
            if changed & change.keys():
                raise InputError(f"scheme {name!r} sets {', '.join(change)} twice: keep one word.")
            changed |= change.keys()
            options |= change
        summary = f"{self.summary}; {', '.join(words)}"
        return replace(self, name=name, summary=summary, options=options)
