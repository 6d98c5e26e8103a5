"""What it costs to try again on the same evaluation items.

Every attempt at one evaluation set is another chance to pass by luck. The remedy is to spend one
error budget over all attempts, and it works on the *non-inferiority* claim only: there alpha is the
chance to accept a bad model, and a smaller alpha_j makes attempt j harder. On a *degradation* test
alpha is the chance to reject a good model; spending it would shrink the level with every attempt,
and so make a bad model easier to pass the more often one tries: the wrong way round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy import special

from ..core.display import shown
from ._validation import check_alpha, check_count, check_power


def attempt_alpha(alpha: float, attempt: int) -> float:
    """Level of the non-inferiority test at one attempt against an evaluation set.

    Parameters
    ----------
    alpha : float
        Error budget of the evaluation set over all attempts, in (0, 0.5].
    attempt : int
        1 for the first attempt.

    Returns
    -------
    float
        6·alpha/(π²·attempt²).

    Raises
    ------
    StatisticsInputError
        alpha outside (0, 0.5] or attempt below 1.

    Notes
    -----
    Formula: alpha_j = 6·alpha/(π²·j²). As Σ 1/j² = π²/6, the levels of all attempts, however many
    there will be, add up to alpha; by the union bound the chance that *any* model worse than the
    margin ever passes is at most alpha, whatever the models have in common. Uncorrected, 20
    independent attempts with models exactly at the margin pass 64% of the time.

    Valid when the next candidate depends on the earlier attempts through "did not pass" alone; who
    repairs a model by studying its flipped samples has fitted it to them and needs new items (Blum
    & Hardt, arXiv 1502.04585, 2015).

    Source: spending sequences, Foster & Stine, J. R. Stat. Soc. B 70 (2008) 429.

    Examples
    --------
    >>> [round(attempt_alpha(0.05, j), 5) for j in (1, 2, 3, 20)]
    [0.0304, 0.0076, 0.00338, 8e-05]
    """
    return 6.0 * check_alpha(alpha) / (math.pi * check_count("attempt", attempt, 1)) ** 2


def spent(alpha: float, attempts: int) -> float:
    """Part of the error budget that a number of attempts has used, below alpha for any number."""
    # Σ_{j ≤ attempts} 6·alpha/(π²·j²).
    count = check_count("attempts", attempts)
    # π²/6 − ψ'(k + 1) is the partial sum of 1/j²; rounding must not leave a trace at k = 0.
    used = 1.0 - 6.0 / math.pi**2 * float(special.polygamma(1, count + 1)) if count else 0.0
    return check_alpha(alpha) * used


def sample_inflation(alpha: float, attempt: int, power: float = 0.8) -> float:
    """Times as many items attempt `attempt` needs for the power that one unspent test has.

    Parameters
    ----------
    alpha : float
        Error budget in (0, 0.5].
    attempt : int
        1 for the first attempt.
    power : float
        Target power in [0.5, 1).

    Returns
    -------
    float
        ((z_{1−α_j} + z_power)/(z_{1−α} + z_power))².

    Raises
    ------
    StatisticsInputError
        A level, power or attempt outside its domain.

    Notes
    -----
    Formula: ((z_{1−α_j} + z_power)/(z_{1−α} + z_power))² with α_j = `attempt_alpha`.

    Valid when the test's statistic is nearly normal, so that n is proportional to the square of the
    sum of quantiles (`sample_size_noninferiority`).

    Source: Foster & Stine, J. R. Stat. Soc. B 70 (2008) 429, for the levels.

    Examples
    --------
    >>> [round(sample_inflation(0.05, j), 2) for j in (1, 2, 10)]
    [1.19, 1.73, 2.95]
    """
    z_power = float(special.ndtri(check_power(power)))
    z_attempt = -float(special.ndtri(attempt_alpha(alpha, attempt)))
    return ((z_attempt + z_power) / (z_power - float(special.ndtri(alpha)))) ** 2


@shown
@dataclass(frozen=True, slots=True)
class RetryLedger:
    """Attempts made at one evaluation set and what is left of its error budget.

    Parameters
    ----------
    alpha : float
        Error budget over all attempts, in (0, 0.5].
    attempts : int
        Attempts made so far.
    evaluation_set : str
        Digest or name of the items; another set starts another ledger.

    Notes
    -----
    A rerun of an unchanged candidate is an attempt as well, because its scores may move; only
    reading a verdict that was recorded is free. Choosing the best of k candidates by their scores
    on these items is k attempts: choose on other items, or record k.

    Examples
    --------
    >>> ledger = RetryLedger(alpha=0.05, evaluation_set="suite-v1")
    >>> round(ledger.next_alpha, 4)
    0.0304
    >>> ledger = ledger.record()
    >>> ledger.attempts, round(ledger.next_alpha, 4), round(ledger.remaining, 4)
    (1, 0.0076, 0.0196)
    """

    alpha: float = 0.05
    attempts: int = 0
    evaluation_set: str = ""
    method: str = "6·alpha/(pi²·j²)"

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_count("attempts", self.attempts)

    @property
    def next_alpha(self) -> float:
        """Level at which the next non-inferiority claim is tested."""
        return attempt_alpha(self.alpha, self.attempts + 1)

    @property
    def spent(self) -> float:
        """Error budget used so far."""
        return spent(self.alpha, self.attempts)

    @property
    def remaining(self) -> float:
        """Error budget left for all attempts to come."""
        return self.alpha - self.spent

    def record(self, attempts: int = 1) -> RetryLedger:
        """The ledger after further attempts; k at once when the best of k is judged."""
        return replace(self, attempts=self.attempts + check_count("attempts", attempts, 1))

    def attempts_left(self, n: int, n_single: int, power: float = 0.8) -> int:
        """Further attempts that keep the target power.

        Parameters
        ----------
        n : int
            Items in the evaluation set.
        n_single : int
            Items that a single test at `alpha` needs for the target power.
        power : float
            Target power in [0.5, 1).

        Returns
        -------
        int
            How many of the next attempts need at most `n` items; 0 when the set is used up.
        """
        have, need = check_count("n", n), check_count("n_single", n_single, 1)
        left = 0
        while need * sample_inflation(self.alpha, self.attempts + left + 1, power) <= have:
            left += 1
        return left
