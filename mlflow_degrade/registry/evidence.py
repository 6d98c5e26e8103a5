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
from ..core.errors import redact
from ..decision.cost_evidence import CostEvidence
from ..decision.requirements import in_brief
from ..decision.results import AggregateResult, Decision, SideName, TaskResult, Verdict
from ..samples.pairing import PairedScores
from ..samples.table import SampleScores
from ..tracking.artifact_access import upload
from ..tracking.evaluations import KIND_TAG, MODEL_DIGEST_TAG, evaluation_dataset, log_together
from ..tracking.runs import check_tag, is_drawn_name
from .model_content import ARTIFACT_TAG

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
RUN_TAG = "degrade.run_id"
EVIDENCE_TAG = "degrade.evidence_digest"
POLICY_TAG = "degrade.policy_digest"
REASONS_TAG = "degrade.reasons"
CHANGE_TAG = "degrade.change"
"""Change and interval as a text: MLflow's list of runs shows numbers unrounded and cut."""
GUILTY_TAG = "degrade.guilty"
REQUIREMENTS_TAG = "degrade.requirements"
"""What else a policy asked for, and whether it is met, in few words."""

PROOF_TAG = "degrade.proof"
"""Digests of a version and the run of its evidence; older versions have a tag for each."""
_PROOF = {
    "evidence": EVIDENCE_TAG,
    "policy": POLICY_TAG,
    "model": MODEL_DIGEST_TAG,
    "files": ARTIFACT_TAG,
    "run": RUN_TAG,
}

EVIDENCE = "evidence"
COST = "cost.json"
"""Among the evidence: every round of a measurement of both models."""
GATE = "gate"
"""Kind of the runs that a gate makes for its decision alone."""
# What the tests never look at; it stays with the evaluation runs.
_TEXT = ("prompt", "target", "response")
_FLIPS = "flips.json"
_FLIPS_SHOWN = 300
_TABLES_TAG = "mlflow.loggedArtifacts"
_REASONS_LENGTH = 2_000
# In charts and orders FAIL, INCONCLUSIVE and PASS are three values.
_VERDICTS = {Verdict.FAIL: -1.0, Verdict.INCONCLUSIVE: 0.0, Verdict.PASS: 1.0}


def proof_tag(tags: Mapping[str, str]) -> dict[str, str]:
    """A version's tags with those about its evidence in one; `stated_tags` takes it apart."""
    proof = {word: tags[tag] for word, tag in _PROOF.items() if tag in tags}
    kept = {tag: value for tag, value in tags.items() if tag not in _PROOF.values()}
    return {**kept, PROOF_TAG: json.dumps(proof)}


