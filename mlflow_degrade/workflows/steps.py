"""The steps of a gating recipe, each a function that another recipe can call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..decision.policy import GatePolicy
from ..decision.results import Decision, SideName
from ..samples.pairing import PairedScores
from ..samples.table import SampleScores

if TYPE_CHECKING:
    from ..evaluation.suite import Suite
    from ..optimize.pass_table import QuantizePass
    from ..optimize.recipe import Recipe
    from ..registry.evidence import EvaluationSource
    from ..registry.signing import SigningKey
import time
from collections.abc import Iterator
from contextlib import contextmanager

# What a recipe says while it runs: its steps on standard error, the verdict on standard output.


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, and say how long it took."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]▸ {title}[/bold]")
    start = time.monotonic()
    yield
    console.print(f"  [dim]{time.monotonic() - start:.1f} s[/dim]")


def say(text: str) -> None:
    """One indented line on standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"  {text}", markup=False)


SIDES: tuple[SideName, SideName] = ("baseline", "candidate")


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
    # Whether the models' scores depend on the batch, so that both ran one sample at a time.
    one_by_one: bool
    cost: Mapping[str, Mapping[str, tuple[float, str]]]  # Per side: metric name to (value, unit).


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
    if made.sensitivity is not None:
        kept = made.recipe[-1]["kept_in_float"]
        say(f"{len(kept)} of {len(made.sensitivity.layers)} layers stay in float")


def describe_placement(folder: Path, providers: tuple[str, ...]) -> None:
    """Say and log which nodes of a model directory run where."""
    from ..bench.node_assignment import find_placement
    from ..tracking.bench import log_placement

    placement = find_placement(folder, providers)
    say(placement.sentence())
    log_placement(placement)


def evaluate_arms(
    models: Models, suite: Suite, *, device: str, batch_size: int | str, fresh: bool
) -> tuple[dict[str, SampleScores], dict[SideName, EvaluationSource], str]:
    """Evaluate both models alike, each in a child run, or take evaluations MLflow already has."""
    from ..evaluation.run import EvaluationSettings, evaluation_key, scoring_path
    from ..evaluation.suite import prompting_notes

    settings = EvaluationSettings(device=device, batch_size=batch_size, resume=not fresh)
    tasks = ", ".join(task.name for task in suite.tasks)
    with step(f"Evaluate both models on {suite.documents} samples: {tasks}"):
        directories: dict[str, Path] = {side: models.directory(side) for side in SIDES}
        choice = scoring_path(directories, suite, settings)
        notes = prompting_notes(directories, suite)
        for sentence in [*choice.sentences(), *notes]:
            say(sentence)
        arms = {}
        for side in SIDES:
            key = evaluation_key(models.directory(side), suite, choice.path, settings)
            arms[side] = _evaluate_arm(side, models, suite, key, settings, choice.path, fresh)
    samples: dict[str, SampleScores] = {side: arm[0] for side, arm in arms.items()}
    return samples, {side: arm[1] for side, arm in arms.items()}, choice.path


def _evaluate_arm(
    side: str,
    models: Models,
    suite: Suite,
    key: Mapping[str, Any],
    settings: Any,
    path: Any,
    fresh: bool,
) -> tuple[SampleScores, EvaluationSource]:
    from ..evaluation.run import evaluate_model
    from ..registry.evidence import EvaluationSource
    from ..tracking.evaluations import find_evaluation, load_facts, load_samples, log_evaluation
    from ..tracking.runs import tracked_run

    scheme = "fp32" if side == "baseline" else models.scheme
    with tracked_run(
        side, nested=True, tags={"degrade.side": side, "degrade.scheme": scheme}
    ) as run:
        earlier = None if fresh else find_evaluation(key)
        if earlier is not None:
            say(f"{side}: evaluated before, in run {earlier.info.run_id}")
            samples, facts = load_samples(earlier), load_facts(earlier)
            speed: Mapping[str, float] = {}
        else:
            found = evaluate_model(
                models.directory(side), suite, settings=settings, path=path, label=side
            )
            samples = found.samples.with_model(f"{models.name} {scheme}")
            facts = {**found.facts(), "asked": suite.asked}
            speed = {f"throughput/{k}": v for k, v in found.timing.items() if "per_second" in k}
            if side == "candidate" and models.simulated_cost is not None:
                speed = {}  # the speed of float32 is none of the format's
        log_evaluation(samples, key, metrics=speed, facts=facts, reused_from=earlier)
    return samples, EvaluationSource.of(earlier or run, now=earlier is None)


