"""Whether a candidate's numbers were shown not to depend on the processor they are computed on."""

from __future__ import annotations

from .origin import Agreement, Origin, Processor
from .pairing import PairedScores
from .policy import GatePolicy
from .results import PowerResult, SideName, Verdict
from .scores import SampleScores


def processors_of(paired: PairedScores) -> dict[SideName, Processor]:
    """Where each side was computed, as far as it is known."""
    sides: dict[SideName, SampleScores] = {
        "baseline": paired.baseline,
        "candidate": paired.candidate,
    }
    return {side: s.origin.processor for side, s in sides.items() if s.origin is not None}


def demand_portable(
    verdict: Verdict,
    reasons: list[str],
    origin: Origin | None,
    policy: GatePolicy,
    power: PowerResult,
) -> tuple[Verdict, list[str]]:
    """A verdict and its reasons where the policy asks for portable numbers as well."""
    missing = why_not_portable(origin, policy, power)
    if missing is None or verdict is Verdict.FAIL:
        return verdict, reasons
    return Verdict.INCONCLUSIVE, [missing, *(reasons if verdict is not Verdict.PASS else [])]


def why_not_portable(origin: Origin | None, policy: GatePolicy, power: PowerResult) -> str | None:
    """What is missing for a policy that asks for portable numbers; None where it is shown.

    Parameters
    ----------
    origin : Origin or None
        Of the candidate's scores.
    policy : GatePolicy
    power : PowerResult
        Has the margin in the unit of the scores.

    Notes
    -----
    Shown it is when the model has no operation whose results depend on the processor by more than
    the last digits, or when an evaluation of the same model on other hardware agreed with these
    scores: at the policy's level, with its power, within its margin.
    """
    if origin is None:
        return (
            "the policy asks for portable numbers, and the candidate's scores do not say on which "
            "processor they were computed: evaluate it with mlflow-degrade"
        )
    found = origin.dependent_operations
    if found == () or any(_counts(a, origin, policy, power) for a in origin.agreements):
        return None
    what = "are not known" if found is None else f"are {', '.join(found)}"
    seen = f" ({len(origin.agreements)} logged, of which none does)" if origin.agreements else ""
    return (
        "the policy asks for portable numbers: the candidate's operations whose results depend on "
        f"the processor {what}, and no evaluation of it on other hardware than "
        f"{origin.processor.name} is logged that agrees within the margin{seen}. Evaluate it "
        "there, and compare the two runs with mlflow-degrade noise --log"
    )


def _counts(found: Agreement, origin: Origin, policy: GatePolicy, power: PowerResult) -> bool:
    """Whether an agreement shows what this policy asks for."""
    return (
        found.verdict == "PASS"
        and not found.processor.same_hardware(origin.processor)
        and found.alpha == policy.alpha
        and found.power >= policy.power
        and found.margin <= power.margin
    )
