"""Whether assisted generation leaves texts as they are, and what it saves.

The model generates alone, one prompt at a time, and with an assistant, in rounds that do both.
Greedy texts have to be the same, token for token. Of sampled ones the distributions are compared,
by a two-sample test that has to be able to see a difference of the size that matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from ..decision.results import Verdict
from ..engine.assisted import Assistant
from ..engine.decoder import OnnxDecoder
from ..engine.generation import Generated, Sampling, generated, next_logits
from ..engine.providers import CPU, cpu_count
from ..engine.schedule import Tokens, common_length
from ..stats._two_sample import ENDED, TwoSampleTest, compare_sequences, detectable_distance
from .machine import processor_name
from .results import Ratio, paired_ratio

MIN_ROUNDS = 6
"""Fewer rounds have no interval at 95% (see `mlflow_degrade.bench.results.paired_ratio`)."""

# Another seed for the texts that are drawn with an assistant: both kinds must be independent.
_OTHER_SEED = 1_000_003


@dataclass(frozen=True)
class Request:
    """A prompt and how it is continued."""

    prompt: Tokens
    sampling: Sampling


@dataclass(frozen=True)
class Difference:
    """Where a text first differs.

    Attributes
    ----------
    prompt, position : int
        Number of the prompt, and of the new token; from 0.
    alone, assisted : str
        The two tokens; the empty text where a text ended.
    gap : float
        By how much the model alone prefers its own, in logits.
    """

    prompt: int
    position: int
    alone: str
    assisted: str
    gap: float | None


@dataclass(frozen=True)
class SampledTest:
    """What a two-sample test on drawn texts said.

    Attributes
    ----------
    test : TwoSampleTest
        Its p-value and sizes.
    detectable : float or None
        The least total variation distance of the tokens' distributions that 80% of such tests find;
        None where it is above 0.5.
    alpha, margin : float
        Level of the test, and the largest distance that may stay undetected for a PASS.
    """

    test: TwoSampleTest
    detectable: float | None
    alpha: float
    margin: float


@dataclass(frozen=True)
class AssistanceReport:
    """What assisted generation did.

    Attributes
    ----------
    model, assistant : str
        Who generated, and what proposed.
    prompts, same : int
        Prompts, and those whose greedy text is the same with and without.
    first : Difference or None
        The first difference.
    counts : mapping
        Of one round: ``passes``, ``tokens``, ``proposed`` and ``accepted``.
    seconds_alone, seconds_assisted : tuple of float
        Of each round.
    sampled : SampledTest or None
        On drawn texts, where texts were drawn.
    processor : str
    threads : int
    """

    model: str
    assistant: str
    prompts: int
    same: int
    first: Difference | None
    counts: Mapping[str, int]
    seconds_alone: tuple[float, ...]
    seconds_assisted: tuple[float, ...]
    sampled: SampledTest | None
    processor: str
    threads: int

    @property
    def verdict(self) -> Verdict:
        """PASS: shown to leave texts as they are; FAIL: it draws other texts."""
        if self.sampled is None:
            return Verdict.PASS if self.same == self.prompts else Verdict.INCONCLUSIVE
        if self.sampled.test.p <= self.sampled.alpha:
            return Verdict.FAIL
        found = self.sampled.detectable
        powerful = found is not None and found <= self.sampled.margin
        return Verdict.PASS if powerful else Verdict.INCONCLUSIVE

    @property
    def reason(self) -> str:
        """The verdict in a sentence."""
        if self.sampled is not None:
            return _sampled_reason(self.sampled, self.verdict)
        if self.first is None:
            return f"all {self.prompts} texts are the same, token for token"
        first = self.first
        gap = "" if first.gap is None else f", {first.gap:.2g} logits apart"
        return (
            f"{self.prompts - self.same} of {self.prompts} texts differ, first in prompt "
            f"{first.prompt + 1} at new token {first.position + 1}: {first.alone!r} alone, "
            f"{first.assisted!r} assisted{gap}; a pass over several tokens rounds otherwise than "
            "single steps, so that a near tie goes either way"
        )

    @property
    def acceptance(self) -> float | None:
        """Share of the proposed tokens that were kept."""
        proposed = self.counts["proposed"]
        return self.counts["accepted"] / proposed if proposed else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens per pass of the model, 1 without an assistant."""
        passes = self.counts["passes"]
        return self.counts["tokens"] / passes if passes else None

    @property
    def speedup(self) -> Ratio:
        """Seconds alone over seconds assisted, prompts included."""
        return paired_ratio(self.seconds_alone, self.seconds_assisted)

    def figures(self) -> dict[str, float | None]:
        """What is worth comparing between runs."""
        speedup = self.speedup
        return {
            "speedup": speedup.estimate,
            "speedup_low": speedup.low,
            "speedup_high": speedup.high,
            "acceptance": self.acceptance,
            "tokens_per_pass": self.tokens_per_pass,
            "same": self.same / self.prompts,
            "p": None if self.sampled is None else self.sampled.test.p,
            "detectable": None if self.sampled is None else self.sampled.detectable,
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, JSON-serializable."""
        return {
            "verdict": self.verdict.value,
            "reason": self.reason,
            **asdict(replace(self, counts=dict(self.counts))),
            "figures": self.figures(),
        }


def _sampled_reason(sampled: SampledTest, verdict: Verdict) -> str:
    test = sampled.test
    found = "0.5" if sampled.detectable is None else f"{sampled.detectable:g}"
    drawn = f"{test.one + test.other:,} texts of {test.prompts} prompts"
    if verdict is Verdict.FAIL:
        return f"texts are drawn from another distribution (p = {test.p:.2g}, {drawn})"
    more = "more than " if sampled.detectable is None else ""
    seen = f"a total variation distance of {more}{found} would have been found in 80% of such tests"
    if verdict is Verdict.PASS:
        return f"no difference in {drawn} (p = {test.p:.2g}), and {seen}"
    return (
        f"no difference in {drawn} (p = {test.p:.2g}), but only {seen}, the limit is "
        f"{sampled.margin:g}: draw more texts"
    )


def measure_assistance(
    folder: str | Path,
    assistant: Assistant,
    requests: Sequence[Request],
    *,
    label: str,
    assistant_label: str,
    rounds: int = MIN_ROUNDS,
    draws: int = 64,
    alpha: float = 0.05,
    margin: float = 0.1,
    threads: int | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> AssistanceReport:
    """Generate with and without an assistant, and compare texts and times."""
    if not requests:
        raise InputError("no prompt: give at least one to generate from.")
    if rounds < 1:
        raise InputError(f"{rounds} rounds: give at least 1; {MIN_ROUNDS} have an interval.")
    drawn = requests[0].sampling.temperature > 0
    if drawn and draws < 8:
        raise InputError(f"{draws} texts per prompt: give at least 8 for a two-sample test.")
    tell = on_progress or (lambda _more, _done: None)
    # Two of them: a session that checks and one that steps hold the weights each.
    alone, assisted = (OnnxDecoder(folder, device="cpu", threads=threads) for _ in range(2))
    assistant.fit(assisted)
    runs: dict[bool, Callable[[Request], Generated]] = {
        False: lambda r: _one(alone, r, None),
        True: lambda r: _one(assisted, r, assistant),
    }
    texts: dict[bool, list[tuple[int, ...]]] = {False: [], True: []}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    counts: Mapping[str, int] = {}
    random = np.random.default_rng(seed)
    tell(2 * len(requests) * rounds, 0)
    for run in runs.values():  # the first calls of a session take longer
        run(replace(requests[0], sampling=replace(requests[0].sampling, max_new_tokens=4)))
    for number in range(rounds):
        assistant.counts.clear()
        taken = {False: 0.0, True: 0.0}
        for request in requests:
            for kind in random.permutation([False, True]).tolist():
                start = time.perf_counter()
                found = runs[kind](request)
                taken[kind] += time.perf_counter() - start
                if number == 0:
                    texts[kind].append(found.tokens)
                tell(0, 1)
        for kind, total in taken.items():
            seconds[kind].append(total)
        counts = {key: assistant.counts[key] for key in _COUNTED}
    apart = [n for n, (a, b) in enumerate(zip(*texts.values(), strict=True)) if a != b]
    sampled = None
    if drawn:
        sampled = _sampled_test(
            alone, assisted, assistant, requests, draws, alpha, margin, seed, tell
        )
    first = None
    if apart and not drawn:
        place = apart[0]
        first = _difference(alone, requests[place], place, *(texts[k][place] for k in texts))
    return AssistanceReport(
        model=label,
        assistant=assistant_label,
        prompts=len(requests),
        same=len(requests) - len(apart),
        first=first,
        counts=counts,
        seconds_alone=tuple(seconds[False]),
        seconds_assisted=tuple(seconds[True]),
        sampled=sampled,
        processor=processor_name(CPU),
        threads=threads or cpu_count(),
    )


_COUNTED = ("passes", "tokens", "proposed", "accepted")


def _one(decoder: OnnxDecoder, request: Request, assistant: Assistant | None) -> Generated:
    ((made,),) = generated(decoder, [request.prompt], request.sampling, assistant)
    return made


def _difference(
    decoder: OnnxDecoder,
    request: Request,
    number: int,
    alone: tuple[int, ...],
    assisted: tuple[int, ...],
) -> Difference:
    place = common_length(alone, assisted)
    own, other = (text[place] if place < len(text) else None for text in (alone, assisted))
    gap = None
    if request.sampling.greedy and own is not None and other is not None:
        logits = next_logits(decoder, request.prompt, request.sampling, alone[:place])
        gap = float(logits[own] - logits[other])

    def word(token: int | None) -> str:
        return "" if token is None else decoder.encoder.tokenizer.decode([token])

    return Difference(number, place, word(own), word(other), gap)


def _sampled_test(
    alone: OnnxDecoder,
    assisted: OnnxDecoder,
    assistant: Assistant,
    requests: Sequence[Request],
    draws: int,
    alpha: float,
    margin: float,
    seed: int,
    tell: Callable[[int, int], None],
) -> SampledTest:
    one, other = [], []
    tell(2 * len(requests) * draws, 0)
    for request in requests:
        prompts = [request.prompt] * draws
        how = request.sampling
        drawn = [made for b in generated(alone, prompts, how) for made in b]
        tell(0, draws)
        how = replace(how, seed=how.seed + _OTHER_SEED)
        again = []
        for batch in generated(assisted, prompts, how, assistant):
            again += batch
            tell(0, 1)
        most = how.max_new_tokens
        one.append(_rows(drawn, most))
        other.append(_rows(again, most))
    test = compare_sequences(one, other, seed=seed)
    detectable = detectable_distance(one, other, alpha=alpha, seed=seed)
    return SampledTest(test, detectable, alpha, margin)


def _rows(texts: Sequence[Generated], places: int) -> NDArray[np.int64]:
    rows = np.full((len(texts), places), ENDED, np.int64)
    for row, made in enumerate(texts):
        rows[row, : len(made.tokens)] = made.tokens
    return rows