def measure_cost(
    models: Models, *, device: str, seconds: float
) -> dict[str, dict[str, tuple[float, str]]]:
    """Size, speed and memory of both models, measured in turn in one process."""
    from ..bench import cost
    from ..report.bench import speed_sentence
    from ..report.cost import RATIO, slower_phases

    if (simulated := models.simulated_cost) is not None:
        say("speed and memory are not measured: the candidate's format is simulated")
        return simulated
    with step("Measure size, speed and memory of both, side by side"):
        folders: dict[str, Path] = {side: models.directory(side) for side in SIDES}
        measured = cost.measure_cost(folders, device=device, seconds=seconds)
        for speed in measured.ratios():
            say(speed_sentence(speed))
        found = {model.label: model.figures(named_shapes=False) for model in measured.models}
        ratios = measured.ratio_metrics("candidate", named_shapes=False)
        found["candidate"].update({name: (value, RATIO) for name, value in ratios.items()})
        for sentence in slower_phases(found):
            say(f"note: {sentence}")
        return found


def conclude(
    samples: Mapping[str, SampleScores],
    policy: GatePolicy,
    *,
    one_by_one: bool,
    cost: Mapping[str, Mapping[str, tuple[float, str]]],
    sources: Mapping[SideName, EvaluationSource] | None = None,
) -> Conclusion:
    """Pair, test, decide, and log the evidence to the active run."""
    import mlflow

    from ..registry.register_on_pass import log_verdict
    from ..tracking.evaluations import log_finite_metrics

    with step("Pair the samples, test and decide"):
        baseline, candidate = (samples[side] for side in SIDES)
        paired = policy.pair(baseline, candidate)
        decision, digest = log_verdict(paired, policy, sources)
        log_finite_metrics({name: value for name, (value, _) in cost["candidate"].items()})
        mlflow.set_tag("degrade.candidate_model_digest", candidate.model_digest or "unknown")
    return Conclusion(decision, paired, digest, one_by_one, cost)


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
    from ..registry.register_on_pass import seal, tested_content
    from ..registry.registration import log_model, register, verdict_tags
    from ..tracking.datasets import log_model_metrics

    decision = conclusion.decision
    if decision.verdict.value != "PASS":
        raise ValueError(f"a candidate with verdict {decision.verdict.value} is not registered")
    directory = ModelDirectory.load(models.candidate)
    directory.verify()
    with step("Log the candidate" + (f" and register it as {name}" if name else "")):
        info = log_model(
            models.candidate,
            metadata={"degrade_model_digest": directory.digest, "degrade_scheme": models.scheme},
            one_by_one=conclusion.one_by_one,
            prompting=conclusion.paired.candidate.prompting,
        )
        log_model_metrics(
            run_id, info.model_id, conclusion.paired.candidate, decision_metrics(decision)
        )
        content = tested_content(info.model_uri, conclusion.paired.candidate)
        seal(decision, run_id, content, key, register=name is not None)
        if name is None:
            return None
        tags = {
            **verdict_tags(decision, conclusion.evidence_digest, run_id, content),
            "degrade.scheme": models.scheme,
            "degrade.source": models.name,
        }
        if directory.simulated_bytes is not None:
            tags["degrade.simulated"] = "true"
        version = register(
            info.model_uri,
            name,
            run_id=run_id,
            tags=tags,
            description=f"{models.scheme} of {models.name}: {decision.reasons[0]}",
            model_id=info.model_id,
        )
        return f"models:/{version.name}/{version.version}"


def report(conclusion: Conclusion, models: Models, registered: str | None) -> None:
    """Log what people read to the active run, and print the verdict."""
    from ..optimize.source.model_directory import ModelDirectory
    from ..registry.reporting import log_report
    from ..report.terminal import console, decision_view, subgroup_view

    decision, paired = conclusion.decision, conclusion.paired
    provenance = {"model": models.name, "scheme": models.scheme, "registered": registered}
    provenance["weights"] = ModelDirectory.load(models.candidate).weights_note
    if models.simulated_cost is not None:
        provenance["simulated"] = (
            "numbers are rounded to the format and computed in float32; its size is calculated, "
            "speed and memory are not measured"
        )
    found = log_report(decision, paired, cost=conclusion.cost, provenance=provenance)
    out = console()
    out.print(decision_view(decision, paired))
    if found is not None and any(feature.found for feature in found.features):
        out.print(subgroup_view(found, decision))
    if registered:
        out.print(f"\nRegistered as [bold]{registered}[/bold].")
    elif decision.verdict.value == "PASS":
        out.print("\nNo name to register it under was given; the model is logged with the run.")
    else:
        out.print(f"\nNothing was registered: the verdict is {decision.verdict.value}.")
