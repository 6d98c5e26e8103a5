"""Judge a folder of evidence: every digest and the decision itself are computed again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..core.cache import digest_file, digest_json
from ..core.errors import DegradeError, PolicyError
from ..decision.cost_evidence import CostEvidence
from ..decision.policy import GatePolicy
from ..decision.results import Decision, SideName
from ..decision.verdict import decide, facts_of_side
from ..samples.origin import Origin
from ..samples.table import SampleScores
from .evidence import COST, EvaluationSource

SIDES = ("baseline", "candidate")
"""What every evidence consists of; `COST` comes on top where the cost was measured."""
FILES = ("manifest.json", "baseline.parquet", "candidate.parquet", "policy.json", "decision.json")

# Other processors and versions of the libraries differ in the last digits, not in more: OpenBLAS
# adds up in another order on each kind.
_TOLERANCE = 1e-6
_WORDED = re.compile(r"reasons|((tasks\[\d+\]|aggregate)\.)?notes")
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_SHOWN = 3
# What was counted in texts, which evidence does not hold.
_OF_TEXTS = {"tasks": {"__all__": {"answers"}}, "aggregate": {"answers"}}


@dataclass
class EvidenceReview:
    """What a folder of evidence is worth."""

    # Each is a reason not to believe it; empty when it holds.
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # What to know besides.
    # Computed from the tables now, under the required policy where there is one.
    decision: Decision | None = None
    own_verdict: str | None = None  # The verdict computed now under the evidence's own policy.
    # ``evidence``, ``policy`` and ``<side>_model``, as they are found now.
    digests: dict[str, str] = field(default_factory=dict)
    origin: Origin | None = None  # Where the candidate's scores were computed.
    # Side to the evaluation that its scores are from, as far as the evidence says so.
    sources: dict[SideName, EvaluationSource] = field(default_factory=dict)


def review_evidence(folder: Path, required: GatePolicy | None = None) -> EvidenceReview:
    """Compute a decision again from its evidence."""
    review = EvidenceReview()
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        review.problems.append(
            f"the evidence is incomplete, {', '.join(missing)} missing: it was altered, or its "
            "upload was interrupted"
        )
        return review
    try:
        manifest = _mapping(folder / "manifest.json")
        policy_json = _mapping(folder / "policy.json")
        recorded = Decision.from_json((folder / "decision.json").read_text(encoding="utf-8"))
        policy = GatePolicy.from_mapping(policy_json, "policy.json of the evidence")
        sides = [SampleScores.read_parquet(folder / f"{side}.parquet") for side in SIDES]
        cost = _read_cost(folder)
    except (DegradeError, UnicodeDecodeError) as error:
        review.problems.append(f"the evidence cannot be read: {error}")
        return review
    review.origin = sides[1].origin
    review.sources = EvaluationSource.read(manifest)
    review.digests = {"evidence": digest_json(manifest), "policy": digest_json(policy_json)}
    review.problems += _altered(folder, manifest, recorded, policy_json, sides, review.digests)
    _decide_again(review, manifest, recorded, policy, sides, cost)
    if required is not None and required != policy:
        _require(review, manifest, required, sides, _attempt(manifest, recorded), cost)
    return review


def _read_cost(folder: Path) -> CostEvidence | None:
    path = folder / COST
    if not path.is_file():
        return None
    return CostEvidence.from_json(path.read_text(encoding="utf-8"), f"{COST} of the evidence")


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PolicyError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise PolicyError(f"{path.name} holds a {type(found).__name__}, not a mapping")
    return found


def _altered(
    folder: Path,
    manifest: Mapping[str, Any],
    recorded: Decision,
    policy_json: Mapping[str, Any],
    sides: list[SampleScores],
    digests: dict[str, str],
) -> Iterator[str]:
    """Parts that are not the ones the manifest names."""
    if digests["policy"] != manifest.get("policy_digest"):
        yield "policy.json was altered: its digest is not the one in the manifest"
    if GatePolicy.model_validate(dict(policy_json)) != recorded.policy:
        yield "policy.json is not the policy that decision.json speaks of"
    if digest_file(folder / "decision.json") != manifest.get("decision_digest"):
        yield "decision.json was altered: its digest is not the one in the manifest"
    measured, cost_digest = folder / COST, manifest.get("cost_digest")
    if cost_digest is not None and not measured.is_file():
        yield f"{COST} is missing, which the manifest names"
    elif measured.is_file() and digest_file(measured) != cost_digest:
        yield f"{COST} was altered or added: its digest is not the one in the manifest"
    for name, scores in zip(SIDES, sides, strict=True):
        found, stated = facts_of_side(scores), manifest.get(name)
        if scores.model_digest is not None:
            digests[f"{name}_model"] = scores.model_digest
        if found != stated:
            given = stated if isinstance(stated, dict) else {}
            changed = [k for k in {**found, **given} if found.get(k) != given.get(k)]
            yield f"{name}.parquet was altered: {', '.join(changed)} not as in the manifest"
        if getattr(recorded, name) != stated:
            yield f"decision.json is about another {name} than the manifest"


def _attempt(manifest: Mapping[str, Any], recorded: Decision) -> int | None:
    attempt = manifest.get("attempt", recorded.attempt)
    return attempt if isinstance(attempt, int) and attempt > 0 else None


def _decide_again(
    review: EvidenceReview,
    manifest: Mapping[str, Any],
    recorded: Decision,
    policy: GatePolicy,
    sides: list[SampleScores],
    cost: CostEvidence | None,
) -> None:
    allowed = _allowed(manifest)
    surplus = sorted(set(allowed) - set(policy.allow))
    if surplus:
        review.problems.append(
            f"the pairing was allowed {surplus}, which its policy does not allow"
        )
    if _attempt(manifest, recorded) != recorded.attempt:
        review.problems.append(
            f"decision.json is of attempt {recorded.attempt}, the manifest says "
            f"{manifest.get('attempt')!r}"
        )
    try:
        again = _decision(sides, policy, allowed, recorded.attempt, cost)
    except DegradeError as error:
        review.problems.append(f"the decision cannot be computed again: {error}")
        return
    review.decision, review.own_verdict = again, again.verdict.value
    if other := _other_versions(recorded, again):
        review.notes.append(
            f"decided with other versions than now ({'; '.join(other)}): numbers are compared, "
            "wording is not"
        )
    if recorded.schema_version != again.schema_version:
        review.notes.append(
            f"decided by the rules of version {recorded.schema_version} "
            f"({recorded.verdict.value}), now {again.schema_version}: judged again, and only what "
            "was measured is compared"
        )
    found = list(differences(recorded, again))
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        review.problems.append(
            "decision.json is not what the tables and the policy give: "
            f"{'; '.join(found[:_SHOWN])}{more}"
        )
    if again.verdict.value != "PASS":
        review.problems.append(f"the verdict is {again.verdict.value}: {'; '.join(again.reasons)}")


def _require(
    review: EvidenceReview,
    manifest: Mapping[str, Any],
    required: GatePolicy,
    sides: list[SampleScores],
    attempt: int | None,
    cost: CostEvidence | None,
) -> None:
    """Decide under the policy that is asked for; it takes the place of the evidence's own."""
    surplus = sorted(set(_allowed(manifest)) - set(required.allow))
    if surplus:
        review.problems.append(
            f"the pairing was allowed {surplus}, the required policy allows less"
        )
    try:
        review.decision = _decision(sides, required, required.allow, attempt, cost)
    except DegradeError as error:
        review.decision = None
        review.problems.append(f"the required policy cannot be applied: {error}")
        return
    if review.decision.verdict.value != "PASS":
        review.problems.append(
            f"under the required policy the verdict is {review.decision.verdict.value}: "
            f"{'; '.join(review.decision.reasons)}"
        )


