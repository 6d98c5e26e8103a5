"""Export a model and log it: the job behind recipes/export."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator

from ..optimize.passes import ExportPass, GraphPass
from ..optimize.recipe import Recipe
from ..runtime.providers import Device
from .pass_steps import Made, make_and_log


class ExportOptions(BaseModel):
    """What to export, and how.

    Attributes
    ----------
    model : str
        As in `mlflow_degrade.recipes.quantize.QuantizeOptions`.
    recipe : Recipe
        An export and perhaps a graph optimization, by default with attention as one node.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where the model is to run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "starter"
    recipe: Recipe = Recipe("fused", (ExportPass(), GraphPass()))
    device: Device = "auto"

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
    options = options or ExportOptions()
    return make_and_log(options, kind="export", name=f"export {options.recipe.name}")
