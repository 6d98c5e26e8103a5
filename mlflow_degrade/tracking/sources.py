"""Where a side's scores are from: which run, of which experiment, on which server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .._redaction import redact
from ..results import SideName


@dataclass(frozen=True)
class EvaluationSource:
    """The evaluation that a decision took the scores of one side from.

    Attributes
    ----------
    run_id, experiment_id : str
    server : str
        Tracking URI, without user and password.
    made : str
        ``"now"`` by the very job that decided, or ``"before"`` and found again.
    """

    run_id: str
    experiment_id: str
    server: str
    made: str

    @classmethod
    def of(cls, run: Any, *, now: bool) -> EvaluationSource:
        """Of an evaluation's run."""
        import mlflow

        server = redact(mlflow.get_tracking_uri())
        return cls(run.info.run_id, run.info.experiment_id, server, "now" if now else "before")

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> dict[SideName, EvaluationSource]:
        """Of both sides, from a manifest of evidence; empty where it does not say."""
        stated = manifest.get("evaluations")
        names = cls.__dataclass_fields__.keys()
        sides: tuple[SideName, SideName] = ("baseline", "candidate")
        found = {side: stated.get(side) for side in sides} if isinstance(stated, dict) else {}
        return {
            side: cls(**{name: str(said.get(name)) for name in names})
            for side, said in found.items()
            if isinstance(said, dict)
        }

    def as_dict(self) -> dict[str, str]:
        """As it is recorded."""
        return asdict(self)

    def __str__(self) -> str:
        done = "evaluated now" if self.made == "now" else "evaluated before"
        return f"runs:/{self.run_id} of experiment {self.experiment_id} at {self.server}, {done}"