def _allowed(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    found = manifest.get("allowed")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _decision(
    sides: list[SampleScores],
    policy: GatePolicy,
    allow: tuple[str, ...],
    attempt: int | None,
    cost: CostEvidence | None,
) -> Decision:
    paired = policy.pair(*sides, allow=allow)
    return decide(paired, policy, attempt=attempt, cost=cost)


def _other_versions(recorded: Decision, again: Decision) -> list[str]:
    return sorted(
        f"{name} {recorded.versions.get(name)} → {found}"
        for name, found in again.versions.items()
        if recorded.versions.get(name) != found
    )


def differences(recorded: Decision, again: Decision) -> Iterator[str]:
    """Where a decision that was computed again differs by more than its processor and libraries."""
    worded = not _other_versions(recorded, again)
    if recorded.schema_version != again.schema_version:
        # Other rules give other numbers: what was measured must agree, the verdict is today's.
        yield from _compare("", _as_measured(recorded), _as_measured(again), worded)
        return
    ignored: dict[str, Any] = {"versions": True, **_OF_TEXTS}
    before, now = (d.model_dump(mode="json", exclude=ignored) for d in (recorded, again))
    yield from _compare("", before, now, worded)


def _as_measured(decision: Decision) -> dict[str, Any]:
    """What a decision says of the data, whatever the rules that were applied to them."""
    counts = ("task", "metric", "filter", "tier", "n", "regressions", "improvements")
    means = ("baseline", "candidate", "delta", "margin", "unscored")
    return {
        "attempt": decision.attempt,
        "baseline": decision.baseline,
        "candidate": decision.candidate,
        "tasks": [
            {name: task[name] for name in (*counts, *means)}
            for task in decision.model_dump(mode="json")["tasks"]
        ],
    }


def _compare(where: str, recorded: Any, again: Any, worded: bool) -> Iterator[str]:
    if _WORDED.fullmatch(where):
        texts = "\n".join(recorded), "\n".join(again)
        if worded and not _same_wording(*texts):
            yield f"{where} are recorded as {_short(texts[0])}, computed {_short(texts[1])}"
    elif isinstance(recorded, dict) and isinstance(again, dict) and set(recorded) == set(again):
        for key in recorded:
            name = f"{where}.{key}" if where else key
            yield from _compare(name, recorded[key], again[key], worded)
    elif isinstance(recorded, list) and isinstance(again, list) and len(recorded) == len(again):
        for index, pair_ in enumerate(zip(recorded, again, strict=True)):
            yield from _compare(f"{where}[{index}]", *pair_, worded)
    elif not _same(recorded, again):
        yield f"{where} is recorded as {_short(recorded)}, computed {_short(again)}"


def _same(recorded: Any, again: Any) -> bool:
    if not isinstance(recorded, float) or not isinstance(again, float):
        return bool(recorded == again)
    # What cancels to 0 on one processor may not quite on another; small p have logarithms, too.
    return math.isclose(recorded, again, rel_tol=_TOLERANCE, abs_tol=1e-9)


def _same_wording(recorded: str, again: str) -> bool:
    """Alike but for one unit in the last place of a fraction: a tie is rounded either way."""
    if _NUMBER.sub("#", recorded) != _NUMBER.sub("#", again):
        return False
    pairs = zip(_NUMBER.findall(recorded), _NUMBER.findall(again), strict=True)
    return all(a == b or _a_unit_apart(a, b) for a, b in pairs)


def _a_unit_apart(a: str, b: str) -> bool:
    first, second = Decimal(a), Decimal(b)
    place = max(int(first.as_tuple().exponent), int(second.as_tuple().exponent))
    # Whole numbers are counts.
    return not (a.isdigit() or b.isdigit()) and abs(first - second) <= Decimal(1).scaleb(place)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
