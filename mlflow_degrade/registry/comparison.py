"""Two models asked the same questions: the orchestration behind recipes and gates alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..core.errors import DegradeError, InputError, ModelError
from ..core.progress import verbose
from ..core.prompting import Prompting
from ..decision.policy import GatePolicy
from ..decision.results import SideName
from ..decision.sequential import require_decidable
from ..decision.verdict import look
from ..samples.pairing import PairedScores
from ..samples.planned_order import PlannedOrder
from ..samples.table import SampleScores
from .evidence import EvaluationSource
from .references import ModelFiles, Subject

if TYPE_CHECKING:
    from ..decision.noise import NoiseFindings
    from ..evaluation.run import EvaluationSettings
    from ..evaluation.suite import Suite

_log = logging.getLogger(__name__)
_ASKED = ("limit", "seed", "num_fewshot")

SIDES: tuple[SideName, SideName] = ("baseline", "candidate")


@dataclass(frozen=True)
class Side:
    """A model that is asked, and what its evaluation is called."""

    name: str  # What reports call the model.
    folder: Path  # Its directory.
    run_name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False  # Whether its speed is that of another format.


@dataclass(frozen=True)
class Evaluated:
    """The evaluation that a side's scores are from."""

    run: Any
    now: bool  # Whether it was made by this very job.
    samples: SampleScores | None = None  # Where they are in memory already.

    @property
    def scores(self) -> SampleScores:
        """Its scores, from the run unless they are in memory."""
        from ..tracking.evaluations import load_samples

        return load_samples(self.run) if self.samples is None else self.samples


@dataclass(frozen=True)
class Comparison:
    """Both sides' evaluations, and what they cost: all that a decision is made from."""

    evaluated: Mapping[SideName, Evaluated]
    # Whether the models' scores depend on the batch, so that both ran one sample at a time.
    one_by_one: bool = False
    # Per side: metric name to (value, unit).
    cost: Mapping[str, Mapping[str, tuple[float, str]]] = field(default_factory=dict)

    @classmethod
    def found(cls, baseline: Any, candidate: Any) -> Self:
        """Of two runs that were there already."""
        sides = zip(SIDES, (baseline, candidate), strict=True)
        return cls({side: Evaluated(run, False) for side, run in sides})

    def samples(self, side: SideName) -> SampleScores:
        """One side's scores."""
        return self.evaluated[side].scores

    def noise(
        self, paired: PairedScores, policy: GatePolicy, *, search: bool = False
    ) -> NoiseFindings | None:
        """What reruns of the baseline change, where it is logged beside its evaluation."""
        # Or, with `search`, beside another evaluation of it on the same samples.
        from ..decision.noise import NoiseFindings
        from ..tracking.evaluations import find_noise, logged_noise

        digest = paired.baseline.model_digest
        try:
            record = logged_noise(self.evaluated["baseline"].run)
            if record is None and search and digest is not None:
                record = find_noise(digest)
            return None if record is None else NoiseFindings(record.beside(paired, policy))
        except DegradeError as error:
            # It is a diagnostic: whatever is wrong with it, the decision stands without.
            _log.warning("Noise of the baseline is logged and not shown: %s", error)
            return None

    @property
    def sources(self) -> dict[SideName, EvaluationSource]:
        """Where the scores are from, as evidence says it."""
        return {
            side: EvaluationSource.of(found.run, now=found.now)
            for side, found in self.evaluated.items()
        }


# Units that are asked before the first look at the evidence, and how much longer each look is.
_FIRST_LOOK, _LONGER = 64, 1.1