def stated_tags(tags: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """A version's tags, each under its own name, however they were set; and contradictions."""
    text = tags.get(PROOF_TAG)
    if text is None:
        return dict(tags), []
    try:
        proof = {_PROOF[word]: str(value) for word, value in json.loads(text).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return dict(tags), [f"tag {PROOF_TAG} cannot be read: it was changed after registration"]
    problems = [
        f"tag {tag} says {tags[tag]}, tag {PROOF_TAG} says {value}"
        for tag, value in proof.items()
        if tags.get(tag, value) != value
    ]
    return {**tags, **proof}, problems


@dataclass
class Collected:
    """What the active run is to be given, all at once: few requests, and tags that come last."""

    folder: Path  # Its files are logged at the root of the run's artifacts.
    metrics: dict[str, float | None] = field(default_factory=dict)
    # Metrics along the samples: name, step and value.
    steps: list[tuple[str, int, float]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[Any] = field(default_factory=list)

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
        log_together(
            run.info.run_id, metrics=found.metrics, steps=found.steps, tags=found.tags,
            datasets=found.datasets,
        )  # fmt: skip


def log_decision(decision: Decision, paired: PairedScores) -> str:
    """Log evidence, metrics, tags and the flipped samples to the active run; see `add_decision`."""
    with collected() as found:
        return add_decision(found, decision, paired)


def add_decision(
    found: Collected,
    decision: Decision,
    paired: PairedScores,
    sources: Mapping[SideName, EvaluationSource] | None = None,
    cost: CostEvidence | None = None,
) -> str:
    """Collect evidence, metrics, tags and the flipped samples."""
    # ``evidence/`` holds both sample tables (without texts), ``policy.json``, ``decision.json``
    # and ``manifest.json``, and ``cost.json`` where both were measured side by side;
    # `mlflow_degrade.decide` on the tables, the policy and the cost gives the decision again.
    # ``flips.json`` is a small table of changed samples.
    from ..report.content import change_in_brief
    from ..report.flips import flips_table

    run = _run()
    folder = found.folder / EVIDENCE
    folder.mkdir()
    digest = write_evidence(folder, decision, paired, sources, cost)
    flips = flips_table(decision.used(paired), _FLIPS_SHOWN, first=decision.guilty)
    if len(flips):
        # As mlflow.log_table writes it, and says to the page that compares tables: which opens the
        # first of them.
        flips.to_json(found.folder / _FLIPS, orient="split", index=False, date_format="iso")
        found.tags[_TABLES_TAG] = json.dumps([{"path": _FLIPS, "type": "table"}, *_tables(run)])
    found.metrics |= decision_metrics(decision)
    found.steps += _path(decision)
    found.datasets.append(
        evaluation_dataset(paired.baseline, f"{run.info.artifact_uri}/{EVIDENCE}")
    )
    if (name := _name(run, decision)) is not None:
        found.tags["mlflow.runName"] = name
    tags = {
        VERDICT_TAG: decision.verdict.value,
        REASONS_TAG: _cut(" | ".join(decision.reasons)),
        CHANGE_TAG: change_in_brief(decision),
        GUILTY_TAG: _cut(", ".join(decision.guilty)) or "none",
        POLICY_TAG: decision.policy.digest(),
        EVIDENCE_TAG: digest,
    }
    if decision.requirements:
        tags[REQUIREMENTS_TAG] = _cut("; ".join(map(in_brief, decision.requirements)))
    found.tags |= {key: check_tag(key, value) for key, value in tags.items()}
    return digest


def _run() -> Any:
    """The active run as it is now."""
    import mlflow
    from mlflow import MlflowClient

    run: Any = mlflow.active_run()
    # It is held as it was when it began; what is joined may have been written to since.
    return run if run.data.tags.get(KIND_TAG) == GATE else MlflowClient().get_run(run.info.run_id)


def _tables(run: Any) -> list[Any]:
    """Tables that others have logged to a run."""
    listed = json.loads(run.data.tags.get(_TABLES_TAG, "[]"))
    return [table for table in listed if table.get("path") != _FLIPS]


def _name(run: Any, decision: Decision) -> str | None:
    """The name that says a run's verdict; None for one that its owner has named."""
    from ..report import content

    if KIND_TAG in run.data.tags:
        return content.run_name(decision, str(run.info.run_name))
    if is_drawn_name(run.info.run_name):
        return content.run_name(decision, content.sides(decision)[1])
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _REASONS_LENGTH else text[: _REASONS_LENGTH - 1] + "…"


def write_evidence(
    folder: Path,
    decision: Decision,
    paired: PairedScores,
    sources: Mapping[SideName, EvaluationSource] | None = None,
    cost: CostEvidence | None = None,
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
    if cost is not None:
        (folder / COST).write_text(cost.to_json(), encoding="utf-8")
        manifest["cost_digest"] = digest_file(folder / COST)
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
        "degrade/verdict": _VERDICTS[decision.verdict],
        "degrade/passed": float(decision.verdict is Verdict.PASS),
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
    return metrics | _requirement_metrics(decision)


_STATUS = {"missed": -1.0, "undecided": 0.0, "met": 1.0}


def _requirement_metrics(decision: Decision) -> dict[str, float | None]:
    """What else was asked for: the figure with its interval and goal, and whether it is met."""
    metrics: dict[str, float | None] = {}
    for each in decision.requirements:
        name = "/".join(filter(None, ("degrade", each.kind, each.name, each.where)))
        ends: tuple[float | None, float | None] = None, None
        if each.interval is not None:
            ends = each.interval.low, each.interval.high
        metrics |= {
            name: each.estimate,
            f"{name}_ci_low": ends[0],
            f"{name}_ci_high": ends[1],
            f"{name}_goal": each.goal,
            f"{name}_met": _STATUS[each.status],
        }
    return metrics


_PATH = (("delta", 100.0), ("low", 100.0), ("high", 100.0), ("log_e_noninferior", 1.0),
         ("log_e_degraded", 1.0), ("log_e_beyond", 1.0))  # fmt: skip


def _path(decision: Decision) -> list[tuple[str, int, float]]:
    """The evidence along the samples of a decision that could stop early."""
    points = () if decision.sequential is None else decision.sequential.path
    return [
        (f"degrade/path/{name}{'_pp' if factor > 1.0 else ''}", point.samples,
         factor * getattr(point, name))
        for point in points
        for name, factor in _PATH
    ]  # fmt: skip


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
