"""Whose runs a gate believes.

A gate decides on logged scores, and whoever may log runs can log any scores for any model. So what
nobody named is looked for in the experiments that the gate's operator or its policy trusts, and
without such a list in the gate's own; what is not found there is evaluated again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..policy import GatePolicy


@dataclass(frozen=True)
class TrustedExperiments:
    """The experiments whose evaluations and decisions are used.

    Attributes
    ----------
    names : tuple of str
        From the gate file, else the policy; empty where neither has a list.
    ids : tuple of str
        Of those that exist; the gate's own experiment where there is no list.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]

    @classmethod
    def of(cls, policy: GatePolicy) -> TrustedExperiments:
        """What holds for a gate with this policy, here and now.

        Raises
        ------
        PolicyError
            The gate file is not valid.
        """
        from mlflow import MlflowClient

        from .gate_config import GateConfig

        names = GateConfig.load().evidence_experiments or policy.evidence_experiments
        if not names:
            return cls((), (own_experiment(),))
        client = MlflowClient()
        found = (client.get_experiment_by_name(name) for name in names)
        return cls(names, tuple(e.experiment_id for e in found if e is not None))

    def admits(self, run: Any) -> bool:
        """Whether a run that the user named may be used: any, unless there is a list."""
        return not self.names or run.info.experiment_id in self.ids


def own_experiment() -> str:
    """Id of the experiment that a gate's run will be in."""
    import mlflow
    from mlflow.tracking.fluent import _get_experiment_id

    active = mlflow.active_run()
    return str(_get_experiment_id() if active is None else active.info.experiment_id)
