"""What a search is asked for: its options, documents, goals and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..core.cache import digest_json
from ..core.errors import InputError, TrackingError
from ..decision.policy import CostPolicy, GatePolicy
from ..engine.providers import Device
from ..optimize.search_space import AUTO, NamedSpace, SearchSpace
from ..report.search import Trial
from . import steps
from .questions import Questions, RegisteredName, Tasks
from .steps import say

if TYPE_CHECKING:
    from ..evaluation.suite import Suite
    from ..tracking.studies import SearchStudy

SEARCH_TAG = "degrade.search"
"""The study that a search's run belongs to."""


class SearchOptions(Questions):
    """What is searched for the cheapest model that passes, and how long.

    Attributes
    ----------
    model : str
        ``starter``, ``starter-encoder``, a Hugging Face id, a local directory or the file in it
        that is the model, or ``models:/name@alias``.
    space : SearchSpace
        What is tried: a recipe file in which keys may have lists of values, or the name of a
        packaged space, ``decoder`` or ``encoder``; ``auto`` takes the one that fits the model.
    tasks : tuple of str
        lm-eval tasks or groups, or files and data sets of questions such as mine.csv,
        comma-separated; ``auto`` is the packaged suite that fits the model. Their documents are
        split: candidates are chosen on one part and confirmed on the other.
    selection_tasks : tuple of str
        Other tasks to choose on; all documents of the tasks are then for the confirmation.
    selection_share : float
        Share of the documents that candidates are chosen on.
    policy : GatePolicy
        What must be shown on the confirmation. The rule is `non_inferiority`, whose level can be
        spent over several candidates.
    decode_speedup : float, optional
        Least speed against the baseline, in decoding, of an encoder in encoding: 1.3 is 30% more
        tokens a second.
    size_ratio : float, optional
        Largest size against the baseline: 0.5 is half of the bytes.
    cheapest : {"both", "speed", "size"}
        What is meant by cheap where candidates of the front are ordered: both takes the geometric
        mean of the two ratios.
    minutes : float
        Time for the search, with what the confirmation is expected to take.
    trials : int, optional
        Most candidates to try; by default all, as far as the time allows.
    resume : str, optional
        The run of a search to go on with, which must have had the same parameters. Without it a
        search goes on with the one of the same parameters in the same experiment.
    register_as : str, optional
        Name in the model registry on PASS; ``auto`` derives it from the model, ``none`` registers
        nothing.
    output : Path, optional
        New directory to put the model that passes into.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where the models run; auto takes the GPU where there is one.
    force : bool
        Take schemes that are refused on the device because they are slow there.
    batch_size : int or "auto"
        Sequences per batch.
    fresh : bool
        Begin a search anew, and evaluate again what MLflow already has.
    cost_seconds : float
        Time for measuring each candidate side by side with the baseline, and twice that for the
        confirmation.
    signing_key : str, optional
        Private key in PEM to sign the evidence with, or ``sigstore``; by default that of
        MLFLOW_DEGRADE_SIGNING_KEY, if any.
    """

    model: str = "starter"
    space: NamedSpace = AUTO
    tasks: Tasks = Field(default=("auto",), min_length=1)
    selection_tasks: Tasks = ()
    selection_share: float = Field(default=0.4, gt=0, lt=1)
    policy: GatePolicy = GatePolicy(rule="non_inferiority")
    decode_speedup: float | None = Field(default=None, gt=0)
    size_ratio: float | None = Field(default=None, gt=0)
    cheapest: Literal["both", "speed", "size"] = "both"
    minutes: float = Field(default=20.0, gt=0, le=10_000)
    trials: int | None = Field(default=None, ge=1)
    resume: str | None = None
    register_as: RegisteredName = "auto"
    output: Path | None = None
    device: Device = "auto"
    force: bool = False
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    fresh: bool = False
    cost_seconds: float = Field(default=4.0, ge=0, le=3_600)
    signing_key: str | None = None

    @property
    def goals(self) -> dict[str, float]:
        """Goals that were given, or that the policy has."""
        stated = {} if self.policy.cost is None else self.policy.cost.goals
        speedups = [stated[name] for name in ("decode_speedup", "encode_speedup") if name in stated]
        goals = {
            "decode_speedup": self.decode_speedup or max(speedups, default=None),
            "size_ratio": self.size_ratio or stated.get("size_ratio"),
        }
        return {name: value for name, value in goals.items() if value is not None}

    def confirmed_by(self, phase: str | None = None) -> GatePolicy:
        """The policy with the one rule that can be spent over several candidates."""
        # With the phase whose speed is meant, a decoder's or an encoder's, the goals are in it.
        policy = self.policy.model_copy(update={"rule": "non_inferiority"})
        if phase is None or not self.goals:
            return policy
        known = {} if policy.cost is None else policy.cost.goals
        speed, size = (self.goals.get(name) for name in ("decode_speedup", "size_ratio"))
        more = {f"{phase}_speedup": speed, "size_ratio": size}
        return policy.model_copy(update={"cost": CostPolicy(**{**known, **more})})


def digest_of_model(folder: Path) -> str:
    """Digest of a model's files, as its scores carry it."""
    from ..evaluation.model_evaluation import model_digest

    return model_digest(folder)


