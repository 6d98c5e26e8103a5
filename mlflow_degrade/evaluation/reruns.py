"""The same model on the same questions once more, run otherwise: what its scores are then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from ..core.errors import InputError, UnknownNameError
from ..engine.providers import cpu_count, resolve_device
from ..samples.table import SampleScores
from .model_evaluation import Arm
from .probes import ScoringPath
from .run import EvaluationSettings
from .suite import Suite

PATHS: tuple[ScoringPath, ...] = get_args(ScoringPath)

_AT_LEAST = {"batch_sizes": 1, "threads": 1, "seeds": 0}


@dataclass(frozen=True)
class Asked:
    """What reruns are to change, one thing at a time; None where nobody said."""

    batch_sizes: tuple[int, ...] = (1, 8)
    threads: tuple[int, ...] | None = None
    paths: tuple[ScoringPath, ...] | None = None
    devices: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            for value in getattr(self, name) or ():
                if value < least:
                    raise InputError(f"{name} names {value}, the least is {least}.")
        for path in self.paths or ():
            if path not in PATHS:
                raise UnknownNameError("path", path, PATHS)
        for device in self.devices:
            resolve_device(device)


@dataclass(frozen=True)
class Condition:
    """One rerun: what it does otherwise than the first evaluation."""

    name: str
    path: ScoringPath
    settings: dict[str, Any] = field(default_factory=dict)


def conditions(
    asked: Asked,
    folder: Path,
    suite: Suite,
    settings: EvaluationSettings,
    first: ScoringPath,
) -> tuple[list[Condition], list[str]]:
    """The reruns that change something, and which of those asked for do not, with the reason."""
    # Scores are guarded against their batch, by running a model that needs it one sequence at a
    # time. A rerun takes batches on purpose.
    found = [
        Condition(f"batches of {size}", "batched", {"batch_size": size})
        for size in dict.fromkeys(asked.batch_sizes)
    ]
    left_out: list[str] = []
    usual = settings.threads or cpu_count()
    for threads in dict.fromkeys((1,) if asked.threads is None else asked.threads):
        if threads == usual:
            left_out.append(f"threads {threads}: what the first run has")
            continue
        name = f"{threads} thread{'s' * (threads != 1)}"
        found.append(Condition(name, first, {"threads": threads}))
    for path in dict.fromkeys(("shared-prefix",) if asked.paths is None else asked.paths):
        if path == first:
            left_out.append(f"path {path}: the one that the first run took")
        elif path == "shared-prefix" and not _can_share(folder, suite, settings):
            left_out.append(f"path {path}: this model cannot compute what prompts share once")
        else:
            found.append(Condition(f"path {path}", path))
    here = resolve_device(settings.device)
    for device in dict.fromkeys(asked.devices):
        if resolve_device(device) == here:
            left_out.append(f"device {device}: where the first run was")
        else:
            found.append(Condition(f"device {device}", first, {"device": device}))
    found += _seeds(asked, suite, first, left_out)
    if not found:
        raise InputError(
            f"no rerun would change anything ({'; '.join(left_out) or 'none was asked for'}): give "
            "other --batch-sizes, --threads, --paths, --devices or --seeds."
        )
    return found, left_out


def _seeds(asked: Asked, suite: Suite, first: ScoringPath, left_out: list[str]) -> list[Condition]:
    """Reruns that draw other texts, where tasks draw them at random."""
    drawn = suite.sampling_seeds
    if not drawn:
        if asked.seeds:
            raise InputError(
                f"--seeds {','.join(map(str, asked.seeds))}: no task draws its answers at random "
                f"({', '.join(task.name for task in suite.tasks)}), so that other seeds give the "
                "same. Leave it out, or sample: --gen-kwargs do_sample=true,temperature=0.7."
            )
        return []
    found = []
    for seed in dict.fromkeys((max(drawn) + 1,) if asked.seeds is None else asked.seeds):
        if drawn == {seed}:
            left_out.append(f"seed {seed}: what the tasks say")
        else:
            found.append(Condition(f"seed {seed}", first, {"sampling_seed": seed}))
    return found


def _can_share(folder: Path, suite: Suite, settings: EvaluationSettings) -> bool:
    return Arm(folder, suite, settings).equivalence is not None


def rerun(
    folder: Path, suite: Suite, settings: EvaluationSettings, condition: Condition
) -> SampleScores:
    """Scores under a condition; finished tasks of an earlier such rerun are found again."""
    changed = replace(settings, **condition.settings, rerun=condition.name)
    parts, _, _ = Arm(folder, suite, changed, condition.name).evaluate(condition.path)
    return SampleScores.concat(parts)


def names(found: Sequence[Condition]) -> str:
    """What reruns change, in one line."""
    return ", ".join(condition.name for condition in found)
