"""The steps of a gating recipe, each a function that another recipe can call."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..core.progress import remember_step, step_heading, verbose
from ..decision.cost_evidence import CostEvidence
from ..decision.policy import GatePolicy
from ..decision.requirements import CostPlan, plan_cost
from ..decision.results import Decision, Verdict
from ..engine.providers import CPU
from ..samples.pairing import PairedScores

if TYPE_CHECKING:
    from ..evaluation.shards import Workers
    from ..evaluation.suite import Suite
    from ..optimize.pass_table import QuantizePass
    from ..optimize.recipe import Recipe
    from ..registry.comparison import Comparison
    from ..registry.signing import SigningKey
from collections.abc import Mapping

from ..core.errors import DegradeError
from ..optimize.recipe import Recipe
from ..tracking.runs import joined_run_id

# The MLflow run of a recipe, and what every recipe logs to it.

ERROR_TAG = "degrade.error"
"""What was wrong, of a run that failed."""


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
                mlflow.set_tag(ERROR_TAG, str(error)[:2_000])
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


# What a recipe says while it runs: its steps on standard error, the verdict on standard output.


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, which one it is and how long it took before; then how long it took."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print("▸ ", step_heading(title), sep="", style="bold", markup=False, soft_wrap=True)
    start = time.monotonic()
    yield
    remember_step(title, seconds := time.monotonic() - start)
    console.print(f"  [dim]{seconds:.1f} s[/dim]")


def say(text: str) -> None:
    """One indented line on standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"  {text}", markup=False)


@dataclass(frozen=True)
class Models:
    """The two model directories that are compared."""

    name: str  # What the user called the model.
    scheme: str  # What was done to the candidate.
    baseline: Path
    candidate: Path

    @property
    def simulated_cost(self) -> dict[str, dict[str, tuple[float, str]]] | None:
        """What is known of the cost when the candidate's format is only simulated; else None."""
        # Its speed and its memory are the baseline's, and say nothing about the format.
        from ..optimize.source.model_directory import ModelDirectory

        candidate = ModelDirectory.load(self.candidate)
        if candidate.simulated_bytes is None:
            return None
        return {
            "baseline": {"size/bytes": (ModelDirectory.load(self.baseline).size_bytes, "bytes")},
            "candidate": {
                "size/simulated_bytes": (candidate.simulated_bytes, "bytes"),
                "size/simulated_bits_per_weight": (candidate.recipe[-1]["bits_per_weight"], "bits"),
            },
        }

    def directory(self, side: str) -> Path:
        """Model directory of ``"baseline"`` or ``"candidate"``."""
        return self.baseline if side == "baseline" else self.candidate


@dataclass(frozen=True)
class Conclusion:
    """A decision that is logged, with what it was made from."""

    decision: Decision
    paired: PairedScores
    evidence_digest: str
    compared: Comparison


def packaged_suite(model: str) -> tuple[str, ...]:
    """The packaged suite that fits a model, by its config."""
    from ..evaluation.suite import default_tasks
    from ..optimize.source.resolve import resolve_model

    with step(f"Choose tasks for {model}"):
        tasks = default_tasks(resolve_model(model).path)
        say(f"tasks: {', '.join(tasks)}")
    return tasks


def make_models(
    model: str,
    recipe: Recipe,
    *,
    baseline: str | None,
    providers: tuple[str, ...],
    force: bool = False,
) -> Models:
    """Resolve a model and apply a recipe to it, or find what was made before."""
    from ..optimize.recipe import run_recipe

    quantization, before = require_quantization(recipe), recipe.before_quantization
    with step(f"Resolve, export and optimize {model}"):
        exported = run_recipe(model, before, providers=providers)
        describe_model(exported)
    with step(quantization.title):
        candidate = quantization.apply(exported, providers=providers, force=force)
        describe_model(candidate)
        if note := quantization.note(providers):
            say(f"note: {note}")
        describe_placement(candidate, providers)
    if baseline is not None:
        with step(f"Resolve and export the baseline {baseline}"):
            exported = run_recipe(baseline, before, providers=providers)
    return Models(model, quantization.name, exported, candidate)


def require_new(output: Path | None) -> None:
    """Raise before any work where the directory for the model is there already."""
    if (
        output is not None
        and output.exists()
        and not (output.is_dir() and not any(output.iterdir()))
    ):
        raise InputError(f"output {output} is there already: name a new directory, or empty it.")


def put_into(output: Path | None, folder: Path) -> None:
    """Copy a finished model to where the user wants it."""
    if output is None:
        return
    try:
        shutil.copytree(folder, output, dirs_exist_ok=True)
    except OSError as error:
        raise InputError(f"output {output} cannot be written: {error}") from error
    say(f"the model is in {output}")


