"""The space of a search: a recipe in which keys may have several values.

::

    # 8 and 4 bits, coarse and fine
    passes:
      - pass: export
      - pass: graph
      - pass: quantize
        scheme: int8-weight-only
        symmetric: [true, false]
      - pass: quantize
        scheme: [int4-weight-only-hqq, int4-weight-only-gptq]
        block_size: [32, 64]

Several passes `quantize` are alternatives. Keys are those of recipes, so that whatever a pass can
do can be searched: a new scheme, or a new option of one, is one more value; ``null`` is what the
scheme does by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..core.cache import digest_json
from ..core.errors import InputError, UnknownNameError
from ..core.yaml_files import read_yaml
from ..engine.providers import CPU
from .recipe import Recipe, is_file_name
from .schemes import find_scheme

AUTO = "auto"
"""The packaged space that fits the model."""

_MOST = 1_000
Value = bool | int | float | str | None


@dataclass(frozen=True)
class SearchCandidate:
    """One recipe of a space, and where in the space it is."""

    recipe: Recipe
    params: Mapping[str, Value]  # Dimension to its value; those that its scheme has.

    @property
    def name(self) -> str:
        """Its scheme with words for all options, and what else the space varies."""
        quantization = self.recipe.quantization
        assert quantization is not None
        also = [f"{k} {v}" for k, v in self.params.items() if "." in k]
        return ", ".join([quantization.name, *also])

    @cached_property
    def digest(self) -> str:
        """Equal for recipes that do the same."""
        return _digest(self.recipe)


@dataclass(frozen=True)
class SearchSpace:
    """All candidates of a search, each once.

    Parameters
    ----------
    name : str
        Its file's name without the ending.
    candidates : sequence of SearchCandidate
        In the order of the file.
    baseline : Recipe
        What they are compared with: the first values, without a quantization.
    file : Path, optional
        Where it was read from.
    """

    name: str
    candidates: tuple[SearchCandidate, ...]
    baseline: Recipe
    file: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        # Errors and run parameters show it.
        return f"<space {self.name!r}: {len(self.candidates)} candidates>"

    @classmethod
    def from_mapping(
        cls, values: Any, name: str = "space", *, file: Path | None = None
    ) -> SearchSpace:
        """Validate what a file holds.

        Parameters
        ----------
        values : mapping
            ``{"passes": [{"pass": …}, …]}``, as a recipe's, with lists as values of keys.
        name : str
        file : Path, optional

        Raises
        ------
        InputError
            It is no space, or has no candidate.
        """
        where = str(file or name)
        if not isinstance(values, Mapping) or not isinstance(values.get("passes"), list):
            raise InputError(f"{where}: a mapping with a list of 'passes' is needed.")
        for key in values:
            if key != "passes":
                raise InputError(f"{where}: {UnknownNameError('key', str(key), ['passes'])}")
        before: list[list[dict[str, Any]]] = []
        after: list[dict[str, Any]] = []
        for number, given in enumerate(values["passes"], start=1):
            place = f"{where}, pass {number}"
            if not isinstance(given, Mapping) or "pass" not in given:
                raise InputError(f"{place}: {given!r} is no mapping with a key 'pass'.")
            if given["pass"] == "quantize":
                after += _schemes(given, place)
            elif after:
                raise InputError(
                    f"{place} ({given['pass']}): the passes 'quantize' are alternatives and come "
                    "last."
                )
            else:
                before.append(list(_products(given, place)))
        if not after:
            raise InputError(
                f"{where}: it has no pass 'quantize': every candidate would be its own baseline."
            )
        first = [values[0] for values in before]
        baseline = Recipe.from_mapping({"passes": first}, name, file=file)
        found: dict[str, SearchCandidate] = {}
        for *start, last in product(*before, after):
            candidate = _candidate(start, last, before, name, file)
            found.setdefault(candidate.digest, candidate)
            if len(found) > _MOST:
                raise InputError(f"{where}: more than {_MOST} candidates: list fewer values.")
        return cls(name, tuple(found.values()), baseline, file)

    @classmethod
    def from_yaml(cls, path: str | Path) -> SearchSpace:
        """Read a space from a file.

        Raises
        ------
        InputError
            The file cannot be read, is not YAML, gives a key twice, or is no space.
        """
        file = Path(path)
        return cls.from_mapping(read_yaml(file, f"space file {file}"), file.stem, file=file)

    @property
    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Dimensions with the values that any candidate has there, in their order."""
        found: dict[str, dict[str, Value]] = {}
        for candidate in self.candidates:
            for name, value in candidate.params.items():
                found.setdefault(name, {}).setdefault(json.dumps(value), value)
        return {name: tuple(values.values()) for name, values in found.items()}

    def digest(self) -> str:
        """Equal for spaces with the same candidates and baseline."""
        return digest_json([_digest(self.baseline), sorted(c.digest for c in self.candidates)])

    def feasible(
        self, providers: tuple[str, ...] = (CPU,), *, force: bool = False
    ) -> tuple[SearchSpace, dict[str, str]]:
        """The part of the space that makes sense on a device, and why the rest does not.

        Raises
        ------
        InputError
            Nothing is left.
        """
        refused: dict[str, str] = {}
        left = []
        for candidate in self.candidates:
            try:
                candidate.recipe.check(providers, force=force)
            except InputError as error:
                refused[candidate.name] = str(error)
            else:
                left.append(candidate)
        if not left:
            reasons = "\n".join(f"  {name}: {why}" for name, why in refused.items())
            raise InputError(
                f"none of the {len(refused)} candidates of space {self.name!r} is feasible on "
                f"{providers[0]}:\n{reasons}"
            )
        return SearchSpace(self.name, tuple(left), self.baseline, self.file), refused


