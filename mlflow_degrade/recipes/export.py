"""Export a model and log it: the job behind recipes/export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from ..optimize.passes import ExportPass, GraphPass
from ..optimize.recipe import Recipe
from .pass_steps import Made, apply_passes, log_and_show
from .tracked import log_recipe, recipe_params, recipe_run


class ExportOptions(BaseModel):
    """What to export, and how.

    Attributes
    ----------
    model : str
        As in `mlflow_degrade.recipes.quantize.QuantizeOptions`.
    recipe : Recipe
        An export and perhaps a graph optimization, by default with attention as one node.
    device : {"auto", "cpu", "cuda"}
        Where the model is to run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "starter"
    recipe: Recipe = Recipe("fused", (ExportPass(), GraphPass()))
    device: Literal["auto", "cpu", "cuda"] = "auto"

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
    """Export a model under an MLflow run, with parity, size and nodes after each pass.

    Parameters
    ----------
    options : ExportOptions, optional
        By default the starter model.

    Returns
    -------
    Made
        The model directory, the logged model and the figures.

    Raises
    ------
    DegradeError
        Whatever is wrong, found as early as possible.
    """
    from ..runtime.providers import resolve_device

    options = options or ExportOptions()
    name = f"export {options.recipe.name} of {Path(options.model).name}"
    params = {"model": options.model, "device": options.device, **recipe_params(options.recipe)}
    with recipe_run(name, params, kind="export") as run_id:
        providers = resolve_device(options.device)
        log_recipe(options.recipe)
        results = apply_passes(options.model, options.recipe, providers=providers)
        return log_and_show(results, {}, run_id=run_id, device=options.device)
