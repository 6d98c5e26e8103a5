"""Two runs of one model: does what it answers depend on where, or when, it is run?

The question has two sides. A deployment that scores higher than the evaluation is as much another
model as one that scores lower, so both directions are decided, each at half of the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core import numbers
from ..core.errors import PairingError
from ..samples.origin import Agreement, Origin
from ..samples.pairing import PairedScores
from ..samples.table import SampleScores
from .policy import GatePolicy
from .reasons import amount
from .results import Decision, Verdict
from .verdict import decide


@dataclass(frozen=True)
class Rerun:
    """How far two runs of one model agree; made by `compare_runs`."""

    # PASS: no systematic change was found, in either direction, and one of the margin would have
    # been. FAIL: the scores change. INCONCLUSIVE: these samples cannot tell.
    verdict: Verdict
    reasons: tuple[str, ...]
    forward: Decision
    # Is the second run worse than the first, is the first worse than the second; each at half of
    # `alpha`.
    backward: Decision
    largest_difference: float  # Of an item's scores, in any task.
    p_value: float  # Two-sided: twice the smaller p-value of the two, at most 1.
    alpha: float  # The level it is compared with.
    notes: tuple[str, ...]
    paired: PairedScores = field(repr=False)  # First and second run.

    @property
    def n(self) -> int:
        """Gating items."""
        return self.forward.aggregate.n

    @property
    def worse(self) -> int:
        """Gating items that score worse in the second run."""
        return self.forward.aggregate.regressions

    @property
    def better(self) -> int:
        """Gating items that score better in the second run."""
        return self.forward.aggregate.improvements

    @property
    def origins(self) -> tuple[Origin | None, Origin | None]:
        """Of the first and the second run, as far as they are known."""
        return self.paired.baseline.origin, self.paired.candidate.origin

    def as_dict(self) -> dict[str, Any]:
        """Everything but the samples, for JSON."""
        first, second = (
            None if origin is None else origin.processor.model_dump(mode="json")
            for origin in self.origins
        )
        return {
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "n": self.n,
            "worse": self.worse,
            "better": self.better,
            "largest_difference": self.largest_difference,
            "delta": self.forward.aggregate.delta,
            "p_value": self.p_value,
            "alpha": self.alpha,
            "processors": {"first": first, "second": second},
            "notes": list(self.notes),
            "forward": self.forward.model_dump(mode="json"),
            "backward": self.backward.model_dump(mode="json"),
        }

    def agreements(self) -> tuple[Agreement, Agreement] | None:
        """What the first and the second run's scores may say of the other one."""
        # None where it is not known of both where they were computed.
        first, second = self.origins
        if first is None or second is None:
            return None

        def seen(there: Origin, scores: SampleScores, worse: int, better: int) -> Agreement:
            return Agreement(
                processor=there.processor,
                samples_digest=scores.digest(),
                n=self.n,
                worse=worse,
                better=better,
                largest_difference=self.largest_difference,
                verdict=self.verdict.value,
                alpha=self.alpha,
                power=self.forward.power.power,
                margin=self.forward.power.margin,
            )

        return (
            seen(second, self.paired.candidate, self.worse, self.better),
            seen(first, self.paired.baseline, self.better, self.worse),
        )


def compare_runs(
    first: SampleScores, second: SampleScores, policy: GatePolicy | None = None
) -> Rerun:
    """Compare two runs of one model, in both directions."""
    policy = policy or GatePolicy()
    digests = first.model_digest, second.model_digest
    if None not in digests and digests[0] != digests[1]:
        raise PairingError(
            f"the runs are of two models ({digests[0]} and {digests[1]}): mlflow-degrade compare "
            "says whether one is worse than the other."
        )
    asked = {"portable": False, "implausible_gain_pp": None, "sequential": None}
    each = policy.model_copy(update={"alpha": policy.alpha / 2, **asked})
    allow = sorted({*policy.allow, "same-model"})
    paired, back = each.pair(first, second, allow=allow), each.pair(second, first, allow=allow)
    forward, backward = decide(paired, each), decide(back, each)
    p_value = min(1.0, 2 * min(forward.aggregate.p_worse, backward.aggregate.p_worse))
    verdict, reasons = _judge(forward, backward, p_value, policy.alpha)
    return Rerun(
        verdict=verdict,
        reasons=tuple(reasons),
        forward=forward,
        backward=backward,
        largest_difference=max(float(np.abs(task.difference).max()) for task in paired.tasks),
        p_value=p_value,
        alpha=policy.alpha,
        notes=(*_notes(first, second), *paired.notes),
        paired=paired,
    )


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of several reruns: one that changes the scores decides, and all must pass."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


def _judge(
    forward: Decision, backward: Decision, p_value: float, alpha: float
) -> tuple[Verdict, list[str]]:
    """Both directions together: one that fails decides, and both must pass."""
    verdicts = forward.verdict, backward.verdict
    if Verdict.FAIL in verdicts:
        worse = forward.verdict is Verdict.FAIL
        failed, direction = (forward, "worse") if worse else (backward, "better")
        change = amount(forward.aggregate.delta, forward.aggregate.proportion)
        reason = f"the second run is {direction} than the first: {change}"
        if p_value <= alpha:
            return Verdict.FAIL, [f"{reason}, two-sided p = {numbers.compared(p_value, alpha)}"]
        # A task with a margin of its own.
        return Verdict.FAIL, [f"{reason} on average", *failed.reasons]
    if Verdict.INCONCLUSIVE in verdicts:
        unsettled = forward if forward.verdict is Verdict.INCONCLUSIVE else backward
        return Verdict.INCONCLUSIVE, list(unsettled.reasons)
    power, share = forward.power, forward.aggregate.proportion
    found = f"no systematic change found (two-sided p = {numbers.compared(p_value, alpha)})"
    if forward.policy.rule == "non_inferiority":
        margin = amount(power.margin, share)
        return Verdict.PASS, [f"{found}; a change of {margin} in either direction is ruled out"]
    # Both directions have the same flips, and so the same power.
    mde = amount(power.mde, share)
    return Verdict.PASS, [
        f"{found}, and a change of {mde} in either direction would have been found with "
        f"probability {power.power:g}"
    ]


def _notes(first: SampleScores, second: SampleScores) -> list[str]:
    """What to know of two runs before believing that this is about processors."""
    notes = []
    if None in (first.model_digest, second.model_digest):
        notes.append("the logs name no model digest: that both are of one model is taken on trust")
    if first.origin is None or second.origin is None:
        notes.append("it is not known of both runs where they were computed")
    elif first.origin.processor.same_kind(second.origin.processor):
        notes.append(
            "both runs were computed on processors of one kind: this is how much a rerun changes, "
            "not what another processor would"
        )
    return notes