def load_space(reference: str | Path) -> SearchSpace:
    """Read a space by the name of a packaged one, or its file.

    Parameters
    ----------
    reference : str or path
        A path ends in .yaml or .yml.

    Raises
    ------
    UnknownNameError
        There is no such packaged space.
    InputError
        As `SearchSpace.from_yaml`.

    Examples
    --------
    >>> load_space("encoder")
    <space 'encoder': 9 candidates>
    """
    if is_file_name(reference):
        return SearchSpace.from_yaml(reference)
    known = space_files()
    if str(reference) not in known:
        hint = "Or give a file with a space, whose name ends in .yaml."
        raise UnknownNameError("space", str(reference), known, hint)
    return SearchSpace.from_yaml(known[str(reference)])


def space_files() -> dict[str, Path]:
    """The packaged spaces, by their names."""
    files = sorted(Path(__file__).with_name("spaces").glob("*.yaml"))
    return {file.stem: file for file in files}


def _named(value: Any) -> Any:
    return load_space(value) if isinstance(value, (str, Path)) and value != AUTO else value


NamedSpace = Annotated[SearchSpace | str, BeforeValidator(_named)]
"""A space, its name or file, or ``"auto"``."""


def _listed(key: str, value: Any, place: str) -> list[Any]:
    """The values of a key."""
    if not isinstance(value, list):
        return [value]
    if not value:
        raise InputError(f"{place}: {key} = []: give at least one value.")
    return value


def _products(given: Mapping[str, Any], place: str) -> Iterator[dict[str, Any]]:
    """A pass once for every combination of its values."""
    values = [_listed(key, value, place) for key, value in given.items()]
    for chosen in product(*values):
        yield dict(zip(given, chosen, strict=True))


def _schemes(given: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """A pass `quantize` for every scheme and combination of those keys that the scheme has."""
    place = f"{place} (quantize)"
    if "scheme" not in given:
        raise InputError(f"{place}: the key 'scheme' is missing.")
    schemes = [str(name) for name in _listed("scheme", given["scheme"], place)]
    lists = {
        key: _listed(key, v, place) for key, v in given.items() if key not in ("pass", "scheme")
    }
    taken: dict[str, list[Any]] = {key: [] for key in lists}
    found: list[dict[str, Any]] = []
    known: set[str] = set()
    for name in schemes:
        try:
            scheme = find_scheme(name, force=True)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        if scheme.rewrite is None or scheme.simulated:
            why = "is the baseline itself" if scheme.rewrite is None else "has no cost to measure"
            raise InputError(f"{place}: scheme {name!r} {why}: leave it out of the space.")
        options = {
            **scheme.choices,
            **({"calibration": None} if scheme.calibrated else {}),
            **({"min_quantized_share": None} if scheme.proof else {}),
        }
        known |= options.keys()
        own: dict[str, list[Any]] = {}
        for key, values in lists.items():
            if key not in options:
                continue
            choices = options[key]
            fits = [v for v in values if v is None or choices is None or _among(v, choices)]
            taken[key] += fits
            if fits:
                own[key] = fits
        found += [
            {"pass": "quantize", "scheme": name, **dict(zip(own, chosen, strict=True))}
            for chosen in product(*own.values())
        ]
    for key, values in lists.items():
        if key not in known:
            of = f"key of a pass with scheme {' or '.join(map(repr, schemes))}:"
            raise InputError(f"{place}: {UnknownNameError(of, key, known)}")
        for value in values:
            if not _among(value, taken[key]):
                named = " or ".join(map(repr, schemes))
                raise InputError(f"{place}: {key} = {value!r} is no value of scheme {named}.")
    return found


def _among(value: Any, values: Iterable[Any]) -> bool:
    """Membership that keeps 1 and true apart."""
    return any(type(value) is type(other) and value == other for other in values)


def _candidate(
    start: Sequence[Mapping[str, Any]],
    last: Mapping[str, Any],
    before: Sequence[Sequence[Mapping[str, Any]]],
    name: str,
    file: Path | None,
) -> SearchCandidate:
    """A candidate from its passes; a pass before the last counts where the space varies it."""
    stated = {key: value for key, value in last.items() if value is not None}
    recipe = Recipe.from_mapping({"passes": [*start, stated]}, name, file=file)
    params: dict[str, Value] = {
        f"{each['pass']}.{key}": _scalar(value)
        for each, others in zip(start, before, strict=True)
        for key, value in each.items()
        if len(others) > 1 and any(other.get(key) != value for other in others)
    }
    params |= {key: _scalar(value) for key, value in last.items() if key != "pass"}
    quantization = recipe.quantization
    assert quantization is not None
    return SearchCandidate(Recipe(quantization.name, recipe.passes), params)


def _scalar(value: Any) -> Value:
    return value if isinstance(value, Value) else json.dumps(value, sort_keys=True, default=str)


def _digest(recipe: Recipe) -> str:
    """Of what a recipe does: names have the words of all options, whichever way they were given."""
    last = recipe.quantization
    texts = (
        None if last is None or last.calibration is None else last.calibration.read_text("utf-8")
    )
    share = None if last is None else last.min_quantized_share
    first = [
        each.model_dump(mode="json", by_alias=True) for each in recipe.before_quantization.passes
    ]
    return digest_json([first, None if last is None else last.name, texts, share])
