"""Results of lm-eval without samples: said, with what their number of samples could have shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import EmptySamplesError
from ...stats import mde
from ...stats._combination_rules import DEFAULT_RULE, pooled_level, rule_named
from ..table import SampleScores
from ._reader import Reader, files_below, load_json, start_of

# Of the answers, as quantized models change them.
_FLIP_RATE = 0.05


def _is_results(file: Path) -> bool:
    if file.suffix != ".json" or b'"results"' not in start_of(file, 4096):
        return False
    content = load_json(file)
    return isinstance(content, dict) and {"results", "versions", "config"} <= content.keys()


def _read(path: Path) -> SampleScores:
    file = files_below(path, _is_results)[-1]
    about = load_json(file)
    sizes = {task: n for task in about["results"] if (n := _size(task, about)) is not None}
    level = pooled_level(rule_named(DEFAULT_RULE), None, 0.05)
    shown = [
        f"the {n} samples of {task} could have shown a drop of "
        f"{100 * mde(n, _FLIP_RATE, alpha=level):.1f} pp if {_FLIP_RATE:.0%} of the answers change"
        for task, n in list(sizes.items())[:3]
    ]
    raise EmptySamplesError(
        f"there are no samples here: {file} has the totals of lm-eval "
        f"({sorted(about['results'])}), and a paired test needs each answer. Evaluate both models "
        "again with --log_samples. "
        + (f"For planning: {'; '.join(shown)}. " if shown else "")
        + "What a number of samples can show: mlflow-degrade plan --samples N."
    )


def _size(task: str, about: Mapping[str, Any]) -> int | None:
    """Number of samples, as stated or as the standard error of a share implies."""
    stated = (about.get("n-samples") or {}).get(task)
    if isinstance(stated, dict) and stated.get("effective"):
        return int(stated["effective"])
    for name, mean in about["results"][task].items():
        head, _, kind = name.partition(",")
        error = about["results"][task].get(f"{head}_stderr,{kind}")
        if isinstance(error, float) and isinstance(mean, float) and 0 < mean < 1 and error > 0:
            return round(mean * (1 - mean) / error**2) + 1
    return None


READER = Reader(
    name="lm-eval-totals",
    what="lm-eval results without --log_samples, to say what is missing",
    recognizes=lambda path: bool(files_below(path, _is_results)),
    read=_read,
    order=5,
)
