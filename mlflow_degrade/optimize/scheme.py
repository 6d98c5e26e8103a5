"""What a scheme is: a pass over a graph with its options, and where it belongs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..core.errors import InputError, UnknownNameError
from .passes.mixed_precision import ExclusionRule
from .passes.mixed_weights import MixtureRule
from .passes.smoothing import smooth_directory
from .source.model_directory import ModelDirectory

Smoothing = Literal["never", "where possible", "always"]
"""Whether `mlflow_degrade.optimize.passes.smoothing` comes first; ``"always"`` refuses other
graphs."""


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
    exclusion : ExclusionRule or MixtureRule, optional
        Decides what becomes of each layer, by measuring; `rewrite` takes what it decides.
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
        Whether `rewrite` takes a `mlflow_degrade.optimize.passes.calibration.Calibration`.
    smoothing : {"never", "where possible", "always"}
        Whether outliers of activations are moved into weights before `rewrite`.
    variants : mapping
        Words that may follow the name, each once and in any order, to the options they change;
        ``"smoothing"`` among them is the attribute.
    """

    name: str
    summary: str
    rewrite: Callable[..., dict[str, Any]] | None
    options: Mapping[str, Any] = field(default_factory=dict)
    exclusion: ExclusionRule | MixtureRule | None = None
    proof: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False
    calibrated: bool = False
    smoothing: Smoothing = "never"
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def start(
        self, base: ModelDirectory, texts: Sequence[str], *, progress: bool = True
    ) -> ModelDirectory:
        """The float model that `rewrite` begins with, which computes what `base` does.

        Parameters
        ----------
        base : ModelDirectory
        texts : sequence of str
            On which activations are observed, where that is needed.
        progress : bool
            Show what is being done, on standard error.

        Raises
        ------
        QuantizationError
            When `smoothing` must be done and cannot.
        """
        if self.smoothing == "never":
            return base
        return smooth_directory(
            base,
            texts,
            fixed_range=self.calibrated,  # what schemes observe themselves are ranges
            required=self.smoothing == "always",
            progress=progress,
        )

    def variant(self, name: str, options: Mapping[str, Any] | None = None) -> Scheme:
        """This scheme with other options, by words after its name or by the options' own names.

        Parameters
        ----------
        name : str
            The scheme's name, or that followed by words from `variants`.
        options : mapping, optional
            Some of `choices`, each with one of its values.

        Returns
        -------
        Scheme
            Its name has the words of all changed options in the order of `variants`: what is the
            same has one name, and one place in the cache.

        Raises
        ------
        UnknownNameError
            When there is no such word, option or value.
        InputError
            When two of them set the same option.

        Examples
        --------
        >>> blocks = {f"block{n}": {"block_size": n} for n in (32, 64)}
        >>> base = Scheme("int4", "4 bits", None, {"block_size": 32}, variants=blocks)
        >>> base.variant("int4", {"block_size": 64}) == base.variant("int4-block64")
        True
        >>> base.variant("int4-block32") == base
        True
        """
        said = [] if name == self.name else name.removeprefix(f"{self.name}-").split("-")
        for word in said:
            if word not in self.variants:
                raise UnknownNameError(f"variant of scheme {self.name!r}:", word, self.variants)
        changes = [self.variants[word] for word in said]
        changes += [self._choice(option, value) for option, value in (options or {}).items()]
        chosen = self._settings
        taken = set[str]()
        for change in changes:
            if twice := taken & change.keys():
                raise InputError(f"scheme {name!r} sets {', '.join(twice)} twice: keep one.")
            taken |= change.keys()
            chosen |= change
        words = [
            word
            for word, change in self.variants.items()
            if not _holds(change, self._settings) and _holds(change, chosen)
        ]
        if not words:
            return self
        summary = f"{self.summary}; {', '.join(words)}"
        smoothing = chosen.pop("smoothing")
        name = "-".join([self.name, *words])
        return replace(self, name=name, summary=summary, options=chosen, smoothing=smoothing)

    @property
    def _settings(self) -> dict[str, Any]:
        """What words can change."""
        return {**self.options, "smoothing": self.smoothing}

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Options that `variants` change, each with the values it can take, its own one first."""
        settings, found = self._settings, dict[str, list[Any]]()
        for change in self.variants.values():
            for option, value in change.items():
                own = [settings[option]] if option in settings else []
                values = found.setdefault(option, own)
                if not any(_same(value, other) for other in values):
                    values.append(value)
        return {option: tuple(values) for option, values in found.items()}

    def _choice(self, option: str, value: Any) -> Mapping[str, Any]:
        choices = self.choices
        if option not in choices:
            raise UnknownNameError(f"option of scheme {self.name!r}:", option, choices)
        if not any(_same(value, choice) for choice in choices[option]):
            known = map(_text, choices[option])
            raise UnknownNameError(f"{option} of scheme {self.name!r}:", _text(value), known)
        return {option: value}


def _same(one: Any, other: Any) -> bool:
    """Equality that keeps 1 and true apart."""
    return type(one) is type(other) and bool(one == other)


def _holds(change: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether options are already what a change would make them."""
    return all(name in options and _same(options[name], value) for name, value in change.items())


def _text(value: Any) -> str:
    """An option's value as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
