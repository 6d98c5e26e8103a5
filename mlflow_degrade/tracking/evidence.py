"""Put a decision into MLflow: the evidence it can be recomputed from, and what people look at."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ..cache import digest_file, digest_json
from ..pairing import PairedScores
from ..results import AggregateResult, Decision, TaskResult
from ..scores import SampleScores
from .evaluations import log_finite_metrics
from .runs import check_tag

VERDICT_TAG = "degrade.verdict"
EVIDENCE_TAG = "degrade.evidence_digest"
POLICY_TAG = "degrade.policy_digest"
REASONS_TAG = "degrade.reasons"

EVIDENCE = "evidence"
# What the tests never look at; it stays with the evaluation runs.
_TEXT = ("prompt", "target", "response")
_FLIPS_SHOWN = 300
_REASONS_LENGTH = 2_000


def log_decision(decision: Decision, paired: PairedScores) -> str:
    """Log evidence, metrics, tags and the flipped samples to the active run.

    Parameters
    ----------
    decision : Decision
        From `mlflow_degrade.decide`.
    paired : PairedScores
        What it was made from.

    Returns
    -------
    str
        The evidence digest: SHA-256 over the digests of both sample tables, the policy and the
        decision, so that none of them can change without it.

    Notes
    -----
    ``evidence/`` holds both sample tables (without texts), ``policy.json``, ``decision.json`` and
    ``manifest.json``; `mlflow_degrade.decide` on the tables and the policy gives the decision
    again. ``flips.json`` is a small table of changed samples.
    """
    import mlflow

    from ..report.flips import flips_table

    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        folder = Path(scratch)
        digest = write_evidence(folder, decision, paired)
        mlflow.log_artifacts(scratch, EVIDENCE)
    flips = flips_table(paired, _FLIPS_SHOWN)
    if len(flips):
        mlflow.log_table(flips, "flips.json")
    log_finite_metrics(decision_metrics(decision))
    reasons = " | ".join(decision.reasons)
    if len(reasons) > _REASONS_LENGTH:
        reasons = reasons[: _REASONS_LENGTH - 1] + "…"
    tags = {
        VERDICT_TAG: decision.verdict.value,
        REASONS_TAG: reasons,
        POLICY_TAG: decision.policy.digest(),
        EVIDENCE_TAG: digest,
    }
    mlflow.set_tags({key: check_tag(key, value) for key, value in tags.items()})
    return digest


def write_evidence(folder: Path, decision: Decision, paired: PairedScores) -> str:
    """Write the evidence files into a folder; returns the evidence digest."""
    for side, scores in (("baseline", paired.baseline), ("candidate", paired.candidate)):
        kept = [name for name in scores.table.column_names if name not in _TEXT]
        SampleScores(scores.table.select(kept)).write_parquet(folder / f"{side}.parquet")
    policy = decision.policy.model_dump(mode="json")
    (folder / "policy.json").write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")
    (folder / "decision.json").write_text(decision.to_json(), encoding="utf-8")
    manifest = {
        "baseline": decision.baseline,
        "candidate": decision.candidate,
        "policy_digest": decision.policy.digest(),
        "decision_digest": digest_file(folder / "decision.json"),
        "allowed": list(paired.allowed),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return digest_json(manifest)


def decision_metrics(decision: Decision) -> dict[str, float | None]:
    """The numbers that MLflow's charts compare.

    Names that end in ``_pp`` are in percentage points; where scores are no proportions they lack
    that ending and are in the metric's own unit.
    """
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
