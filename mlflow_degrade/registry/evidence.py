"""Put a decision into MLflow: the evidence it can be recomputed from, and what people look at."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.cache import digest_file, digest_json
from ..core.redaction import redact
from ..decision.results import AggregateResult, Decision, SideName, TaskResult
from ..samples.pairing import PairedScores
from ..samples.table import SampleScores
from ..tracking.artifact_access import upload
from ..tracking.datasets import log_dataset
from ..tracking.evaluations import KIND_TAG, log_together
from ..tracking.runs import check_tag

# Where a side's scores are from: which run, of which experiment, on which server.


@dataclass(frozen=True)
class EvaluationSource:
    """The evaluation that a decision took the scores of one side from."""

    run_id: str
    experiment_id: str
    server: str  # Tracking URI, without user and password.
    made: str  # ``"now"`` by the very job that decided, or ``"before"`` and found again.

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


VERDICT_TAG = "degrade.verdict"
EVIDENCE_TAG = "degrade.evidence_digest"
POLICY_TAG = "degrade.policy_digest"
REASONS_TAG = "degrade.reasons"

EVIDENCE = "evidence"
GATE = "gate"
"""Kind of the runs that a gate makes for its decision alone."""
# What the tests never look at; it stays with the evaluation runs.
_TEXT = ("prompt", "target", "response")
_FLIPS = "flips.json"
_FLIPS_SHOWN = 300
_TABLES_TAG = "mlflow.loggedArtifacts"
_REASONS_LENGTH = 2_000


@dataclass
class Collected:
    """What the active run is to be given, all at once: few requests, and tags that come last."""

    folder: Path  # Its files are logged at the root of the run's artifacts.
    metrics: dict[str, float | None] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    asked: SampleScores | None = None  # Its questions are the run's dataset.

    def text(self, name: str, text: str) -> None:
        """Add an artifact."""
        (self.folder / name).write_text(text, encoding="utf-8")


@contextmanager
def collected() -> Iterator[Collected]:
    """Log to the active run what is collected inside, unless that ends in an error."""
    import mlflow

    run: Any = mlflow.active_run() or mlflow.start_run()
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        found = Collected(Path(scratch))
        yield found
        if any(found.folder.iterdir()):
            upload(found.folder, run.info.artifact_uri)
        if found.asked is not None:
            log_dataset(run.info.run_id, found.asked, f"{run.info.artifact_uri}/{EVIDENCE}")
        log_together(run.info.run_id, metrics=found.metrics, tags=found.tags)


def log_decision(decision: Decision, paired: PairedScores) -> str:
    """Log evidence, metrics, tags and the flipped samples to the active run; see `add_decision`."""
    with collected() as found:
        return add_decision(found, decision, paired)


def add_decision(
    found: Collected,
    decision: Decision,
    paired: PairedScores,
    sources: Mapping[SideName, EvaluationSource] | None = None,
) -> str:
    """Collect evidence, metrics, tags and the flipped samples."""
    # ``evidence/`` holds both sample tables (without texts), ``policy.json``, ``decision.json``
    # and ``manifest.json``; `mlflow_degrade.decide` on the tables and the policy gives the
    # decision again. ``flips.json`` is a small table of changed samples.
    from ..report.flips import flips_table

    folder, found.asked = found.folder / EVIDENCE, paired.baseline
    folder.mkdir()
    digest = write_evidence(folder, decision, paired, sources)
    flips = flips_table(paired, _FLIPS_SHOWN)
    if len(flips):
        # As mlflow.log_table writes it, and says to the page that compares tables.
        flips.to_json(found.folder / _FLIPS, orient="split", index=False, date_format="iso")
        found.tags[_TABLES_TAG] = json.dumps([*_tables(), {"path": _FLIPS, "type": "table"}])
    found.metrics |= decision_metrics(decision)
    reasons = " | ".join(decision.reasons)
    if len(reasons) > _REASONS_LENGTH:
        reasons = reasons[: _REASONS_LENGTH - 1] + "…"
    tags = {
        VERDICT_TAG: decision.verdict.value,
        REASONS_TAG: reasons,
        POLICY_TAG: decision.policy.digest(),
        EVIDENCE_TAG: digest,
    }
    found.tags |= {key: check_tag(key, value) for key, value in tags.items()}
    return digest


def _tables() -> list[Any]:
    """Tables that others have logged to the active run."""
    import mlflow
    from mlflow import MlflowClient

    run: Any = mlflow.active_run()
    # The run is as it was when it began; only what is joined may have tables that came since.
    if KIND_TAG in run.data.tags and run.data.tags[KIND_TAG] == GATE:
        return []
    listed = json.loads(MlflowClient().get_run(run.info.run_id).data.tags.get(_TABLES_TAG, "[]"))
    return [table for table in listed if table.get("path") != _FLIPS]


def write_evidence(
    folder: Path,
    decision: Decision,
    paired: PairedScores,
    sources: Mapping[SideName, EvaluationSource] | None = None,
) -> str:
    """Write the evidence files into a folder; returns the evidence digest."""
    for side, scores in (("baseline", paired.baseline), ("candidate", paired.candidate)):
        kept = [name for name in scores.table.column_names if name not in _TEXT]
        SampleScores(scores.table.select(kept)).write_parquet(folder / f"{side}.parquet")
    policy = decision.policy.model_dump(mode="json")
    (folder / "policy.json").write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")
    (folder / "decision.json").write_text(decision.to_json(), encoding="utf-8")
    manifest: dict[str, Any] = {
        "baseline": decision.baseline,
        "candidate": decision.candidate,
        "policy_digest": decision.policy.digest(),
        "decision_digest": digest_file(folder / "decision.json"),
        "allowed": list(paired.allowed),
    }
    if sources:
        manifest["evaluations"] = {side: source.as_dict() for side, source in sources.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return digest_json(manifest)


def decision_metrics(decision: Decision) -> dict[str, float | None]:
    """The numbers that MLflow's charts compare."""
    # Names that end in ``_pp`` are in percentage points; where scores are no proportions they lack
    # that ending and are in the metric's own unit.
    total, power = decision.aggregate, decision.power
    # The page that compares runs draws the metric that was logged first.
    metrics: dict[str, float | None] = {
        **_changes("degrade", total, power.mde, power.margin),
        "degrade/passed": float(decision.verdict.value == "PASS"),
        "degrade/n": total.n,
        "degrade/p_value": total.p_worse,
        "degrade/noninferiority_p": total.noninferiority_p,
        "degrade/flip_rate": power.flip_rate,
    }
    for task in decision.tasks:
        prefix = f"degrade/{task.task}"
        metrics |= {
            f"{prefix}/p_value": task.p_worse,
            f"{prefix}/flip_rate": task.flip_rate,
            **_changes(prefix, task, task.mde, task.margin),
        }
    return metrics


def _changes(
    prefix: str, result: AggregateResult | TaskResult, mde: float | None, margin: float | None
) -> dict[str, float | None]:
    factor, ending = (100.0, "_pp") if result.proportion else (1.0, "")
    values = {
        "delta": result.delta,
        "ci_low": result.interval.low,
        "ci_high": result.interval.high,
        "mde": mde,
        "margin": margin,
    }
    return {
        f"{prefix}/{name}{ending}": None if value is None else factor * value
        for name, value in values.items()
    }