def require_quantization(recipe: Recipe) -> QuantizePass:
    """The pass that makes the candidate."""
    if recipe.quantization is None:
        raise InputError(
            f"recipe {recipe.name!r} has no pass 'quantize': the candidate would be its own "
            "baseline. Add one, or make the model with recipes/optimize, which gates nothing."
        )
    return recipe.quantization


def describe_model(folder: Path) -> None:
    """Say what is worth knowing of a model directory, and log what its scheme found."""
    from ..optimize.source.model_directory import ModelDirectory
    from ..tracking.bench import log_findings

    made = ModelDirectory.load(folder)
    say(f"{made.size_bytes / 1e6:.0f} MB in {folder}")
    if why := made.recipe[-1].get("not_fused"):
        say(f"note: attention is not fused: {why}")
    for note in made.length_notes:
        say(f"note: {note}")
    log_findings(made)
    if made.weights_note:
        say(made.weights_note)
    if made.simulated_bytes is not None:
        say(
            f"note: the format is simulated. {made.simulated_bytes / 1e6:.0f} MB is what it "
            "would take; this file is no smaller and no faster than the export"
        )
    # A scheme that decides by the table may as well give layers other forms than float.
    kept = made.recipe[-1].get("kept_in_float")
    if made.sensitivity is not None and kept is not None:
        say(f"{len(kept)} of {len(made.sensitivity.layers)} layers stay in float")


def describe_placement(folder: Path, providers: tuple[str, ...]) -> None:
    """Say and log which nodes of a model directory run where."""
    from ..bench.node_assignment import find_placement
    from ..tracking.bench import log_placement

    placement = find_placement(folder, providers)
    if verbose() or providers[0] != CPU:  # where only one provider is, all nodes are on it
        say(placement.sentence())
    log_placement(placement)


def evaluate_both(
    models: Models,
    suite: Suite,
    *,
    device: str,
    batch_size: int | str,
    fresh: bool,
    policy: GatePolicy | None = None,
    workers: Workers | None = None,
) -> Comparison:
    """Evaluate both models alike, each in a child run, or take evaluations MLflow already has."""
    from ..evaluation.run import EvaluationSettings
    from ..registry.comparison import SIDES, Side, compare_models
    from ..registry.references import SIDE_TAG

    settings = EvaluationSettings(
        device=device, batch_size=batch_size, resume=not fresh, workers=workers
    )
    tasks = ", ".join(task.name for task in suite.tasks)
    with step(f"Evaluate both models on {suite.documents} samples: {tasks}"):
        schemes = {"baseline": "fp32", "candidate": models.scheme}
        sides = {
            side: Side(
                f"{models.name} {schemes[side]}",
                models.directory(side),
                side,
                {SIDE_TAG: side, "degrade.scheme": schemes[side]},
                simulated=side == "candidate" and models.simulated_cost is not None,
            )
            for side in SIDES
        }
        return compare_models(
            sides, suite, settings, fresh=fresh, adopt=True, say=say, policy=policy
        )


@dataclass(frozen=True)
class Measured:
    """What both models were measured to cost."""

    figures: dict[str, dict[str, tuple[float, str]]]
    rounds: CostEvidence | None = None  # None where a format is only simulated.


def measure_cost(
    models: Models, *, device: str, seconds: float, plan: CostPlan | None = None
) -> Measured:
    """Size, speed and memory of both models, measured in turn in one process."""
    from ..bench import cost
    from ..evaluation.model_evaluation import model_digest
    from ..report.bench import speed_sentence
    from ..report.cost import RATIO, slower_phases

    if (simulated := models.simulated_cost) is not None:
        say("speed and memory are not measured: the candidate's format is simulated")
        return Measured(simulated)
    plan = plan or CostPlan(0, 1)
    with step("Measure size, speed and memory of both, side by side"):
        folders = {side: models.directory(side) for side in ("baseline", "candidate")}
        measured = cost.measure_cost(
            folders, device=device, seconds=seconds, min_rounds=plan.rounds,
            processes=plan.processes,
        )  # fmt: skip
        for speed in measured.ratios():
            say(speed_sentence(speed))
        found = {model.label: model.figures(named_shapes=False) for model in measured.models}
        ratios = measured.ratio_metrics("candidate", named_shapes=False)
        found["candidate"].update({name: (value, RATIO) for name, value in ratios.items()})
        for sentence in slower_phases(found):
            say(f"note: {sentence}")
        digests = {side: model_digest(folder) for side, folder in folders.items()}
        return Measured(found, measured.evidence("candidate", digests))


