"""A recipe: what is done to a model, as a validated list of passes that is kept in a file.

::

    # int4 with GPTQ, blocks of 64
    passes:
      - pass: export
      - pass: graph
        level: fused
      - pass: quantize
        scheme: int4-weight-only-gptq
        block_size: 64

Keys and values are those of the classes in `mlflow_degrade.optimize.pass_table`; whatever is wrong
is found when the file is read. Each finished pass is kept in the cache by what it was made from,
so that recipes share what they have in common and an interrupted one goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from ..core.errors import InputError, UnknownNameError
from ..core.yaml_files import read_yaml
from ..engine.providers import CPU
from .pass_table import PASSES, ExportPass, GraphPass, Pass, QuantizePass
from .schemes import find_scheme

_SUFFIXES = (".yaml", ".yml")
_ORDER = tuple(PASSES)


@dataclass(frozen=True)
class Recipe:
    """A list of passes that makes sense.

    Parameters
    ----------
    name : str
        What the recipe is called: its file's name without the ending.
    passes : sequence of passes
        An export first, then at most one graph optimization, then at most one quantization.
    file : Path, optional
        Where it was read from.

    Raises
    ------
    InputError
        When the passes do not fit each other.

    Examples
    --------
    >>> recipe = Recipe.from_mapping({"passes": [{"pass": "export"}, {"pass": "graph"}]})
    >>> recipe
    <recipe 'recipe': export, graph fused>
    >>> Recipe.from_mapping({"passes": [{"pass": "graf"}]})
    Traceback (most recent call last):
    ...
    mlflow_degrade.core.errors.InputError: recipe, pass 1: unknown pass 'graf'...
    """

    name: str
    passes: tuple[Pass, ...]
    file: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        # Errors and run parameters show it.
        return f"<recipe {self.name!r}: {', '.join(each.name for each in self.passes)}>"

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        if mistake := _misplaced(self.passes):
            raise InputError(f"{self.file or self.name}: {mistake}")

    @classmethod
    def from_mapping(cls, values: Any, name: str = "recipe", *, file: Path | None = None) -> Recipe:
        """Validate what a file holds; errors name the file, the pass, the value and the limit.

        Parameters
        ----------
        values : mapping
            ``{"passes": [{"pass": …}, …]}``.
        name : str
        file : Path, optional
            Where it was read from: paths inside are relative to its folder.

        Raises
        ------
        InputError
        """
        where = str(file or name)
        if not isinstance(values, Mapping) or not isinstance(values.get("passes"), list):
            raise InputError(f"{where}: a mapping with a list of 'passes' is needed.")
        for key in values:
            if key != "passes":
                raise InputError(f"{where}: {UnknownNameError('key', str(key), ['passes'])}")
        context = {} if file is None else {"folder": file.parent}
        try:
            passes = TypeAdapter(tuple[Pass, ...]).validate_python(
                values["passes"], context=context
            )
        except ValidationError as error:
            lines = (f"{where}, {line}" for line in _mistakes(error))
            raise InputError("\n".join(lines)) from error
        return cls(name, passes, file)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises
        ------
        InputError
            The file cannot be read, is not YAML, gives a key twice, or is no recipe.
        """
        file = Path(path)
        values = read_yaml(file, f"recipe file {file}")
        return cls.from_mapping(values, file.stem, file=file)

    @classmethod
    def of_scheme(cls, scheme: str, **options: Any) -> Recipe:
        """Export, graph optimization with attention as one node, and a scheme.

        Parameters
        ----------
        scheme : str
        **options
            Further keys of its pass.

        Raises
        ------
        UnknownNameError
            When there is no such scheme.
        """
        find_scheme(scheme, force=True)  # pydantic would wrap its error
        return cls(scheme, (ExportPass(), GraphPass(), QuantizePass(scheme=scheme, **options)))

    @property
    def quantization(self) -> QuantizePass | None:
        """The pass that quantizes, if there is one."""
        last = self.passes[-1]
        return last if isinstance(last, QuantizePass) else None

    @property
    def before_quantization(self) -> Recipe:
        """The same passes without the one that quantizes."""
        if self.quantization is None:
            return self
        return Recipe(f"{self.name} before quantization", self.passes[:-1], self.file)

    def check(self, providers: tuple[str, ...] = (CPU,), *, force: bool = False) -> None:
        """Raise where a pass makes no sense on the first of `providers`, before any work is done.

        Raises
        ------
        InputError
        """
        for each in self.passes:
            each.check(providers, force=force)

    def as_dict(self) -> dict[str, Any]:
        """What a file with this recipe holds."""
        return {
            "passes": [
                each.model_dump(mode="json", by_alias=True, exclude_none=True)
                for each in self.passes
            ]
        }


