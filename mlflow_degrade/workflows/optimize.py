"""Apply any recipe to a model, measure and log the result: the job behind recipes/optimize."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..engine.providers import Device
from ..optimize.pass_table import ExportPass, GraphPass
from ..optimize.recipe import Recipe
from .pass_steps import Made, make_and_log

# Export a model and log it: the job behind recipes/export.


class ExportOptions(BaseModel):
    """What to export, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "starter"  # As in `mlflow_degrade.workflows.quantize.QuantizeOptions`.
    # An export and perhaps a graph optimization, by default with attention as one node.
    recipe: Recipe = Recipe("fused", (ExportPass(), GraphPass()))
    device: Device = "auto"  # Where the model is to run.

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
    return make_and_log(options, kind="export", name=f"export {options.recipe.name}")


class OptimizeOptions(BaseModel):
    """What to do to which model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "starter"  # As in `mlflow_degrade.workflows.quantize.QuantizeOptions`.
    # From `mlflow_degrade.optimize.recipe.load_recipe`.
    recipe: Recipe = Recipe.of_scheme("int8-weight-only")
    device: Device = "auto"  # Where the model is to run.
    force: bool = False  # Apply even a scheme that is refused there.
    # Time for measuring speed side by side with the plain export, see
    # `mlflow_degrade.bench.cost.measure_cost`.
    cost_seconds: float = Field(default=8.0, ge=0, le=3_600)


def optimize_model(options: OptimizeOptions | None = None) -> Made:
    """Apply a recipe under an MLflow run, with parity after each pass and the result's cost."""
    options = options or OptimizeOptions()
    return make_and_log(
        options,
        kind="optimize",
        name=options.recipe.name,
        force=options.force,
        cost_seconds=options.cost_seconds,
    )