@dataclass(frozen=True)
class Ordered:
    """A candidate that is asked in a planned order, until that decides."""

    baseline: SampleScores
    policy: GatePolicy
    order: PlannedOrder
    attempt: int  # Of this evaluation set, as the ledger counts.
    tags: Mapping[str, str]  # What the evaluation's run is given before the first sample.
    say: Callable[[str], None]

    @classmethod
    def begin(
        cls,
        baseline: SampleScores,
        key: Mapping[str, Any],
        policy: GatePolicy,
        say: Callable[[str], None],
    ) -> Ordered:
        """Plan the order."""
        from .retry_ledger import begun_tags, count_attempt

        order = policy.order_of(baseline)
        tags = begun_tags(baseline, str(key["model"]), policy, order)
        attempt = count_attempt(tags)
        require_decidable(order, baseline, policy, attempt)
        made = cls(baseline, policy, order, attempt, tags, say)
        say(
            f"the candidate is asked in an order with seed {order.seed} "
            f"({order.digest[:19]}…), until that decides; attempt {attempt} on these samples"
        )
        return made

    @property
    def key(self) -> dict[str, Any]:
        """What the number of samples depends on besides the model."""
        return {
            "order": self.order.digest,
            "policy": self.policy.digest(),
            "baseline": self.baseline.digest(),
            "attempt": self.attempt,
        }

    def looks(self) -> Iterator[dict[str, list[str]]]:
        """Documents by task, look by look."""
        done, size = 0, float(_FIRST_LOOK)
        while done < self.order.units:
            end = min(self.order.units, done + int(size))
            yield self.order.documents(done, end)
            done, size = end, size * _LONGER

    def enough(self, candidate: SampleScores) -> bool:
        """Whether the samples so far decide; says what they show."""
        test = look(self.policy.pair(self.baseline, candidate), self.policy, self.attempt)
        self.say(test.sentence())
        return test.decided


def compare_models(
    sides: Mapping[SideName, Side],
    suite: Suite,
    settings: EvaluationSettings,
    *,
    fresh: bool = False,
    experiments: Collection[str] | None = None,
    adopt: bool = False,
    say: Callable[[str], None] = _log.warning,
    policy: GatePolicy | None = None,
) -> Comparison:
    """Evaluate both sides on one suite by one path, each in a child run, or find it done."""
    # With `adopt` an evaluation that is found is logged to the child run as well. Where the policy
    # may stop early, the candidate is asked in its order, against the whole of the baseline.
    from ..evaluation.run import evaluation_key, scoring_path
    from ..evaluation.suite import prompting_notes

    folders: dict[str, Path] = {side: about.folder for side, about in sides.items()}
    choice = scoring_path(folders, suite, settings)
    for sentence in [
        *(choice.sentences() if adopt and verbose() else ()),
        *prompting_notes(folders, suite),
    ]:
        say(sentence)
    found: dict[SideName, Evaluated] = {}
    for side, about in sides.items():
        key = evaluation_key(about.folder, suite, choice.path, settings)
        order = None
        if side == "candidate" and policy is not None and policy.sequential is not None:
            order = Ordered.begin(found["baseline"].scores, key, policy, say)
            key = {**key, "sequential": order.key}
        found[side] = _evaluation(
            side, about, suite, settings, choice.path, key, order,
            fresh=fresh, experiments=experiments, adopt=adopt, say=say,
        )  # fmt: skip
    return Comparison(found, one_by_one=choice.path == "one-by-one")


def _evaluation(
    side: SideName,
    about: Side,
    suite: Suite,
    settings: EvaluationSettings,
    path: Any,
    key: Mapping[str, Any],
    order: Ordered | None,
    *,
    fresh: bool,
    experiments: Collection[str] | None,
    adopt: bool,
    say: Callable[[str], None],
) -> Evaluated:
    """One side's evaluation, made now or found."""
    from mlflow import MlflowClient

    from ..evaluation.run import evaluate_in_order, evaluate_model
    from ..tracking.evaluations import find_evaluation, load_facts, load_samples, log_evaluation
    from ..tracking.runs import terminate_gracefully, tracked_run

    earlier = None if fresh else find_evaluation(key, experiments=experiments)
    if earlier is not None and not adopt:
        return Evaluated(earlier, False)
    tags = {**about.tags, **(order.tags if order is not None and earlier is None else {})}
    child = tracked_run(about.run_name, nested=True, tags=tags)
    with terminate_gracefully(), child as run:
        if earlier is not None:
            say(f"{side}: evaluated before, in run {earlier.info.run_id}")
            samples = load_samples(earlier)
            log_evaluation(samples, key, facts=load_facts(earlier), reused_from=earlier)
            return Evaluated(earlier, False, samples)
        if order is None:
            made = evaluate_model(about.folder, suite, settings=settings, path=path, label=side)
        else:
            made = evaluate_in_order(
                about.folder, suite, order.looks(), order.enough,
                settings=settings, path=path, label=side,
            )  # fmt: skip
        if made.texts_read is not None:
            say(f"{side}: {made.texts_read}")
        samples = made.samples.with_model(about.name)
        speed = {f"throughput/{k}": v for k, v in made.timing.items() if "per_second" in k and v}
        log_evaluation(
            samples, key, metrics={} if about.simulated else speed,
            facts={**made.facts(), "asked": suite.asked},
        )  # fmt: skip
    return Evaluated(MlflowClient().get_run(run.info.run_id), True, samples)