def conclude(
    compared: Comparison,
    policy: GatePolicy,
    measure: Measured | Callable[[CostPlan], Measured] | None = None,
) -> Conclusion:
    """Pair, test, measure the cost, decide, and log the evidence to the active run."""
    # Without a measurement what is known of the cost is shown, and no goal is decided.
    import mlflow

    from ..decision.verdict import decide
    from ..registry.register_on_pass import enter_ledger, log_verdict
    from ..registry.retry_ledger import count_attempt
    from ..tracking.evaluations import log_finite_metrics

    with step("Pair the samples, test and decide"):
        paired = policy.pair(compared.samples("baseline"), compared.samples("candidate"))
        known = measure.rounds if isinstance(measure, Measured) else None
        attempt = count_attempt(enter_ledger(paired, policy, known))
        scores = decide(paired, policy, attempt=attempt)
    measured = Measured({side: dict(figures) for side, figures in compared.cost.items()})
    if measure is None:
        pass
    elif isinstance(measure, Measured):
        measured = measure
    elif policy.cost is not None and scores.verdict is Verdict.FAIL:
        say("speed and memory are not measured: the scores have failed already")
    else:
        measured = measure(plan_cost(policy, scores.alpha_attempt))
    decision, digest = log_verdict(
        paired, policy, compared.sources, attempt=attempt, rounds=measured.rounds
    )
    cost = measured.figures.get("candidate", {})
    log_finite_metrics({name: value for name, (value, _) in cost.items()})
    digest_of_model = paired.candidate.model_digest or "unknown"
    mlflow.set_tag("degrade.candidate_model_digest", digest_of_model)
    return Conclusion(decision, paired, digest, replace(compared, cost=measured.figures))


def log_and_register(
    conclusion: Conclusion,
    models: Models,
    name: str | None,
    *,
    run_id: str,
    key: SigningKey | None = None,
) -> str | None:
    """Log the candidate as a model and, given a name, register it with its verdict."""
    from ..optimize.source.model_directory import ModelDirectory
    from ..registry.evidence import decision_metrics
    from ..registry.register_on_pass import place, seal, tested_content
    from ..registry.registration import log_model
    from ..tracking.evaluations import log_model_metrics

    decision, paired, compared = conclusion.decision, conclusion.paired, conclusion.compared
    if decision.verdict.value != "PASS":
        raise ValueError(f"a candidate with verdict {decision.verdict.value} is not registered")
    directory = ModelDirectory.load(models.candidate)
    directory.verify()
    with step("Log the candidate" + (f" and register it as {name}" if name else "")):
        info = log_model(
            models.candidate,
            metadata={"degrade_model_digest": directory.digest, "degrade_scheme": models.scheme},
            one_by_one=compared.one_by_one,
            prompting=paired.candidate.prompting,
            name=f"{Path(models.name).name} {models.scheme}",
        )
        log_model_metrics(run_id, info.model_id, paired.candidate, decision_metrics(decision))
        content = tested_content(info.model_uri, paired.candidate)
        if name is None:
            seal(decision, run_id, content, key, register=False)
            return None
        tags = {"degrade.scheme": models.scheme, "degrade.source": models.name}
        if directory.simulated_bytes is not None:
            tags["degrade.simulated"] = "true"
        placed = place(
            decision, conclusion.evidence_digest, run_id, name, info.model_uri, content,
            key=key, fresh=True, tags=tags, cost=compared.cost,
            made_by=f"{models.scheme} of {models.name}",
        )  # fmt: skip
        return placed.version


def report(conclusion: Conclusion, models: Models, registered: str | None) -> None:
    """Log what people read to the active run, and print the verdict."""
    from ..optimize.source.model_directory import ModelDirectory
    from ..registry.register_on_pass import log_report
    from ..report.next_steps import Command, next_lines
    from ..report.terminal import console, decision_view, subgroup_view
    from ..tracking.views import where_to_look

    decision, paired = conclusion.decision, conclusion.paired
    provenance: dict[str, Any] = {
        "model": models.name,
        "scheme": models.scheme,
        "registered": registered,
    }
    provenance["weights"] = ModelDirectory.load(models.candidate).weights_note
    if models.simulated_cost is not None:
        provenance["simulated"] = (
            "numbers are rounded to the format and computed in float32; its size is calculated, "
            "speed and memory are not measured"
        )
    asked = {"model": models.name, "scheme": models.scheme}
    provenance["command"] = Command.current() or Command("mlflow run recipes/quantize", (), asked)
    compared = conclusion.compared
    noise = compared.noise(paired, decision.policy, search=True)
    found = log_report(decision, paired, cost=compared.cost, provenance=provenance, noise=noise)
    out = console()
    out.print(decision_view(decision, paired, scheme=models.scheme, noise=noise))
    if found is not None and any(feature.found for feature in found.features):
        out.print(subgroup_view(found, decision))
    if registered:
        out.print(f"\nRegistered as [bold]{registered}[/bold].")
    elif decision.verdict.value == "PASS":
        out.print("\nNo name to register it under was given; the model is logged with the run.")
    else:
        out.print(f"\nNothing was registered: the verdict is {decision.verdict.value}.")
    for line in ("", *next_lines(decision, provenance), "", *where_to_look()):
        out.print(line, markup=False, soft_wrap=True)
