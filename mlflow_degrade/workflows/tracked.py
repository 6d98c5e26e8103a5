"""The MLflow run of a recipe, and what every recipe logs to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import DegradeError
from ..optimize.recipe import Recipe
from ..tracking.runs import joined_run_id
from .steps import step


@contextmanager
def recipe_run(name: str, params: Mapping[str, Any], *, kind: str = "recipe") -> Iterator[str]:
    """Start the run of a job, or join the one that ``mlflow run`` made for it."""
    import mlflow

    from ..tracking.connection import require_tracking_server
    from ..tracking.evaluations import KIND_TAG
    from ..tracking.runs import terminate_gracefully, tracked_run

    with terminate_gracefully():
        require_tracking_server()
        joined = joined_run_id()
        with tracked_run(name, run_id=joined, tags={KIND_TAG: kind}) as run:
            if joined is None:
                mlflow.log_params(dict(params))
            try:
                yield str(run.info.run_id)
            except DegradeError as error:
                mlflow.set_tag("degrade.error", str(error)[:2_000])
                raise


def recipe_params(recipe: Recipe) -> dict[str, str]:
    """A recipe among a run's parameters: its name, and each of its passes."""
    passes = ", ".join(each.name for each in recipe.passes)
    return {"recipe": recipe.name, "passes": passes}


def log_recipe(recipe: Recipe) -> None:
    """Log a recipe to the active run: its file and the texts it names, below ``recipe/``."""
    import mlflow
    import yaml

    mlflow.set_tag("degrade.recipe", recipe.name)
    if recipe.file is None:
        mlflow.log_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False), "recipe/recipe.yaml")
    else:
        mlflow.log_artifact(str(recipe.file), "recipe")
    if (quantization := recipe.quantization) is not None:
        mlflow.set_tag("degrade.scheme", quantization.name)
        if quantization.calibration is not None:
            mlflow.log_artifact(str(quantization.calibration), "recipe")


def find_model(model: str, *, tag: str = "degrade.source_notes") -> Path:
    """Look at a model before any work, and log which of the files in its directory was taken."""
    import mlflow

    from ..optimize.source.resolve import resolve_model

    with step(f"Find {model}"):
        found = resolve_model(model)
        if found.notes:
            mlflow.set_tag(tag, "; ".join(found.notes)[:2_000])
    return found.path