def evaluate_missing(
    baseline: Subject,
    candidate: Subject,
    questions: Mapping[str, Any] | None,
    *,
    policy: GatePolicy,
    files: ModelFiles,
    device: str,
    fresh: bool,
    experiments: Collection[str],
) -> Comparison:
    """Compare two models in MLflow on what was asked, or on the packaged suite."""
    from ..evaluation.run import EvaluationSettings

    subjects: dict[SideName, Subject] = {"baseline": baseline, "candidate": candidate}
    for its in subjects.values():
        _refuse_other_engines(its, files)
    suite = _suite(questions or _packaged(candidate, files), policy)
    sides = {
        side: Side(its.reference, _directory(its, files), f"evaluate {its.reference}")
        for side, its in subjects.items()
    }
    _require_same_questions(suite, questions or {}, sides["baseline"].folder)
    settings = EvaluationSettings(device=device, resume=not fresh)
    return compare_models(
        sides, suite, settings, fresh=fresh, experiments=experiments, policy=policy
    )


def _packaged(side: Subject, files: ModelFiles) -> dict[str, Any]:
    from ..evaluation.suite import DEFAULT_LIMIT, default_tasks

    return {"tasks": list(default_tasks(_directory(side, files))), "limit": DEFAULT_LIMIT}


def _suite(asked: Mapping[str, Any], policy: GatePolicy) -> Suite:
    from ..evaluation.question_tasks import QuestionOptions
    from ..evaluation.splits import Part
    from ..evaluation.suite import load_suite

    if "tasks" not in asked:
        raise InputError(
            "the earlier evaluation was not made by mlflow-degrade, which cannot ask its questions "
            "again: name the tasks, or evaluate the other model in the same way and log it."
        )
    return load_suite(
        asked["tasks"],
        include_path=asked.get("include_path"),
        prompting=Prompting.read(asked).completed(policy.prompting),
        questions=QuestionOptions.of(asked),
        part=Part.read(asked.get("part")),
        **{name: asked[name] for name in _ASKED if asked.get(name) is not None},
    )


def _require_same_questions(suite: Suite, asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse tasks that are not those of an earlier evaluation, as a model was asked them."""
    from ..evaluation.task_fit import fitted_suite

    if "suite" in asked and fitted_suite(suite, folder).digest != asked["suite"]:
        raise InputError(
            f"the tasks {', '.join(asked['tasks'])} are no longer what the earlier evaluation "
            "asked (another lm-eval, other data or another definition): evaluate both models "
            "again, with fresh."
        )


def _refuse_other_engines(side: Subject, files: ModelFiles) -> None:
    """Refuse a model that this package does not run."""
    if side.model_uri is not None and files.content(side.model_uri).engine_files is not None:
        raise ModelError(
            f"{side.reference} is files of another engine, which is asked over HTTP: start it, and "
            "log the evaluation with mlflow-degrade evaluate --model endpoint and files=… in "
            "--model-args."
        )


def _directory(side: Subject, files: ModelFiles) -> Path:
    from ..optimize.export import export_onnx
    from ..optimize.source.resolve import resolve_model

    if side.model_uri is None:
        raise ModelError(
            f"{side.reference} has no logged model, so it cannot be evaluated: name a model "
            "instead of a run, or an evaluation of the same questions."
        )
    return export_onnx(resolve_model(side.model_uri, files=files.folder(side.model_uri)))
