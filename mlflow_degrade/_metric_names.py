"""What the name of a metric says about the direction of its scores, for all readers."""

from __future__ import annotations

import re

# Normalized: lower case, words joined by underscores.
_LOWER_IS_BETTER = frozenset(
    (
        "perplexity", "word_perplexity", "byte_perplexity", "token_perplexity", "ppl",
        "bits_per_byte", "bits_per_char", "bits_per_character", "bpb", "bpc",
        "loss", "eval_loss", "test_loss", "log_loss", "logloss", "nll", "nll_loss",
        "negative_log_likelihood", "cross_entropy", "cross_entropy_loss",
        "brier", "brier_score", "ece", "expected_calibration_error",
        "error_rate", "wer", "word_error_rate", "cer", "character_error_rate", "mer", "ter",
        "edit_distance", "levenshtein", "levenshtein_distance",
        "mse", "rmse", "mae", "mean_squared_error", "root_mean_squared_error",
        "mean_absolute_error", "absolute_error", "squared_error",
        "bias", "hallucination", "toxicity", "toxicity_v1_score", "latency",
    )
)  # fmt: skip
_HIGHER_IS_BETTER = frozenset(
    ("neg_loss", "neg_log_loss", "neg_mean_squared_error", "neg_mean_absolute_error")
)
_LIKE_A_LOSS = re.compile(
    r"(?:^|_)(?:\w*loss|\w*perplexity|ppl|nll|bp[bc]|[wcmt]er|errors?|err|r?mse|mae|mape|ece"
    r"|brier|\w*distance|\w*divergence|kl|\w*entropy|regret|penalty|latency|cost|toxicity"
    r"|hallucinations?|wrong|incorrect|fail(?:s|ed|ures?)?|violations?|unsafe|harm\w*|miss(?:es|ed)?"
    r"|surprisal|refusals?|refused|durations?|seconds|time|timeouts?)(?:_|$)|bits_per_"
)


def is_metric(name: str) -> bool:
    """Whether a name is that of a metric whose direction is known.

    Examples
    --------
    >>> is_metric("Perplexity"), is_metric("my_loss"), is_metric("prompt")
    (True, False, False)
    """
    # How long an answer took is told beside scores of any kind.
    return _normal(name) in (_LOWER_IS_BETTER | _HIGHER_IS_BETTER) - {"latency"}


def higher_is_better(metric: str) -> bool | None:
    """Direction of a metric by its name; None where it looks like a loss that is not known.

    Examples
    --------
    >>> [higher_is_better(name) for name in ("acc", "Word Perplexity", "my_loss")]
    [True, False, None]
    """
    name = _normal(metric)
    if name in _LOWER_IS_BETTER:
        return False
    if name in _HIGHER_IS_BETTER:
        return True
    return None if _LIKE_A_LOSS.search(name) else True


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
