"""Find the cheapest model of a space that is not worse, and register it: behind recipes/search."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import numbers
from ..core.errors import DegradeError, InputError, StorageError, TrackingError
from ..decision.policy import GatePolicy, SequentialPolicy
from ..decision.requirements import plan_cost
from ..decision.results import Decision, Verdict
from ..decision.selection import (
    SURE,
    Damage,
    Likelihood,
    damage,
    first_to_pass,
    likelihood,
    pareto_front,
    worth_trying,
)
from ..decision.verdict import gating_tasks
from ..optimize.search_space import SearchCandidate, SearchSpace, load_space
from ..report.search import Confirmation, SearchFindings, Trial, in_short
from ..stats import attempt_alpha
from . import steps
from .search_setup import (
    SEARCH_TAG,
    SearchOptions,
    costs_of,
    digest_of_model,
    distance_from,
    goals_in_words,
    identity_of,
    missed_goal,
    open_study,
    suites_of,
)
from .steps import ERROR_TAG, find_model, log_recipe, recipe_params, recipe_run, say, step

if TYPE_CHECKING:
    from ..evaluation.run import EvaluationSettings
    from ..evaluation.suite import Suite
    from ..registry.signing import SigningKey
    from ..samples.table import SampleScores
    from ..tracking.studies import SearchStudy


# Samples of the first look, which log-likelihoods are read on, and how much longer each later is.
_FIRST_LOOK, _LONGER = 48, 2.0
# A candidate is tried on the confirmation where it is more likely than not to pass.
_LEAST_CHANCE = 0.5
# Of the time of a whole evaluation, what a candidate's confirmation takes: both models.
_BOTH = 2.2


@dataclass(frozen=True)
class SearchOutcome:
    """What came out of `search`.

    Attributes
    ----------
    findings : SearchFindings
        Everything that was tried.
    run_id : str
        The parent run in MLflow.
    decision : Decision or None
        Of the candidate that passed.
    registered : str or None
        ``models:/name/version`` of the new version.
    """

    findings: SearchFindings
    run_id: str
    decision: Decision | None
    registered: str | None


def search(options: SearchOptions | None = None) -> SearchOutcome:
    """Run the whole job under one MLflow run, with a nested run for each candidate.

    Parameters
    ----------
    options : SearchOptions, optional
        By default the packaged space on the starter model.

    Returns
    -------
    SearchOutcome

    Raises
    ------
    DegradeError
        Whatever is wrong: names, spaces and splits before any work is done; goals that nothing
        meets when everything was measured.
    """
    from ..tracking.studies import require_optuna

    options = options or SearchOptions()
    require_optuna()
    name = f"search of {Path(options.model).name}"
    with recipe_run(name, _params(options), kind="search") as run_id:
        return _Search.prepare(options, run_id).run()


def _params(options: SearchOptions) -> dict[str, Any]:
    left_out = {"policy", "space", "signing_key", "resume"}
    values = options.model_dump(mode="json", exclude=left_out)
    values["space"] = getattr(options.space, "name", options.space)
    values |= {f"policy.{k}": v for k, v in options.confirmed_by().model_dump(mode="json").items()}
    return values


@dataclass
class _Search:
    """A search that is under way."""

    options: SearchOptions
    run_id: str
    providers: tuple[str, ...]
    key: SigningKey | None
    space: SearchSpace
    refused: Mapping[str, str]
    selection: Suite
    confirmation: Suite
    baseline: Path
    study: SearchStudy
    begun: float
    documents: frozenset[str]  # Hashes of the confirmation's.
    seconds: float = 0.0  # Of the baseline's evaluation on the selection.
    proportion: bool = True
    margin: float = 0.0
    made: int = 0  # Trials of this process.
    skipped: list[Confirmation] = field(default_factory=list)
    # The baseline's on the selection, with the seconds they took, by how it was run.
    scores: dict[str, tuple[SampleScores, float]] = field(default_factory=dict)
    # What passed and was to be kept out of the registry, and the run of that.
    unregistered: dict[str, str] = field(default_factory=dict)

    @classmethod
    def prepare(cls, options: SearchOptions, run_id: str) -> _Search:
        """Find what is wrong before any work, make the baseline, and open the study."""
        begun = time.monotonic()
        from ..engine.family import model_family
        from ..engine.providers import resolve_device
        from ..evaluation.splits import document_hashes, require_disjoint
        from ..evaluation.task_fit import fitted_suite
        from ..optimize.recipe import run_recipe
        from ..optimize.source.resolve import resolve_model
        from ..registry.attestation import load_allowed_key
        from ..registry.gate_config import GateConfig
        from .quantize import require_template

        providers = resolve_device(options.device)
        key = load_allowed_key(options.signing_key, GateConfig.load().signers)
        steps.require_new(options.output)
        if options.policy.rule != "non_inferiority":
            say(
                f"note: the policy's rule is {options.policy.rule}, and several candidates are "
                "confirmed by non_inferiority alone: only there does a smaller level make passing "
                "harder"
            )
        find_model(options.model)
        source = resolve_model(options.model).path
        space = options.space
        if isinstance(space, str):
            space = load_space("decoder" if model_family(source) == "decoder" else "encoder")
        space, refused = space.feasible(providers, force=options.force)
        for name, why in refused.items():
            say(f"note: {name} is left out: {why}")
        say(f"space {space.name}: {len(space.candidates)} candidates")
        selection, confirmation = suites_of(options)
        require_disjoint(selection, confirmation)
        require_template(options.prompting.completed(options.policy.prompting), options.model)
        with step(f"Check that {options.model} answers the tasks"):
            for suite in (selection, confirmation):
                fitted_suite(suite, source)
        say(f"{selection.documents} documents to choose on, {confirmation.documents} to confirm on")
        with step(f"Resolve, export and optimize {options.model}"):
            baseline = run_recipe(options.model, space.baseline, providers=providers)
            steps.describe_model(baseline)
        identity = identity_of(options, space, selection, confirmation, baseline, providers)
        study = open_study(options, identity, space, run_id)
        documents = frozenset(document_hashes(confirmation))
        return cls(
            options, run_id, providers, key, space, refused, selection, confirmation, baseline,
            study, begun, documents,
        )  # fmt: skip

    def run(self) -> SearchOutcome:
        """Try candidates, confirm the cheapest of the front, and report."""
        self._adopt()
        self._evaluate_baseline()
        while (candidate := self._next()) is not None:
            self._try(candidate)
        front = self._front()
        try:
            self._require_goals()
            passed = self._confirm(front)
        except DegradeError:
            _log(self._findings(front))
            raise
        findings = self._findings(front)
        _log(findings)
        _show(findings)
        registered = findings.winner.registered if findings.winner else None
        return SearchOutcome(findings, self.run_id, passed, registered)

    def _adopt(self) -> None:
        """Put the runs of earlier trials below this one."""
        import mlflow
        from mlflow.exceptions import MlflowException

        for trial in self.study.trials:
            with suppress(MlflowException):  # somebody may have deleted it
                mlflow.MlflowClient().set_tag(trial.run_id, "mlflow.parentRunId", self.run_id)

    # -- Trials ---------------------------------------------------------------------------------

    def _next(self) -> SearchCandidate | None:
        """What to try next; None where everything was tried, or the budget is used up."""
        options = self.options
        if options.trials is not None and self.made >= options.trials:
            say(f"{self.made} trials, as many as were asked for")
            return None
        if self.study.trials:
            # The confirmation has to fit in as well.
            whole = self.seconds * self.confirmation.documents / self.selection.documents
            longest = max(trial.seconds for trial in self.study.trials)
            needed = longest + _BOTH * whole + 3 * options.cost_seconds
            spent = time.monotonic() - self.begun
            if spent + needed > 60 * options.minutes:
                say(f"the time for trials is over: {spent / 60:.1f} of {options.minutes:g} minutes")
                return None
        candidate = self.study.propose()
        if candidate is None:
            say("every candidate of the space was tried")
        return candidate

    def _try(self, candidate: SearchCandidate) -> None:
        """One trial, in a run of its own."""
        import mlflow

        from ..tracking.evaluations import KIND_TAG, log_finite_metrics
        from ..tracking.runs import tracked_run

        started = time.monotonic()
        number = len(self.study.trials) + 1
        say(f"trial {number} of at most {len(self.space.candidates)}: {candidate.name}")
        entered = self.study.begin(candidate)
        record = Trial(number, candidate.name, candidate.digest, candidate.params, "failed")
        try:
            with tracked_run(candidate.name, nested=True, tags={KIND_TAG: "trial"}) as run:
                record = replace(record, run_id=str(run.info.run_id))
                mlflow.log_params({f"space.{k}": v for k, v in candidate.params.items()})
                mlflow.log_params(recipe_params(candidate.recipe))
                log_recipe(candidate.recipe)
                record = self._measure(candidate, record)
                log_finite_metrics(_metrics(record))
                mlflow.set_tag("degrade.outcome", record.outcome)
                mlflow.log_dict(record.as_dict(), "trial.json")
                if record.reason:
                    mlflow.set_tag("mlflow.note.content", record.reason)
        except (StorageError, TrackingError):
            raise
        except DegradeError as error:
            record = replace(record, outcome="failed", reason=str(error))
            mlflow.MlflowClient().set_tag(record.run_id, ERROR_TAG, str(error)[:2_000])
        seconds = time.monotonic() - started
        self.made += 1
        record = replace(record, seconds=seconds)
        self.study.finish(entered, record)
        self._tell(record)

    def _measure(self, candidate: SearchCandidate, record: Trial) -> Trial:
        """What a candidate costs, and what it does to the scores of the selection."""
        models = self._models(candidate)
        measured = steps.measure_cost(
            models, device=self.options.device, seconds=self.options.cost_seconds
        )
        record = replace(record, **costs_of(measured.figures))
        if missed := missed_goal(self.options.goals, record):
            return replace(record, outcome="goal missed", reason=missed)
        with step(f"Ask {models.scheme} the selection"):
            found, harm, why = self._ask(models)
        record = replace(record, likelihood=found, damage=harm)
        return replace(record, outcome="pruned" if why else "measured", reason=why)

    def _models(self, candidate: SearchCandidate) -> steps.Models:
        made = steps.make_models(
            self.options.model, candidate.recipe, baseline=None, providers=self.providers,
            force=self.options.force,
        )  # fmt: skip
        # One baseline for all, whatever a candidate began with.
        return replace(made, baseline=self.baseline)

    @property
    def _settings(self) -> EvaluationSettings:
        from ..evaluation.run import EvaluationSettings

        options = self.options
        return EvaluationSettings(
            device=options.device, batch_size=options.batch_size, resume=not options.fresh
        )

    def _evaluate_baseline(self) -> None:
        """The baseline's scores on the selection, which the margin's unit is known from."""
        from ..evaluation.run import scoring_path

        with step(f"Evaluate the baseline on {self.selection.documents} documents to choose on"):
            path = scoring_path({"baseline": self.baseline}, self.selection, self._settings).path
            scores, self.seconds = self._baseline_scores(path)
        policy = self._choosing
        itself = policy.pair(scores, scores, allow=(*policy.allow, "same-model"))
        self.proportion = all(task.proportion for task in gating_tasks(itself, policy))
        margin = policy.margin_of(proportion=self.proportion)
        if margin is None:
            raise InputError(
                "the scores are no proportions, so that margin_pp says nothing of them: give the "
                "policy a margin in their own unit."
            )
        self.margin = margin

    def _baseline_scores(self, path: Any) -> tuple[SampleScores, float]:
        from ..evaluation.run import evaluate_model

        if path not in self.scores:
            made = evaluate_model(
                self.baseline, self.selection, settings=self._settings, path=path, label="baseline"
            )
            self.scores[path] = made.samples, made.timing["seconds"]
        return self.scores[path]

    @property
    def _choosing(self) -> GatePolicy:
        """The policy as it is read where candidates are chosen: parts of a suite are paired."""
        return self.options.confirmed_by().model_copy(
            update={"sequential": SequentialPolicy(seed=self.options.seed)}
        )

    def _ask(self, models: steps.Models) -> tuple[Likelihood | None, Damage, str]:
        """Ask a candidate the selection, until it is clear enough what it is worth."""
        import mlflow

        from ..evaluation.run import evaluate_in_order, scoring_path
        from ..registry.retry_ledger import chosen_on_tags
        from ..samples.planned_order import PlannedOrder

        folders = {"baseline": self.baseline, "candidate": models.candidate}
        path = scoring_path(folders, self.selection, self._settings).path
        scores, _ = self._baseline_scores(path)
        order = PlannedOrder.of(scores, self.options.seed)
        looked = _Looks(self, scores, order.units)
        digest = str(digest_of_model(models.candidate))
        mlflow.set_tags(chosen_on_tags(scores, digest))
        evaluate_in_order(
            models.candidate,
            self.selection,
            looked.parts(order),
            looked.enough,
            settings=self._settings,
            path=path,
            label="candidate",
        )
        assert looked.damage is not None
        return looked.likelihood, looked.damage, looked.why

    def _tell(self, record: Trial) -> None:
        """How a trial ended, and which is the best so far."""
        said: list[str] = [record.outcome]
        if record.speed is not None:
            said.append(in_short(record))
        if record.damage is not None:
            change = numbers.change(-record.damage.drop, proportion=self.proportion)
            said.append(f"{change} on {record.damage.n} samples")
        say("; ".join([*said, *([record.reason] if record.reason else [])]))
        minutes = (time.monotonic() - self.begun) / 60
        likely = [trial for trial in self._front() if self._likely(trial, 1)]
        best = f"best so far: {likely[0].name}" if likely else "none is likely to pass so far"
        if likely:
            best += f", {in_short(likely[0])}"
        say(f"{minutes:.1f} of {self.options.minutes:g} minutes; {best}")
        self._log_progress(likely[0] if likely else None)

    def _log_progress(self, best: Trial | None) -> None:
        import mlflow

        done = len(self.study.trials)
        mlflow.log_metric("search/trials", done, step=done)
        if best is not None and best.speed and best.size:
            mlflow.log_metric("search/best_speed_ratio", best.speed, step=done)
            mlflow.log_metric("search/best_size_ratio", best.size, step=done)

    # -- The front ------------------------------------------------------------------------------

    def _require_goals(self) -> None:
        """Raise where everything that was measured misses the goals, and name the nearest."""
        measured = [t for t in self.study.trials if t.speed is not None and t.size is not None]
        if not self.study.trials or all(t.outcome == "failed" for t in self.study.trials):
            reasons = "\n".join(f"  {t.name}: {t.reason}" for t in self.study.trials)
            raise InputError(
                f"none of the {len(self.study.trials)} candidates that were tried could be made "
                f"and measured:\n{reasons}"
            )
        if any(t.outcome != "goal missed" for t in measured):
            return
        nearest = min(measured, key=lambda trial: distance_from(self.options.goals, trial))
        raise InputError(
            f"no candidate meets the goal {goals_in_words(self.options.goals)}: of {len(measured)} "
            f"that were measured {nearest.name} is the nearest, "
            f"{in_short(nearest)} (size ratio {nearest.size:.2f}). Lower the "
            "goal, or widen the space."
        )

    def _front(self) -> list[Trial]:
        """Trials that no other one beats in everything, the cheapest first."""
        whole = [t for t in self.study.trials if t.outcome == "measured" and t.objectives]
        points = [trial.objectives or () for trial in whole]
        front = [whole[place] for place in pareto_front(points)]
        return sorted(front, key=lambda trial: (self._cost(trial), trial.number))

    def _cost(self, trial: Trial) -> float:
        time_ratio, size, _ = trial.objectives or (math.inf,) * 3
        of = {"speed": time_ratio, "size": size, "both": math.sqrt(time_ratio * size)}
        return of[self.options.cheapest]

    def _likely(self, trial: Trial, attempt: int) -> bool:
        return trial.damage is not None and worth_trying(
            trial.damage, self.margin, self.confirmation.documents,
            self.options.policy.alpha, attempt, _LEAST_CHANCE,
        )  # fmt: skip

    # -- Confirmation ---------------------------------------------------------------------------

    def _confirm(self, front: list[Trial]) -> Decision | None:
        """Try the front on samples that nothing was chosen on, until one passes."""
        from .quantize import registry_name

        known = {found.digest: found for found in self.study.confirmations}
        cheaper: list[Trial] = []
        for trial in front:
            before = known.get(trial.digest)
            if before is None:
                cheaper.append(trial)
            elif before.passed:
                say(f"{trial.name} passed before, in run {before.run_id}")
                if not before.registered and registry_name(
                    self.options.register_as, self.options.model
                ):
                    # The same scores under the same policy: no further attempt.
                    self.unregistered[trial.digest] = before.run_id
                    cheaper.append(trial)
                break
        found = first_to_pass(cheaper, self._decide)
        return None if found is None else found[1]

    def _decide(self, trial: Trial) -> Decision | None:
        """Decide on one candidate, in a run of its own; None where that is not worth it."""
        from ..registry.retry_ledger import next_attempt
        from ..tracking.evaluations import KIND_TAG
        from ..tracking.runs import tracked_run

        attempt = next_attempt(self.documents)
        if trial.digest not in self.unregistered and not self._likely(trial, attempt):
            assert trial.damage is not None
            level = attempt_alpha(self.options.policy.alpha, attempt)
            chance = trial.damage.chance(self.margin, self.confirmation.documents, level)
            why = f"its chance to pass as attempt {attempt} is {numbers.share(chance)}"
            say(f"{trial.name} is not tried: {why}")
            self.skipped.append(Confirmation(trial.name, trial.digest, "not tried", why))
            return None
        say(f"confirming {trial.name}, attempt {attempt}")
        (candidate,) = (c for c in self.space.candidates if c.digest == trial.digest)
        tags = {KIND_TAG: "recipe", SEARCH_TAG: "confirmation"}
        with tracked_run(f"confirm {trial.name}", nested=True, tags=tags) as run:
            found, decision = self._decided(candidate, trial, attempt, str(run.info.run_id))
        if decision is None:
            self.skipped.append(found)
        else:
            self.study.confirm(found)
        return decision

    def _decided(
        self, candidate: SearchCandidate, trial: Trial, attempt: int, run_id: str
    ) -> tuple[Confirmation, Decision | None]:
        import mlflow

        from ..registry.measured_cost import logged_cost
        from .quantize import registry_name

        options = self.options
        policy = options.confirmed_by(trial.phase)
        mlflow.log_params(recipe_params(candidate.recipe))
        log_recipe(candidate.recipe)
        models = self._models(candidate)
        # The fastest of many looks faster than it is: what is promised is measured anew.
        measured = steps.measure_cost(
            models, device=options.device, seconds=2 * options.cost_seconds,
            plan=plan_cost(policy, attempt_alpha(policy.alpha, attempt)),
        )  # fmt: skip
        if before := self.unregistered.get(trial.digest):
            # Other rounds would be another attempt.
            rounds = logged_cost(before)
            measured = measured if rounds is None else replace(measured, rounds=rounds)
        costs = costs_of(measured.figures)
        found = Confirmation(
            trial.name, trial.digest, "goal not shown", run_id=run_id,
            **{name: value for name, value in costs.items() if name != "phase"},
        )  # fmt: skip
        # An attempt is spent only where the goals, which the policy asks for as well, are in reach.
        if missed := missed_goal(options.goals, replace(trial, **costs), surely=True):
            mlflow.set_tag("degrade.outcome", "goal not shown")
            say(missed)
            return replace(found, reason=missed), None
        compared = steps.evaluate_both(
            models, self.confirmation, device=options.device, batch_size=options.batch_size,
            fresh=options.fresh, policy=policy,
        )  # fmt: skip
        self._require_untouched(compared.samples("baseline"))
        conclusion = steps.conclude(compared, policy, measured)
        decision = conclusion.decision
        registered = None
        if decision.verdict is Verdict.PASS:
            name = registry_name(options.register_as, options.model)
            registered = steps.log_and_register(
                conclusion, models, name, run_id=run_id, key=self.key
            )
        steps.report(conclusion, models, registered)
        if decision.verdict is Verdict.PASS:
            steps.put_into(options.output, models.candidate)
        total = decision.aggregate
        return replace(
            found,
            outcome=decision.verdict.value,
            attempt=decision.attempt,
            change=numbers.change(total.delta, proportion=total.proportion),
            registered=registered,
            reason="" if decision.verdict is Verdict.PASS else decision.reasons[0],
        ), decision

    def _require_untouched(self, scores: SampleScores) -> None:
        """Raise unless what was asked are the documents that nothing was chosen on."""
        strange = set(scores.table["doc_hash"].to_pylist()) - self.documents
        if strange:
            raise InputError(
                f"{len(strange)} documents of the confirmation are none of those that were kept "
                f"for it (e.g. {min(strange)}): the tasks changed while the search was running. "
                "Begin another search."
            )

    def _findings(self, front: list[Trial]) -> SearchFindings:
        known = {found.digest: found for found in [*self.skipped, *self.study.confirmations]}
        first = [trial.digest for trial in front if trial.digest in known]
        others = [digest for digest in known if digest not in first]
        findings = SearchFindings(
            model=Path(self.options.model).name,
            space=self.space.name,
            candidates=len(self.space.candidates),
            trials=self.study.trials,
            front=tuple(trial.digest for trial in front),
            confirmations=tuple(known[digest] for digest in (*first, *others)),
            margin=self.margin,
            proportion=self.proportion,
            samples=(self.selection.documents, self.confirmation.documents),
            goals=goals_in_words(self.options.goals),
            refused=self.refused,
        )
        return replace(findings, next_steps=_next_steps(findings, self.options))


class _Looks:
    """The looks at a candidate's answers on the selection."""

    def __init__(self, search: _Search, baseline: SampleScores, units: int) -> None:
        self._search, self._baseline, self._units = search, baseline, units
        self.likelihood: Likelihood | None = None
        self.damage: Damage | None = None
        self.why = ""  # Why the candidate was given up.
        self._asked = 0

    def parts(self, order: Any) -> Iterator[dict[str, list[str]]]:
        """Documents by task, look by look."""
        size = float(_FIRST_LOOK)
        while self._asked < order.units:
            start = self._asked
            self._asked = min(order.units, start + int(size))
            yield order.documents(start, self._asked)
            size = self._asked * (_LONGER - 1)

    def enough(self, candidate: SampleScores) -> bool:
        """Whether it is clear that the candidate will pass, or that it will not."""
        search = self._search
        paired = search._choosing.pair(self._baseline, candidate)
        if self.damage is None:
            self.likelihood = likelihood(paired, search._choosing)
        self.damage = damage(paired, search._choosing)
        margin, n = search.margin, search.confirmation.documents
        if self.likelihood is not None and self.likelihood.clearly_beyond(margin):
            drop = numbers.change(self.likelihood.drop, proportion=search.proportion, signed=False)
            self.why = f"log-likelihoods of {self.likelihood.n} answers foretell a drop of {drop}"
            return True
        alpha = attempt_alpha(search.options.policy.alpha, 1)
        chance = self.damage.chance(margin, n, alpha)
        if chance < 1 - SURE:
            drop = numbers.change(self.damage.drop, proportion=search.proportion, signed=False)
            self.why = f"a drop of {drop} on {self.damage.n} samples: it will hardly pass"
            return True
        return chance > SURE


