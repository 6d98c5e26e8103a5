"""Whose texts are served: evidence that may be read at any time of a year, at one alpha.

Two models read a served text token by token. Where their likeliest tokens differ and the served
one is the challenger's, that counts against the champion; where it is the champion's, for it. If
the champion wrote the text, greedily or drawing with any temperature, top-k or top-p, its likeliest
token is at each place at least as probable as any other: each such token counts against it with
probability at most ½, whatever was asked and written before. That is what the Beta mixtures of
`mlflow_degrade.stats._sequential` test. A tolerance adds a bet on the share of tokens that are not
the champion's likeliest, for texts of a model that nobody named.

A watch begins anew after some traces, so that a year of good texts does not hide a swap. Each
beginning has a weight, and all weights of a year sum to 1: the weighted sum of their e-processes is
one, and reaches 1/alpha in the year with probability at most alpha (Ville).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import special

from ..core.cache import digest_json
from ..core.errors import InputError
from ..stats._sequential import betting_log_e, combine_log_e, degradation_log_e
from .results import Verdict

WEEKS = 52
WEEK_MS = 7 * 24 * 3600 * 1000
SWAP, DRIFT = "swap", "drift"
#: Stakes on texts that differ more than is tolerated, relative to the largest that none can ruin.
BETS = (0.05, 0.15, 0.4, 0.9)
_FORMAT = 1


@dataclass(frozen=True)
class WatchPolicy:
    """What is fixed before the first text is scored."""

    alpha: float = 0.05  # Probability of any false alarm in a year.
    # Share of a text's tokens that may differ from the champion's likeliest, on average; None
    # where only the challenger is looked for.
    tolerance: float | None = None
    rate: float = 1.0  # Share of the traces that are scored.
    seed: int = 0  # Of which traces those are.
    tokens: int = 64  # Most tokens of a text.
    every: int = 25  # Traces of a week after which the watch begins anew.

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 0.5:
            raise InputError(f"alpha = {self.alpha!r} is not in (0, 0.5]: 0.05 is usual.")
        if self.tolerance is not None and not 0.0 < self.tolerance < 1.0:
            raise InputError(
                f"tolerance = {self.tolerance!r} is not in (0, 1): give the share of tokens that "
                "may differ, such as 0.05."
            )
        if not 0.0 < self.rate <= 1.0:
            raise InputError(f"rate = {self.rate!r} is not in (0, 1]: 0.1 scores a tenth.")
        for name in ("tokens", "every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)!r} is below 1.")

    def draws(self, trace_id: str) -> bool:
        """Whether a trace is scored: by its id and the seed, never by what it says."""
        state = hashlib.sha256(f"{self.seed}:{trace_id}".encode()).digest()
        return int.from_bytes(state[:8], "big") < self.rate * 2.0**64

    def stakes(self) -> np.ndarray:
        """Stakes on a text's share of differing tokens above the tolerance."""
        return np.empty(0) if self.tolerance is None else np.asarray(BETS) / self.tolerance


@dataclass(frozen=True)
class ScoredTrace:
    """What the models said of one served text; nothing of the text itself."""

    trace: str  # Digest of the trace's id.
    prompt: str  # Digest of the prompt.
    time_ms: int
    tokens: int
    differing: int  # Tokens that are not the champion's likeliest.
    against: int = 0  # Tokens that are the challenger's likeliest and not the champion's.
    agreeing: int = 0  # The other way round.
    # Log-likelihood of the text, per token; None without a challenger.
    champion_loglik: float = 0.0
    challenger_loglik: float | None = None


@dataclass
class Week:
    """What was seen in one week of the year."""

    week: int
    traces: int = 0
    tokens: int = 0
    differing: int = 0
    against: int = 0
    agreeing: int = 0
    champion_loglik: float = 0.0  # Sums of what is per token of each text.
    challenger_loglik: float = 0.0
    log_e: float = 0.0  # After its last trace.
    max_log_e: float = 0.0