def suites_of(options: SearchOptions) -> tuple[Suite, Suite]:
    """The documents to choose on, and those to confirm on."""
    from ..evaluation.question_tasks import QuestionOptions
    from ..evaluation.splits import Part
    from ..evaluation.suite import load_suite

    tasks = options.tasks
    if tasks == ("auto",):
        tasks = steps.packaged_suite(options.model)
    asked: dict[str, Any] = {
        "include_path": options.include_path,
        "limit": options.limit,
        "seed": options.seed,
        "num_fewshot": options.num_fewshot,
        "prompting": options.prompting.completed(options.policy.prompting),
        "questions": QuestionOptions.of(
            {"columns": options.columns, "max_gen_toks": options.max_gen_toks}
        ),
    }
    if options.selection_tasks:
        return load_suite(options.selection_tasks, **asked), load_suite(tasks, **asked)
    share = options.selection_share
    names: tuple[Literal["selection", "confirmation"], ...] = ("selection", "confirmation")
    first, second = (
        load_suite(tasks, part=Part(name, share, options.seed), **asked) for name in names
    )
    return first, second


def identity_of(
    options: SearchOptions,
    space: SearchSpace,
    selection: Suite,
    confirmation: Suite,
    baseline: Path,
    providers: tuple[str, ...],
) -> dict[str, Any]:
    """What two runs must have in common for trials of one to count in the other."""
    from ..bench.machine import processor_name

    return {
        "model": f"{options.model} {digest_of_model(baseline)[:19]}",
        "space": f"{len(space.candidates)} candidates {space.digest()[:19]}",
        "questions to choose on": f"{selection.documents} documents {selection.digest[:19]}",
        "questions to confirm on": f"{confirmation.documents} documents {confirmation.digest[:19]}",
        "policy": options.confirmed_by().digest()[:19],
        "goals": goals_in_words(options.goals) or "none",
        "seed": options.seed,
        "processor": f"{processor_name(providers[0])}, {providers[0]}",
    }


def open_study(
    options: SearchOptions, identity: Mapping[str, Any], space: SearchSpace, run_id: str
) -> SearchStudy:
    """The study of this search: a new one, or the one it goes on with."""
    import mlflow

    from ..tracking.studies import SearchStudy, study_storage

    storage, note = study_storage()
    if note:
        say(f"note: {note}")
    run = mlflow.get_run(run_id)
    name = f"{run.info.experiment_id} {digest_json(dict(identity)).removeprefix('sha256:')[:16]}"
    if options.fresh:
        name += f" {run_id[:8]}"
    if options.resume:
        name = _study_of(options.resume)
    mlflow.set_tag(SEARCH_TAG, name)
    _require_alone(run, name)
    study = SearchStudy.open(name, identity, space, options.seed, storage)
    if study.trials:
        say(f"going on with a search of which {len(study.trials)} trials are done")
    return study


def _study_of(run: str) -> str:
    """The study of an earlier search, by its run."""
    import mlflow
    from mlflow.exceptions import MlflowException

    run_id = run.removeprefix("runs:/").strip("/")
    try:
        found = mlflow.get_run(run_id).data.tags.get(SEARCH_TAG)
    except MlflowException as error:
        raise TrackingError(f"resume = {run}: the run cannot be read: {error}") from error
    if found is None:
        raise InputError(f"resume = {run}: that is not the run of a search: give one's id.")
    return found


def _require_alone(run: Any, name: str) -> None:
    """Raise where another process is at the same search."""
    import mlflow

    others = mlflow.search_runs(
        [run.info.experiment_id],
        f"tags.`{SEARCH_TAG}` = '{name}' and attributes.status = 'RUNNING'",
        output_format="list",
    )
    others = [other for other in others if other.info.run_id != run.info.run_id]
    if others:
        raise InputError(
            f"this search is being run already, as {others[0].info.run_id}: wait for it, or end it "
            "and go on with it then."
        )


_PHASES = ("decode", "encode", "prefill")


def costs_of(cost: Mapping[str, Mapping[str, tuple[float, str]]]) -> dict[str, Any]:
    """Speed and size against the baseline, as a trial holds them."""
    found = {name: value for name, (value, _) in cost["candidate"].items()}
    phase = next(name for name in _PHASES if f"speed_ratio/{name}" in found)
    return {
        "phase": phase,
        "speed": found[f"speed_ratio/{phase}"],
        "speed_low": found.get(f"speed_ratio/{phase}_ci_low"),
        "speed_high": found.get(f"speed_ratio/{phase}_ci_high"),
        "size": 1.0 / found["size/compression_ratio"],
    }


def missed_goal(goals: Mapping[str, float], trial: Trial, *, surely: bool = False) -> str:
    """Which goal a trial misses; `surely` asks for all of its interval to meet it."""
    speed = trial.speed_low if surely else trial.speed_high
    speed = trial.speed if speed is None and not surely else speed
    wanted = goals.get("decode_speedup")
    if wanted is not None and (speed is None or speed < wanted):
        ends = (
            "" if trial.speed_low is None else f" [{trial.speed_low:.2f}, {trial.speed_high:.2f}]"
        )
        found = "no speed" if trial.speed is None else f"{trial.speed:.2f}x{ends}"
        return f"{found} in {trial.phase}, and the goal is at least {wanted:g}x"
    wanted = goals.get("size_ratio")
    if wanted is not None and (trial.size or math.inf) > wanted:
        return f"a size ratio of {trial.size:.2f}, and the goal is at most {wanted:g}"
    return ""


def distance_from(goals: Mapping[str, float], trial: Trial) -> float:
    """How far a trial is from the goals: the largest factor that is missing."""
    missing = [1.0]
    if "decode_speedup" in goals and trial.speed:
        missing.append(goals["decode_speedup"] / trial.speed)
    if "size_ratio" in goals and trial.size:
        missing.append(trial.size / goals["size_ratio"])
    return max(missing)


def goals_in_words(goals: Mapping[str, float]) -> str:
    signs = {"decode_speedup": "≥", "size_ratio": "≤"}
    return ", ".join(f"{name} {signs[name]} {value:g}" for name, value in goals.items())
