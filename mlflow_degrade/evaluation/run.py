"""Evaluate model directories on a suite, task by task, and keep what is finished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.integer_probe import KernelCheck
from ..samples.table import SampleScores
from .known_texts import FURTHEST
from .model_evaluation import Arm
from .probes import BatchInvariance, PathEquivalence, ScoringPath
from .scoring_path import PathChoice, choose
from .suite import Suite

if TYPE_CHECKING:
    from .shards import Workers


@dataclass(frozen=True)
class EvaluationSettings:
    """How a suite is put to a model."""

    device: str = "auto"
    batch_size: int | str = "auto"  # Scores do not depend on it.
    resume: bool = True  # Whether finished tasks and answers of earlier runs are used.
    progress: bool = True  # Whether a progress bar is shown on standard error.
    threads: int | None = None  # Threads per operator; all available cores by default.
    sampling_seed: int | None = None  # Of sampled texts, in place of what their tasks say.
    # What a rerun does otherwise than an evaluation does. Part of the key: no answer of another
    # evaluation may stand in for one of a rerun, nor the other way round.
    rerun: str = ""
    # Who runs the batches, if not this process; each of them with its own share of the cores.
    workers: Workers | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            object.__setattr__(self, "threads", self.workers.threads)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on a suite, and how they came about."""

    samples: SampleScores  # One row per document, metric and filter.
    results: dict[str, dict[str, float]]  # lm-eval's own aggregates per task.
    key: dict[str, Any]  # Everything the scores depend on.
    path: ScoringPath  # How the model was run.
    probe: BatchInvariance  # Whether its scores depend on the batch.
    # Per task: seconds, documents, requests, plans, and whether it was reused.
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Whether its scores change with shared prefixes, where that was worth trying.
    equivalence: PathEquivalence | None = None
    # Its integer products on this processor against integer arithmetic; empty without any.
    kernels: tuple[KernelCheck, ...] = ()

    @property
    def timing(self) -> dict[str, float]:
        """Seconds, documents/s and tokens/s of the tasks, whenever they ran."""
        # Documents answered by an earlier, killed run took no time in this one and do not count,
        # nor do texts that were read in place of being written.
        runs = self.tasks.values()
        texts = [run["texts"] for run in runs if "texts" in run]
        seconds = sum(run["seconds"] for run in runs) - sum(found["seconds"] for found in texts)
        documents = sum(run["documents"] * (1 - run["resumed"] / run["requests"]) for run in runs)
        documents -= sum(found["kept"] for found in texts)
        tokens = sum(plan["tokens"] for run in runs for plan in run["plans"])
        return {
            "seconds": seconds,
            "documents": documents,
            "documents_per_second": documents / seconds,
            "tokens": float(tokens),
            "tokens_per_second": tokens / seconds,
        }

    @property
    def texts_read(self) -> str | None:
        """What came of the texts that an earlier model wrote, in a line; None where none did."""
        texts = [run["texts"] for run in self.tasks.values() if "texts" in run]
        if not texts:
            return None
        read, kept = (sum(found[name] for found in texts) for name in ("read", "kept"))
        apart = max(found["difference"] for found in texts)
        if apart > FURTHEST:
            return (
                f"all texts were written: what the model reads is up to {apart:.2g} nats from what "
                "it writes, so one pass cannot tell what it would write"
            )
        return f"read {read} texts of an earlier model; kept {kept} that it would write as well"

    @property
    def truncated(self) -> int:
        """Requests that lost tokens on the left to fit the model's context."""
        return sum(plan["truncated"] for run in self.tasks.values() for plan in run["plans"])

    def facts(self) -> dict[str, Any]:
        """Everything but the samples, for logging."""
        return {
            "path": self.path,
            "probe": self.probe.to_dict(),
            "equivalence": None if self.equivalence is None else self.equivalence.to_dict(),
            "integer_kernels": [check.to_dict() for check in self.kernels],
            "results": self.results,
            "timing": self.timing,
            "truncated": self.truncated,
            "tasks": self.tasks,
        }


