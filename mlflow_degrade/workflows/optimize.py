"""Apply any recipe to a model, measure and log the result: the job behind recipes/optimize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..engine.providers import Device
from ..optimize.pass_table import ExportPass, GraphPass, PassResult
from ..optimize.recipe import NamedRecipe, Recipe
from ..report.cost import CostFigures
from . import steps
from .steps import find_model, log_recipe, recipe_params, recipe_run, say, step

if TYPE_CHECKING:
    from ..optimize.source.model_directory import ModelDirectory


# The steps of a recipe that makes a model without judging it: apply, measure, log, show.


@dataclass(frozen=True)
class Made:
    """A model that was made and logged."""

    run_id: str  # The run in MLflow.
    model_uri: str  # The logged model.
    passes: tuple[PassResult, ...]  # What each pass left; the last one is the model.
    # Of the export as ``"baseline"`` and the model as ``"candidate"``; empty where it was not
    # measured.
    cost: CostFigures

    @property
    def model_dir(self) -> Path:
        """The model directory, in the cache."""
        return self.passes[-1].folder


def make_and_log(
    options: MakeOptions,
    recipe: Recipe,
    *,
    kind: str,
    name: str,
    force: bool = False,
    cost_seconds: float | None = None,
) -> Made:
    """Apply a recipe under an MLflow run, and log and show what came out."""
    from ..engine.providers import resolve_device

    model, device = options.model, options.device
    params = {**options.model_dump(mode="json", exclude={"recipe"}), **recipe_params(recipe)}
    with recipe_run(f"{name} of {Path(model).name}", params, kind=kind) as run_id:
        providers = resolve_device(device)
        steps.require_new(options.output)
        log_recipe(recipe)
        results = apply_passes(model, recipe, providers=providers, force=force)
        cost: CostFigures = {}
        if cost_seconds is not None:
            cost = measure_against_export(model, results, device=device, seconds=cost_seconds)
        made = log_and_show(results, cost, run_id=run_id, device=device)
        steps.put_into(options.output, made.model_dir)
        return made


def apply_passes(
    model: str, recipe: Recipe, *, providers: tuple[str, ...], force: bool = False
) -> tuple[PassResult, ...]:
    """Apply each pass of a recipe, and compare what it left with the source."""
    recipe.check(providers, force=force)
    source = find_model(model)
    results: list[PassResult] = []
    for each in recipe.passes:
        with step(each.title):
            before = results[-1].folder if results else model
            folder = each.apply(before, providers=providers, force=force)
            steps.describe_model(folder)
            if note := each.note(providers):
                say(f"note: {note}")
            results.append(PassResult.of(each.name, source, folder))
            say(str(results[-1].parity))
            if each is recipe.passes[-1]:
                steps.describe_placement(folder, providers)
    return tuple(results)


def measure_against_export(
    model: str, results: Sequence[PassResult], *, device: str, seconds: float
) -> CostFigures:
    """Size, speed and memory of the last result beside the first one's, the plain export."""
    # Empty where both are the same model.
    first, last = results[0], results[-1]
    if first.folder == last.folder:
        say("speed is not measured: the recipe leaves the export as it is")
        return {}
    models = steps.Models(model, last.name, first.folder, last.folder)
    return steps.measure_cost(models, device=device, seconds=seconds).figures


def log_and_show(
    results: Sequence[PassResult], cost: CostFigures, *, run_id: str, device: str
) -> Made:
    """Log the model, its passes and its cost to the active run, and print the tables."""
    from ..optimize.source.model_directory import ModelDirectory
    from ..report.cost import passes_view
    from ..report.terminal import console
    from ..tracking.bench import log_passes

    made = ModelDirectory.load(results[-1].folder)
    made.verify()
    with step("Log the model"):
        log_passes(results, cost)
        uri = _logged(made, device)
    out = console()
    out.print(passes_view(results, cost))
    out.print(f"\nLogged as {uri}; nothing was judged or registered.")
    return Made(run_id, uri, tuple(results), cost)


def _logged(made: ModelDirectory, device: str) -> str:
    """Log a model so that it can be served; its files alone where the engine cannot read it."""
    from ..optimize.parity.agreement import is_unscored
    from ..registry.registration import log_files, log_model

    if is_unscored(made.path):
        say("note: its files are logged and cannot be served: the engine does not run its task")
        return log_files(made.path)
    info = log_model(
        made.path,
        metadata={"degrade_model_digest": made.digest, "degrade_scheme": made.scheme},
        one_by_one=depends_on_batch(made.path, device=device),
        name=f"{Path(str(made.source['name'])).name} {made.scheme}",
    )
    return str(info.model_uri)


def depends_on_batch(folder: Path, *, device: str) -> bool:
    """Whether a model's scores change with what else is in the batch: measured on plain texts."""
    from ..engine.decoder import OnnxDecoder
    from ..engine.encoder import OnnxEncoder
    from ..engine.family import model_family
    from ..evaluation.probes import probe_batch_invariance, probe_encoder
    from ..optimize.parity.prompts import PARITY_PROMPTS

    if model_family(folder) == "decoder":
        decoder = OnnxDecoder(folder, device=device)
        found = probe_batch_invariance(decoder, decoder.encoder.encode(PARITY_PROMPTS))
        decoder.close()
    else:
        encoder = OnnxEncoder(folder, device=device)
        found = probe_encoder(encoder, encoder.text.encode(PARITY_PROMPTS)[0])
        encoder.close()
    return not found.invariant


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