def load_recipe(reference: str | Path) -> Recipe:
    """Read a recipe by its preset's name or its file.

    Parameters
    ----------
    reference : str or path
        A path ends in .yaml or .yml; anything else is the name of a preset, see `preset_files`.

    Returns
    -------
    Recipe

    Raises
    ------
    UnknownNameError
        When there is no such preset.
    InputError
        As `Recipe.from_yaml`.

    Examples
    --------
    >>> load_recipe("int4-weight-only")
    <recipe 'int4-weight-only': export, graph fused, int4-weight-only>
    """
    if is_file_name(reference):
        return Recipe.from_yaml(reference)
    known = preset_files()
    if str(reference) not in known:
        hint = "Or give a recipe file, whose name ends in .yaml."
        raise UnknownNameError("preset", str(reference), known, hint)
    return Recipe.from_yaml(known[str(reference)])


NamedRecipe = Annotated[
    Recipe, BeforeValidator(lambda v: load_recipe(v) if isinstance(v, (str, Path)) else v)
]
"""A recipe, or its preset's name or file."""


def is_file_name(reference: str | Path) -> bool:
    """Whether a recipe is meant by its file, not by its preset's name."""
    return Path(reference).suffix in _SUFFIXES


def preset_files() -> dict[str, Path]:
    """The packaged presets, by their names."""
    files = sorted(Path(__file__).with_name("presets").glob("*.yaml"))
    return {file.stem: file for file in files}


def run_recipe(
    model: str | Path,
    recipe: Recipe,
    *,
    providers: tuple[str, ...] = (CPU,),
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Apply the passes of a recipe, or find what was made of them before.

    Parameters
    ----------
    model : str
        As `mlflow_degrade.optimize.source.resolve.resolve_model` takes it.
    recipe : Recipe
        From `load_recipe`.
    providers : tuple of str
        Where the result is to run.
    force : bool
        Apply even what is refused there.
    progress : bool
        Show what is being done, on standard error.

    Returns
    -------
    Path
        A model directory in the cache; its manifest names every pass and its parity.

    Raises
    ------
    InputError
        When a pass makes no sense on `providers`.
    ModelError, StorageError
        As the passes themselves.
    """
    recipe.check(providers, force=force)
    made = model
    for each in recipe.passes:
        made = each.apply(made, providers=providers, force=force, progress=progress)
    return Path(made)


def _misplaced(passes: tuple[Pass, ...]) -> str | None:
    """Why passes cannot follow each other as they do; None when they can."""
    kinds = [each.kind for each in passes]
    if not kinds:
        return "it lists no pass: begin with 'pass: export'."
    if kinds[0] != "export":
        return f"its first pass is {kinds[0]!r}: begin with 'pass: export', of an ONNX model too."
    first = passes[0]
    if isinstance(first, ExportPass) and first.dtype != "fp32" and len(passes) > 1:
        return (
            f"pass 2 ({passes[1].name}) cannot follow {first.name}: passes start from an export in "
            f"fp32. Export that, and end with 'pass: quantize' and 'scheme: {first.dtype}'."
        )
    for number, (before, after) in enumerate(pairwise(passes), start=2):
        if _ORDER.index(after.kind) > _ORDER.index(before.kind):
            continue
        place = f"pass {number} ({after.name}) cannot follow {before.name}:"
        if before.kind == "quantize" and after.kind == "quantize":
            return f"{place} a scheme starts from an export in float32. Keep one of the two."
        if before.kind == after.kind:
            return f"{place} the second would find nothing to do. Keep one of the two."
        return f"{place} the order is {', '.join(_ORDER)}."
    return None


def _mistakes(error: ValidationError) -> Iterable[str]:
    """A sentence for each wrong key or value: its place, the value and what is allowed."""
    for item in error.errors():
        number, *rest = item["loc"]
        place = f"pass {int(number) + 1}"
        kind = str(rest[0]) if rest else None
        if kind is not None:
            place += f" ({kind})"
        key = str(rest[1]) if len(rest) > 1 else "pass"
        context = item.get("ctx", {})
        match item["type"]:
            case "union_tag_invalid":
                yield f"{place}: {UnknownNameError('pass', str(context['tag']), PASSES)}"
            case "union_tag_not_found":
                yield f"{place}: it has no key 'pass'. Known passes: {', '.join(PASSES)}."
            case "missing":
                yield f"{place}: the key {key!r} is missing."
            case "extra_forbidden":
                known = ["pass", *(k for k in PASSES[str(kind)].model_fields if k != "kind")]
                yield f"{place}: {UnknownNameError('key', key, known)}"
            case "model_attributes_type":
                yield f"{place}: {item['input']!r} is no mapping with a key 'pass'."
            case "value_error" if isinstance(context["error"], InputError):
                yield f"{place}: {context['error']}"
            case _:
                message = item["msg"].removeprefix("Value error, ")
                yield f"{place}: {key} = {item['input']!r}: {message}."
