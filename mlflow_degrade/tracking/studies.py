"""The memory of a search: an Optuna study, kept in the tracking database where there is one."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlparse

from ..core.cache import cache_root
from ..core.errors import InputError, MissingExtraError, TrackingError
from ..optimize.search_space import SearchCandidate, SearchSpace, Value
from ..report.search import Confirmation, Trial

_RECORD, _IDENTITY, _CONFIRMED = "record", "identity", "confirmations"
_OBJECTIVES = ("time ratio", "size ratio", "drop")
# Draws of a sampler that may propose what was tried before a choice is drawn among the rest.
_DRAWS = 30
_AT_RANDOM = 5


def require_optuna() -> Any:
    """The library, or an error that says how to install it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def study_storage() -> tuple[str, str | None]:
    """Address of the database for studies, and what to say where it is not MLflow's own."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    if urlparse(uri).scheme.split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        return uri, None
    folder = cache_root() / "search"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.db"
    return f"sqlite:///{file}", (
        f"the tracking store is no database that can be written directly, so the state of the "
        f"search is kept in {file}: go on with it on this machine"
    )


class SearchStudy:
    """What was tried in a search, and what to try next."""

    def __init__(self, study: Any, space: SearchSpace, seed: int) -> None:
        self._study, self._space, self._seed = study, space, seed
        self._choices = space.choices

    @classmethod
    def open(
        cls, name: str, identity: Mapping[str, Any], space: SearchSpace, seed: int, storage: str
    ) -> SearchStudy:
        """Begin a study, or find the one with this name; refuse one of another search."""
        optuna = require_optuna()
        from sqlalchemy.exc import SQLAlchemyError

        try:
            # MLflow's migrations own the one table in which Alembic notes a version, so that
            # Optuna cannot note its own there, nor compare.
            database = optuna.storages.RDBStorage(storage, skip_compatibility_check=True)
            study = optuna.create_study(
                storage=database,
                study_name=name,
                directions=["minimize"] * len(_OBJECTIVES),
                load_if_exists=True,
            )
            known = study.user_attrs.get(_IDENTITY)
            if known is None:
                study.set_user_attr(_IDENTITY, dict(identity))
        except (SQLAlchemyError, RuntimeError) as error:
            raise TrackingError(
                f"the state of the search cannot be kept in the tracking database: {error}"
            ) from error
        made = cls(study, space, seed)
        if known is not None:
            require_same(known, identity)
            made._end_interrupted()
        return made

    @property
    def trials(self) -> tuple[Trial, ...]:
        """What was tried to its end, in order."""
        records = (t.user_attrs.get(_RECORD) for t in self._study.get_trials(deepcopy=False))
        return tuple(Trial.from_dict(record) for record in records if record is not None)

    @property
    def confirmations(self) -> tuple[Confirmation, ...]:
        """What was tried on the samples that nothing is chosen on."""
        return tuple(Confirmation(**each) for each in self._study.user_attrs.get(_CONFIRMED, ()))

    def confirm(self, found: Confirmation) -> None:
        """Keep what became of a candidate; it is not tried there again."""
        others = [c.as_dict() for c in self.confirmations if c.digest != found.digest]
        self._study.set_user_attr(_CONFIRMED, [*others, found.as_dict()])

    def propose(self) -> SearchCandidate | None:
        """A candidate that was not tried yet; None where there is none left."""
        tried = {trial.digest for trial in self.trials}
        left = [each for each in self._space.candidates if each.digest not in tried]
        if not left:
            return None
        return left[0] if not tried else self._sampled(left)

    def begin(self, candidate: SearchCandidate) -> Any:
        """Enter a candidate as what is being tried."""
        self._study.enqueue_trial(dict(candidate.params))
        trial = self._study.ask()
        for name in candidate.params:
            trial.suggest_categorical(name, self._choices[name])
        trial.set_user_attr("candidate", candidate.name)
        return trial

    def finish(self, trial: Any, record: Trial) -> None:
        """Enter how it ended."""
        from optuna.trial import TrialState

        trial.set_user_attr(_RECORD, record.as_dict())
        if record.outcome == "measured":
            self._study.tell(trial, list(record.objectives or ()))
        else:
            failed = record.outcome == "failed"
            self._study.tell(trial, state=TrialState.FAIL if failed else TrialState.PRUNED)

    def _end_interrupted(self) -> None:
        """End trials of a process that is gone; their candidates count as not tried."""
        from optuna.trial import TrialState

        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _sampled(self, left: Sequence[SearchCandidate]) -> SearchCandidate:
        """The first proposal of Optuna's sampler that is left, drawn from a copy of the study."""
        # Of a finite space samplers repeat themselves. What they repeat stays in the copy, where
        # it counts as running, and such neighbourhoods are avoided. The draw depends on the seed
        # and on what was tried, so that a resumed search goes on as if nothing had happened.
        import numpy as np
        import optuna
        from optuna.trial import TrialState, create_trial

        done = self._study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
        )
        seed = self._seed + 1_000_003 * len(self.trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of these options are marked as experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed % 2**32, n_startup_trials=_AT_RANDOM, multivariate=True, group=True,
                constant_liar=True,
            )  # fmt: skip
            copy = optuna.create_study(directions=["minimize"] * len(_OBJECTIVES), sampler=sampler)
            for trial in done:
                again = create_trial(
                    state=trial.state,
                    params=trial.params,
                    values=trial.values,
                    distributions=trial.distributions,
                )
                copy.add_trial(again)
            for _ in range(_DRAWS):
                found = self._draw(copy.ask(), left)
                if found is not None:
                    return found
        return left[int(np.random.default_rng(seed).integers(len(left)))]

    def _draw(self, trial: Any, left: Collection[SearchCandidate]) -> SearchCandidate | None:
        """What a sampler proposes, dimension by dimension; None where that is not left."""
        some: list[SearchCandidate] = list(self._space.candidates)
        for name, values in self._choices.items():
            if any(name in each.params for each in some):
                value = trial.suggest_categorical(name, values)
                some = [c for c in some if name in c.params and _same(c.params[name], value)]
        return next((each for each in some if each in left), None)


def _same(one: Value, other: Value) -> bool:
    return type(one) is type(other) and one == other


def require_same(known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise where a search is gone on with that is another one."""
    differences = [
        f"the {what} ({_told(known.get(what))} then, {_told(value)} now)"
        for what, value in identity.items()
        if known.get(what) != value
    ]
    if differences:
        raise InputError(
            f"that search differs from this one in {', '.join(differences)}: its trials say "
            "nothing here. Give it the same parameters, or leave resume out and begin another."
        )


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 120 else text[:119] + "…"