def evaluate_model(
    model_dir: str | Path,
    suite: Suite,
    *,
    settings: EvaluationSettings | None = None,
    path: ScoringPath | None = None,
    label: str | None = None,
) -> Evaluation:
    """Evaluate one model."""
    # A finished task is kept on disk under everything its scores depend on; answers of an
    # unfinished one are kept batch by batch. A killed evaluation therefore continues where it
    # stopped.
    arm = Arm(Path(model_dir), suite, settings or EvaluationSettings(), label)
    chosen = path or choose({label or arm.folder.name: arm}).path
    parts, results, runs = arm.evaluate(chosen)
    return _made(arm, chosen, parts, results, runs)


def evaluate_in_order(
    model_dir: str | Path,
    suite: Suite,
    looks: Iterable[Mapping[str, Collection[str]]],
    enough: Callable[[SampleScores], bool],
    *,
    settings: EvaluationSettings,
    path: ScoringPath,
    label: str | None = None,
) -> Evaluation:
    """Evaluate one model on some documents after the other, until that is enough."""
    # Each look is kept on disk by itself, as a task with these documents: a killed evaluation goes
    # on where it stopped, and nothing is asked or counted twice.
    arm = Arm(Path(model_dir), suite, replace(settings, progress=False), label)
    parts: list[SampleScores] = []
    runs: dict[str, dict[str, Any]] = {}
    try:
        for documents in looks:
            found, tasks = arm.look(path, documents)
            parts.append(found)
            for name, facts in tasks.items():
                runs[name] = facts if name not in runs else _together(runs[name], facts)
            if enough(SampleScores.concat(parts)):
                break
    finally:
        arm.close()
    # lm-eval's aggregates of a part of a task would be taken for those of the whole.
    return _made(arm, path, parts, {}, runs)


def _made(
    arm: Arm,
    path: ScoringPath,
    parts: Sequence[SampleScores],
    results: dict[str, dict[str, float]],
    runs: dict[str, dict[str, Any]],
) -> Evaluation:
    """An evaluation from its parts."""
    return Evaluation(
        samples=SampleScores.concat(parts),
        results=results,
        key=arm.key(path),
        path=path,
        probe=arm.probe,
        tasks=runs,
        equivalence=arm.known_equivalence(),
        kernels=arm.kernels,
    )


def _together(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of two parts of a task."""
    summed = ("seconds", "documents", "requests", "resumed", "plans")
    texts = [found["texts"] for found in (first, second) if "texts" in found]
    read = {name: sum(found[name] for found in texts) for name in ("read", "kept", "seconds")}
    return {
        **first,
        **{name: first[name] + second[name] for name in summed},
        **({"texts": {**texts[-1], **read}} if texts else {}),
        "reused": first["reused"] and second["reused"],
    }


def scoring_path(
    models: Mapping[str, str | Path], suite: Suite, settings: EvaluationSettings
) -> PathChoice:
    """Probe models that are to be compared, and choose the path all of them take."""
    return choose(
        {label: Arm(Path(model), suite, settings, label) for label, model in models.items()}
    )


def evaluate_pair(
    baseline: str | Path,
    candidate: str | Path,
    suite: Suite,
    settings: EvaluationSettings | None = None,
) -> tuple[Evaluation, Evaluation]:
    """Evaluate two models on the same documents by the same path."""
    # Both are probed first; if the scores of either depend on its batch, both run one sequence at
    # a time and unpadded, and if those of either change with shared prefixes, both run without.
    # Other parameters, errors and notes are those of `evaluate_model`.
    models = {"baseline": Path(baseline), "candidate": Path(candidate)}
    used = settings or EvaluationSettings()
    path = scoring_path(models, suite, used).path
    first, second = (
        evaluate_model(folder, suite, settings=used, path=path, label=label)
        for label, folder in models.items()
    )
    return first, second


def evaluation_key(
    model_dir: str | Path, suite: Suite, path: ScoringPath, settings: EvaluationSettings
) -> dict[str, Any]:
    """Everything the scores of `evaluate_model` depend on, JSON-serializable."""
    return Arm(Path(model_dir), suite, settings).key(path)
