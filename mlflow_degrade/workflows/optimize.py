"""Apply any recipe to a model, measure and log the result: the job behind recipes/optimize."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..engine.providers import Device
from ..optimize.pass_table import ExportPass, GraphPass
from ..optimize.recipe import NamedRecipe, Recipe
from .pass_steps import Made, make_and_log

# Export a model and log it: the job behind recipes/export.


class MakeOptions(BaseModel):
    """Which model is made into another, for where.

    Attributes
    ----------
    model : str
        ``starter``, ``starter-encoder``, a Hugging Face id, a local directory or the file in it
        that is the model, or ``models:/name@alias``.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where the model is to run.
    output : Path, optional
        New directory to put the model into.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "starter"
    device: Device = "auto"
    output: Path | None = None


class ExportOptions(MakeOptions):
    """What to export, and how.

    Attributes
    ----------
    recipe : Recipe
        An export and perhaps a graph optimization: plain, basic or fused (attention as one node),
        or a recipe file of your own.
    """

    recipe: NamedRecipe = Recipe("fused", (ExportPass(), GraphPass()))

    @field_validator("recipe")
    @classmethod
    def _only_exports(cls, recipe: Recipe) -> Recipe:
        if recipe.quantization is not None:
            raise ValueError(
                f"recipe {recipe.name!r} quantizes ({recipe.quantization.name}), which an export "
                "does not: run it with recipes/optimize, or with recipes/quantize, which judges it"
            )
        return recipe


def export_model(options: ExportOptions | None = None) -> Made:
    """Export a model under an MLflow run, with parity, size and nodes after each pass."""
    options = options or ExportOptions()
    return make_and_log(
        options, options.recipe, kind="export", name=f"export {options.recipe.name}"
    )


class OptimizeOptions(MakeOptions):
    """What to do to which model.

    Attributes
    ----------
    recipe : Recipe
        A preset's name (``mlflow-degrade optimize --presets`` lists them), or a recipe file of
        your own.
    force : bool
        Apply even a scheme that is refused on the device.
    cost_seconds : float
        Time for measuring speed side by side with the plain export.
    """

    recipe: NamedRecipe = Recipe.of_scheme("int8-weight-only")
    force: bool = False
    cost_seconds: float = Field(default=8.0, ge=0, le=3_600)


def optimize_model(options: OptimizeOptions | None = None) -> Made:
    """Apply a recipe under an MLflow run, with parity after each pass and the result's cost."""
    options = options or OptimizeOptions()
    return make_and_log(
        options,
        options.recipe,
        kind="optimize",
        name=options.recipe.name,
        force=options.force,
        cost_seconds=options.cost_seconds,
    )