def _metrics(record: Trial) -> dict[str, float | None]:
    """A trial among the metrics of its run."""
    harm, found = record.damage, record.likelihood
    return {
        f"speed_ratio/{record.phase or 'decode'}": record.speed,
        "size/ratio": record.size,
        "selection/drop": None if harm is None else harm.drop,
        "selection/drop_error": None if harm is None else harm.error,
        "selection/samples": None if harm is None else float(harm.n),
        "selection/changed": None if harm is None else harm.changed,
        "selection/foretold_drop": None if found is None else found.drop,
        "selection/margin_change_nats": None if found is None else found.margin_change,
        "selection/kl_nats": None if found is None else found.kl,
    }


def _next_steps(findings: SearchFindings, options: SearchOptions) -> tuple[str, ...]:
    """Commands for what comes next."""
    from ..report.next_steps import Command

    command = Command.current() or Command("mlflow run recipes/search", (), {})
    winner = findings.winner
    if winner is not None:
        if winner.registered:
            return (f"mlflow-degrade verify {winner.registered}",)
        return (command.changed(register_as="NAME").text,)
    if len(findings.trials) < findings.candidates:
        return (command.changed(minutes=f"{2 * options.minutes:g}", trials=None).text,)
    if options.limit is not None:
        return (command.changed(limit=4 * options.limit).text,)
    return ()