@dataclass(frozen=True)
class Alarm:
    """The evidence reached 1/alpha."""

    claim: str  # What most of the evidence is for: `SWAP` or `DRIFT`.
    trace_number: int  # Traces of the watch until then.
    time_ms: int
    week: int
    log_e: float
    # The beginning with the most evidence: about when it began.
    since_ms: int
    since_traces: int


def weight(block: int) -> float:
    """Weight of the beginnings of a week, in their order: 1/2, 1/6, 1/12, …, which sum to 1."""
    return 1.0 / (WEEKS * block * (block + 1))


@dataclass
class _Beginning:
    log_weight: float
    time_ms: int
    traces: int
    against: int
    agreeing: int
    wealth: list[float]


@dataclass
class Watch:
    """A watch and all that its next trace needs; one for each champion, challenger and policy.

    Examples
    --------
    >>> watch = Watch(WatchPolicy())
    >>> served = (ScoredTrace(f"{n}", f"{n}", n, 20, 4, against=4) for n in range(20))
    >>> watch.take(served).claim, watch.traces
    ('swap', 5)
    """

    policy: WatchPolicy
    challenged: bool = True
    since_ms: int = 0  # Traces from before are another watch's.
    year_ms: int | None = None  # When the year began.
    week: int = -1
    block: int = 0
    in_block: int = 0
    spent: float = 0.0  # Weight of all beginnings so far.
    traces: int = 0
    against: int = 0
    agreeing: int = 0
    wealth: list[float] = field(default_factory=list)
    beginnings: list[_Beginning] = field(default_factory=list)
    weeks: list[Week] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)  # Of this week.
    order: str = ""
    latest_ms: int = 0
    repeated: int = 0
    alarm: Alarm | None = None

    def __post_init__(self) -> None:
        if not self.challenged and self.policy.tolerance is None:
            raise InputError(
                "there is neither a challenger nor a tolerance, so nothing could raise an alarm: "
                "name the model that might be served instead, or give the share of tokens that "
                "may differ from the champion's."
            )
        if not self.wealth:
            self.wealth = [0.0] * self.policy.stakes().size

    # -- going on -------------------------------------------------------------------------

    def take(self, traces: Iterable[ScoredTrace]) -> Alarm | None:
        """Go on with traces in the order of time, until an alarm; what was seen counts once."""
        for trace in traces:
            if self.alarm is not None:
                break
            if self.wants(trace.trace, trace.time_ms):
                self._take(trace)
        return self.alarm

    def over(self, time_ms: int) -> bool:
        """Whether the year ends before a time."""
        return self.year_ms is not None and time_ms >= self.year_ms + WEEKS * WEEK_MS

    def wants(self, trace: str, time_ms: int) -> bool:
        """Whether a trace, named by the digest of its id, is still to be scored."""
        return trace not in self.seen and time_ms >= self.since_ms and not self.over(time_ms)

    def renewed(self, policy: WatchPolicy, *, challenged: bool, since_ms: int) -> Watch:
        """A watch of other models or by another policy, in the same year and with its alpha."""
        # What the earlier one showed is dropped. Frozen where it stopped and added to this one it
        # would still be an e-process, so the two together keep one alpha.
        return Watch(
            policy,
            challenged,
            since_ms=since_ms,
            year_ms=self.year_ms,
            week=self.week,
            block=self.block,
            # The next trace begins a block.
            in_block=policy.every,
            spent=self.spent,
            seen=set(self.seen),
            latest_ms=self.latest_ms,
        )

    def _take(self, trace: ScoredTrace) -> None:
        if self.year_ms is None:
            self.year_ms = trace.time_ms
        # What arrives late counts in the week in which it is seen.
        week = max(self.week, max(0, trace.time_ms - self.year_ms) // WEEK_MS)
        if week > self.week:
            self.week, self.block, self.in_block, self.prompts = week, 0, 0, set()
        self.seen.add(trace.trace)
        self.latest_ms = max(self.latest_ms, trace.time_ms)
        if trace.prompt in self.prompts:
            # A served model answers the same again: that is no news.
            self.repeated += 1
            return
        self.prompts.add(trace.prompt)
        if self.in_block >= self.policy.every or self.block == 0:
            self._begin(trace.time_ms)
        self.in_block += 1
        self.traces += 1
        self.against += trace.against
        self.agreeing += trace.agreeing
        stakes = self.policy.stakes()
        if stakes.size:
            payoff = trace.differing / trace.tokens - float(self.policy.tolerance or 0.0)
            grown = [float(betting_log_e([payoff], stake)[-1]) for stake in stakes]
            self.wealth = [a + b for a, b in zip(self.wealth, grown, strict=True)]
        self.order = digest_json([self.order, trace.trace])
        self._enter(trace)

    def _begin(self, time_ms: int) -> None:
        self.block, self.in_block = self.block + 1, 0
        share = weight(self.block)
        self.spent += share
        self.beginnings.append(
            _Beginning(
                math.log(share), time_ms, self.traces, self.against, self.agreeing, [*self.wealth]
            )
        )

    def _enter(self, trace: ScoredTrace) -> None:
        if not self.weeks or self.weeks[-1].week != self.week:
            self.weeks.append(Week(self.week))
        now = self.weeks[-1]
        now.traces += 1
        now.tokens += trace.tokens
        now.differing += trace.differing
        now.against += trace.against
        now.agreeing += trace.agreeing
        now.champion_loglik += trace.champion_loglik
        now.challenger_loglik += trace.challenger_loglik or 0.0
        by_claim = self._by_claim()
        now.log_e = self._total(by_claim)
        now.max_log_e = max(now.max_log_e, now.log_e)
        if now.log_e >= -math.log(self.policy.alpha):
            claims, parts = list(by_claim), np.stack(list(by_claim.values()))
            claim, best = np.unravel_index(int(np.argmax(parts)), parts.shape)
            began = self.beginnings[best]
            self.alarm = Alarm(
                claims[claim], self.traces, trace.time_ms, self.week, now.log_e,
                began.time_ms, self.traces - began.traces,
            )  # fmt: skip

    # -- evidence -------------------------------------------------------------------------

    def _by_claim(self, *, at_most: bool = False) -> dict[str, np.ndarray]:
        """Of each claim ln of weight times E of each beginning."""
        # `at_most`: what it would be, had every token spoken for an alarm that could.
        column = {
            name: np.array([getattr(b, name) for b in self.beginnings])
            for name in ("log_weight", "traces", "against", "agreeing")
        }
        found = {}
        if self.challenged:
            against = self.against - column["against"]
            agreeing = self.agreeing - column["agreeing"]
            if at_most:
                against, agreeing = against + agreeing, np.zeros_like(agreeing)
            found[SWAP] = degradation_log_e(against, agreeing)
        stakes = self.policy.stakes()
        if stakes.size:
            grown = np.array(self.wealth) - np.array([b.wealth for b in self.beginnings])
            if at_most:
                most = np.log1p(stakes * (1.0 - float(self.policy.tolerance or 0.0)))
                grown = np.outer(self.traces - column["traces"], most)
            found[DRIFT] = combine_log_e(grown.T, independent=False)
        return {claim: log_e + column["log_weight"] for claim, log_e in found.items()}

    def _total(self, by_claim: dict[str, np.ndarray]) -> float:
        # The claims share alpha: a mean of e-processes. What has not begun is worth its weight.
        parts = np.concatenate(list(by_claim.values())) - math.log(len(by_claim))
        left = max(0.0, 1.0 - self.spent)
        return float(np.logaddexp(special.logsumexp(parts), math.log(left) if left else -np.inf))

    @property
    def log_e(self) -> float:
        """ln of the evidence after the last trace."""
        return self.weeks[-1].log_e if self.weeks else 0.0

    @property
    def could_alarm(self) -> bool:
        """Whether what was seen could have raised an alarm, had it been the challenger's."""
        if not self.beginnings:
            return False
        return self._total(self._by_claim(at_most=True)) >= -math.log(self.policy.alpha)

    @property
    def verdict(self) -> Verdict:
        """FAIL is an alarm; INCONCLUSIVE, that there could not have been one."""
        if self.alarm is not None:
            return Verdict.FAIL
        return Verdict.PASS if self.could_alarm else Verdict.INCONCLUSIVE

    # -- kept -----------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        kept = asdict(self) | {"format": _FORMAT}
        return kept | {"seen": sorted(self.seen), "prompts": sorted(self.prompts)}

    @classmethod
    def from_dict(cls, stated: dict[str, Any]) -> Watch:
        """A watch that `as_dict` wrote."""
        given = dict(stated)
        if given.pop("format", None) != _FORMAT:
            raise InputError(
                f"the state of the watch has format {stated.get('format')!r}, and this version "
                f"reads {_FORMAT}: begin another with --anew."
            )
        alarm = given.pop("alarm")
        return cls(
            **given
            | {
                "policy": WatchPolicy(**given["policy"]),
                "beginnings": [_Beginning(**each) for each in given["beginnings"]],
                "weeks": [Week(**each) for each in given["weeks"]],
                "seen": set(given["seen"]),
                "prompts": set(given["prompts"]),
                "alarm": None if alarm is None else Alarm(**alarm),
            }
        )

    def text(self) -> str:
        """The same as one JSON text, always in the same order."""
        return json.dumps(self.as_dict(), sort_keys=True)

    def copy(self) -> Watch:
        """Another one that goes on by itself."""
        return Watch.from_dict(json.loads(self.text()))


def first_alarms(
    against: np.ndarray,
    agreeing: np.ndarray,
    share: np.ndarray | None,
    policy: WatchPolicy,
    *,
    per_week: int,
    challenged: bool = True,
) -> np.ndarray:
    """Of many years at once, each a row, the trace of the first alarm; −1 where there is none.

    For simulations: what `Watch.take` does with `per_week` traces in each week.
    """
    years, traces = against.shape
    threshold, stakes = 1.0 / policy.alpha, policy.stakes()
    sums = [np.cumsum(v, axis=1) for v in (against, agreeing)]
    grown = None
    if stakes.size and share is not None:
        payoff = share - float(policy.tolerance or 0.0)
        grown = np.cumsum(np.log1p(stakes[:, None, None] * payoff), axis=2)
    claims = challenged + (grown is not None)
    starts: list[int] = []
    weights: list[float] = []
    found = np.full(years, -1)
    for n in range(traces):
        within = n % per_week
        if within % policy.every == 0:
            starts.append(n)
            weights.append(weight(within // policy.every + 1))
        rows = np.flatnonzero(found < 0)
        if not rows.size:
            break
        before = np.asarray(starts) - 1
        first = before < 0
        shares = np.asarray(weights) / claims
        total = np.full(rows.size, max(0.0, 1.0 - sum(weights)))

        columns = np.maximum(before, 0)

        def since(
            values: np.ndarray,
            rows: np.ndarray = rows,
            n: int = n,
            columns: np.ndarray = columns,
            first: np.ndarray = first,
        ) -> np.ndarray:
            begun = np.where(first, 0, values[np.ix_(rows, columns)])
            return np.asarray(values[rows, n][:, None] - begun)

        if grown is not None:
            log_e = special.logsumexp([since(g) for g in grown], axis=0) - math.log(stakes.size)
            total = total + np.exp(np.minimum(log_e, 700.0)) @ shares
        if challenged:
            # A mixture is below the best of what it mixes, which settles most steps.
            b, c = since(sums[0]), since(sums[1])
            best = special.xlogy(b, 2.0 * b / (b + c).clip(1)) + special.xlogy(
                c, 2.0 * c / (b + c).clip(1)
            )
            bound = np.exp(np.where(b > c, best, 0.0).clip(max=700.0)) @ shares
            near = total + bound >= threshold
            part = np.exp(degradation_log_e(b[near], c[near]).clip(max=700.0))
            total[near] += part @ shares
        found[rows[total >= threshold]] = n
    return found
