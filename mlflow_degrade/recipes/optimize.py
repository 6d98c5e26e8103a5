"""Apply any recipe to a model, measure and log the result: the job behind recipes/optimize."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ..optimize.recipe import Recipe
from ..runtime.providers import Device
from .pass_steps import Made, make_and_log


class OptimizeOptions(BaseModel):
    """What to do to which model.

    Attributes
    ----------
    model : str
        As in `mlflow_degrade.recipes.quantize.QuantizeOptions`.
    recipe : Recipe
        From `mlflow_degrade.optimize.recipe.load_recipe`.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where the model is to run.
    force : bool
        Apply even a scheme that is refused there.
    cost_seconds : float
        Time for measuring speed side by side with the plain export, see
        `mlflow_degrade.runtime.cost.measure_cost`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "starter"
    recipe: Recipe = Recipe.of_scheme("int8-weight-only")
    device: Device = "auto"
    force: bool = False
    cost_seconds: float = Field(default=8.0, ge=0, le=3_600)


def optimize_model(options: OptimizeOptions | None = None) -> Made:
    """Apply a recipe under an MLflow run, with parity after each pass and the result's cost.

    Parameters
    ----------
    options : OptimizeOptions, optional
        By default the starter model in 8 bits.

    Returns
    -------
    Made
        The model directory, the logged model and the figures. There is no verdict: that is
        `mlflow_degrade.recipes.quantize.quantize_and_gate`'s.

    Raises
    ------
    DegradeError
        Whatever is wrong, found as early as possible.
    """
    options = options or OptimizeOptions()
    return make_and_log(
        options,
        kind="optimize",
        name=options.recipe.name,
        force=options.force,
        cost_seconds=options.cost_seconds,
    )