def _log(findings: SearchFindings) -> None:
    """Log the report to the parent run."""
    import mlflow

    from ..registry.evidence import collected
    from ..report.search import save_search_plots, search_html, search_markdown

    with collected() as found:
        found.text("search.json", findings.to_json())
        found.text("report.md", search_markdown(findings, plots=True))
        found.text("report.html", search_html(findings))
        save_search_plots(findings, found.folder / "plots")
        found.tags["mlflow.note.content"] = search_markdown(findings)
        found.metrics |= {
            "search/trials": float(len(findings.trials)),
            "search/front": float(len(findings.front)),
            "search/attempts": float(sum(c.attempt is not None for c in findings.confirmations)),
            "search/passed": float(findings.winner is not None),
        }
        if findings.winner is not None:
            found.tags["degrade.passed"] = findings.winner.name
    if findings.winner is not None and findings.winner.registered:
        mlflow.set_tag("degrade.registered", findings.winner.registered)


def _show(findings: SearchFindings) -> None:
    """Print the report."""
    from ..report.search import search_view
    from ..report.terminal import console
    from ..tracking.views import where_to_look

    out = console()
    out.print(search_view(findings))
    for line in ("", *findings.next_steps, "", *where_to_look()):
        out.print(line, markup=False, soft_wrap=True)
