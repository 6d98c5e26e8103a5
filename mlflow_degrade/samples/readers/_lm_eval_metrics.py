"""What lm-eval writes for a metric of one sample, turned into a score of that sample.

Most metrics are a number. Some are the ingredients of a figure that lm-eval computes over the
whole task: where that figure is a mean over samples in disguise, the sample's share is its score;
where it is not (F1 over a task, BLEU), there is no per-sample score and the metric is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

#: Marks a metric that has no per-sample score.
NOT_PER_SAMPLE = object()

_AGGREGATION = {
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
    "perplexity": "perplexity",
    "brier_score": "brier_score",
}


def sample_score(metric: str, logged: Any, aggregation: str | None = None) -> Any:
    """The score of one sample."""
    # Perplexities are logged as log-likelihoods (with a number of words or bytes); the score is
    # their exponent, the negative log-likelihood per word or byte in nats (``bits_per_byte``: in
    # bits), because differences of exponents are additive and do not explode. The Brier score is
    # Σ(p − y)² over the choices.
    convert = _CONVERSIONS.get(aggregation or _AGGREGATION.get(metric, ""))
    if convert is not None:
        return convert(logged)
    return _as_score(logged)


def _as_score(logged: Any) -> Any:
    if logged is None:
        return None
    if isinstance(logged, (list, tuple, dict)):
        return NOT_PER_SAMPLE
    try:
        return float(logged)
    except (TypeError, ValueError):
        return NOT_PER_SAMPLE


def _per_unit(logged: Any) -> Any:
    """−log-likelihood per word or byte."""
    if not isinstance(logged, (list, tuple)) or len(logged) != 2:
        return NOT_PER_SAMPLE
    loglikelihood, units = (_as_score(part) for part in logged)
    if not isinstance(loglikelihood, float) or not isinstance(units, float):
        return NOT_PER_SAMPLE
    # An empty document has nothing to predict.
    return -loglikelihood / units if units else None


def _bits(logged: Any) -> Any:
    nats = _per_unit(logged)
    return nats / math.log(2) if isinstance(nats, float) else nats


def _negated(logged: Any) -> Any:
    score = _as_score(logged)
    return -score if isinstance(score, float) else score


def _brier(logged: Any) -> Any:
    if not isinstance(logged, (list, tuple)) or len(logged) != 2:
        return _as_score(logged)
    gold, given = logged
    # numpy's print of the probabilities; with very many choices it is elided.
    texts = given.strip("[]").split() if isinstance(given, str) else given
    try:
        probabilities = [float(text) for text in texts]
    except (TypeError, ValueError):
        return NOT_PER_SAMPLE
    if not isinstance(gold, int) or not 0 <= gold < len(probabilities):
        return None
    return sum((p - (i == gold)) ** 2 for i, p in enumerate(probabilities))


_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "weighted_perplexity": _per_unit,
    "bits_per_byte": _bits,
    "perplexity": _negated,
    "brier_score": _brier,
}
