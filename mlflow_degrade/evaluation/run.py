"""Evaluate model directories on a suite, task by task, and keep what is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import digest_directory
from ..errors import ModelError
from ..optimize.model_directory import MANIFEST_FILE, library_versions
from ..runtime.decoder import OnnxDecoder
from ..runtime.machine import processor_name
from ..runtime.probes import (
    TOLERANCE,
    BatchInvariance,
    ScoringPath,
    choose_path,
    probe_batch_invariance,
)
from ..runtime.providers import resolve_device
from ..runtime.session import read_json
from ..scores import SampleScores
from .journal import Journal
from .progress import progress_bar
from .store import Entry
from .suite import Suite, SuiteTask, load_suite

if TYPE_CHECKING:
    from .backend import OnnxLM

# Raised when the engine computes other numbers than before: older results are not reused then.
_ENGINE = 1
_PROBE_PROMPTS = 16


@dataclass(frozen=True)
class EvaluationSettings:
    """How a suite is put to a model.

    Attributes
    ----------
    device : {"auto", "cpu", "cuda"}
    batch_size : int or "auto"
        Scores do not depend on it.
    apply_chat_template : bool
        Whether prompts are conversations in the model's own chat template.
    resume : bool
        Whether finished tasks and answers of earlier runs are used.
    progress : bool
        Whether a progress bar is shown on standard error.
    """

    device: str = "auto"
    batch_size: int | str = "auto"
    apply_chat_template: bool = False
    resume: bool = True
    progress: bool = True


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on a suite, and how they came about.

    Attributes
    ----------
    samples : SampleScores
        One row per document, metric and filter.
    results : dict of str to dict
        lm-eval's own aggregates per task.
    key : dict
        Everything the scores depend on.
    path : {"batched", "one-by-one"}
        How the model was run.
    probe : BatchInvariance
        Why.
    tasks : dict of str to dict
        Per task: seconds, documents, requests, plans, and whether it was reused.
    """

    samples: SampleScores
    results: dict[str, dict[str, float]]
    key: dict[str, Any]
    path: ScoringPath
    probe: BatchInvariance
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def timing(self) -> dict[str, float]:
        """Seconds, documents/s and tokens/s of the tasks, whenever they ran.

        Documents answered by an earlier, killed run took no time in this one and do not count.
        """
        runs = self.tasks.values()
        seconds = sum(run["seconds"] for run in runs)
        documents = sum(run["documents"] * (1 - run["resumed"] / run["requests"]) for run in runs)
        tokens = sum(plan["tokens"] for run in runs for plan in run["plans"])
        return {
            "seconds": seconds,
            "documents": documents,
            "documents_per_second": documents / seconds,
            "tokens": float(tokens),
            "tokens_per_second": tokens / seconds,
        }

    @property
    def truncated(self) -> int:
        """Requests that lost tokens on the left to fit the model's context."""
        return sum(plan["truncated"] for run in self.tasks.values() for plan in run["plans"])

    def facts(self) -> dict[str, Any]:
        """Everything but the samples, for logging."""
        return {
            "path": self.path,
            "probe": self.probe.to_dict(),
            "results": self.results,
            "timing": self.timing,
            "truncated": self.truncated,
            "tasks": self.tasks,
        }


def evaluate_model(
    model_dir: str | Path,
    tasks: Suite | Sequence[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    settings: EvaluationSettings | None = None,
    path: ScoringPath | None = None,
    label: str | None = None,
) -> Evaluation:
    """Evaluate one model.

    Parameters
    ----------
    model_dir : path
        A model directory.
    tasks : Suite or sequence of str
        What to ask. For names, the next four parameters are those of
        `mlflow_degrade.evaluation.suite.load_suite`; a suite has them already.
    limit, seed, num_fewshot, include_path
        See there.
    settings : EvaluationSettings, optional
        Device, batch size, chat template, resuming, progress bar.
    path : {"batched", "one-by-one"}, optional
        By default what this model's own probe allows. Models that are compared need one path:
        use `evaluate_pair`, or `scoring_path`.
    label : str, optional
        What progress bars call the model; the directory's name by default.

    Returns
    -------
    Evaluation
        Scores and facts; finished tasks are taken from the cache.

    Raises
    ------
    InputError
        A task or setting is wrong.
    ModelError
        The directory is incomplete.
    EngineError
        The model cannot be run, or produces NaN.
    NonFiniteScoreError
        A metric of a task is not a number.

    Notes
    -----
    A finished task is kept on disk under everything its scores depend on; answers of an unfinished
    one are kept batch by batch. A killed evaluation therefore continues where it stopped.
    """
    suite = (
        tasks
        if isinstance(tasks, Suite)
        else load_suite(
            tasks, include_path=include_path, limit=limit, seed=seed, num_fewshot=num_fewshot
        )
    )
    arm = _Arm(Path(model_dir), suite, settings or EvaluationSettings(), label)
    return arm.evaluate(path or choose_path(arm.probe))


def scoring_path(
    models: Mapping[str, str | Path], suite: Suite, settings: EvaluationSettings
) -> tuple[ScoringPath, dict[str, BatchInvariance]]:
    """Probe models that are to be compared.

    Parameters
    ----------
    models : mapping of str to path
        Model directories by what progress bars call them.
    suite : Suite
        Its prompts are what is probed on.
    settings : EvaluationSettings

    Returns
    -------
    path : {"batched", "one-by-one"}
        The path every one of them may take.
    probes : dict of str to BatchInvariance
        Per label.
    """
    probes = {
        label: _Arm(Path(model), suite, settings, label).probe for label, model in models.items()
    }
    return choose_path(*probes.values()), probes


def evaluate_pair(
    baseline: str | Path,
    candidate: str | Path,
    suite: Suite,
    settings: EvaluationSettings | None = None,
) -> tuple[Evaluation, Evaluation]:
    """Evaluate two models on the same documents by the same path.

    Both are probed first; if the scores of either depend on its batch, both run one sequence at a
    time and unpadded. Other parameters, errors and notes are those of `evaluate_model`.
    """
    models = {"baseline": Path(baseline), "candidate": Path(candidate)}
    used = settings or EvaluationSettings()
    path, _ = scoring_path(models, suite, used)
    first, second = (
        evaluate_model(folder, suite, settings=used, path=path, label=label)
        for label, folder in models.items()
    )
    return first, second


def evaluation_key(
    model_dir: str | Path, suite: Suite, path: ScoringPath, settings: EvaluationSettings
) -> dict[str, Any]:
    """Everything the scores of `evaluate_model` depend on, JSON-serializable."""
    return _Arm(Path(model_dir), suite, settings).key(path)


def model_digest(model_dir: str | Path) -> str:
    """Content digest of a model directory: its manifest's, or computed where it has none."""
    folder = Path(model_dir)
    if not folder.is_dir():
        raise ModelError(f"there is no model directory {folder}: export the model first.")
    stated = read_json(folder, MANIFEST_FILE, needed=False).get("digest")
    return str(stated) if stated else digest_directory(folder, ignore=(MANIFEST_FILE,))


class _Arm:
    """One model on the way through a suite; it is opened when it is first needed."""

    def __init__(
        self,
        folder: Path,
        suite: Suite,
        settings: EvaluationSettings,
        label: str | None = None,
    ) -> None:
        self._folder, self._suite, self._settings = folder, suite, settings
        self._label = label or folder.name
        self._advance: Callable[[int], None] | None = None

    @cached_property
    def _common(self) -> dict[str, Any]:
        versions = library_versions()
        provider = resolve_device(self._settings.device)[0]
        return {
            "model": model_digest(self._folder),
            "backend": f"mlflow-degrade-onnx/{_ENGINE}",
            "provider": provider,
            "processor": processor_name(provider),
            "seed": self._suite.seed,
            "apply_chat_template": self._settings.apply_chat_template,
            "versions": {
                "lm_eval": version("lm_eval"),
                "onnxruntime": versions["onnxruntime"],
                "tokenizers": version("tokenizers"),
                "transformers": versions["transformers"],
            },
        }

    def key(self, path: ScoringPath) -> dict[str, Any]:
        """Key of the whole evaluation."""
        suite = self._suite
        return {
            **self._common,
            "suite": suite.digest,
            "tasks": [task.name for task in suite.tasks],
            "limit": suite.limit,
            "num_fewshot": suite.num_fewshot,
            "path": path,
        }

    @cached_property
    def _model(self) -> OnnxLM:
        from .backend import OnnxLM

        decoder = OnnxDecoder(
            self._folder, device=self._settings.device, batch_size=self._settings.batch_size
        )

        def advance(count: int) -> None:
            if self._advance is not None:
                self._advance(count)

        # Which path is taken is decided here, for both models of a comparison.
        return OnnxLM(decoder, path="batched", advance=advance)

    @cached_property
    def probe(self) -> BatchInvariance:
        """Whether this model's scores depend on the batch, measured on the suite's own prompts."""
        key = {**self._common, "suite": self._suite.digest, "tolerance": TOLERANCE}
        entry = Entry("probe", key)
        known = entry.facts()
        if known is not None:
            return BatchInvariance(**known["probe"])
        suite = self._suite
        share = -(-_PROBE_PROMPTS // len(suite.tasks))
        prompts = [prompt for task in suite.tasks for prompt in self._prompts(task, share)]
        with progress_bar(f"Probing {self._label}", self._settings.progress) as bar:
            bar(1, 0)
            probe = probe_batch_invariance(
                self._model.decoder, prompts[:_PROBE_PROMPTS], generation=suite.generates
            )
            bar(0, 1)
        entry.finish({"probe": probe.fields()})
        return probe

    def _prompts(self, task: SuiteTask, count: int) -> list[list[int]]:
        from .task_run import prompts_of

        return prompts_of(
            self._model,
            task,
            count,
            seed=self._suite.seed,
            apply_chat_template=self._settings.apply_chat_template,
        )

    def evaluate(self, path: ScoringPath) -> Evaluation:
        """Run, or fetch, every task."""
        parts, results, tasks = [], {}, {}
        for task in self._suite.tasks:
            entry = Entry("evaluation", {**self._common, "task": task.digest, "path": path})
            if not self._settings.resume:
                entry.forget()
            known = entry.facts()
            facts = known or self._run(task, entry, path)
            parts.append(entry.samples())
            results[task.name] = facts["results"]
            tasks[task.name] = {**facts["run"], "reused": known is not None}
        if "_model" in self.__dict__:
            self._model.decoder.close()
        return Evaluation(
            SampleScores.concat(parts), results, self.key(path), path, self.probe, tasks
        )

    def _run(self, task: SuiteTask, entry: Entry, path: ScoringPath) -> dict[str, Any]:
        from .task_run import run_task

        self._model.decoder.unpadded = path == "one-by-one"
        title = f"{task.name} ({self._label})"
        with progress_bar(title, self._settings.progress) as bar, Journal(entry.journal) as journal:
            self._advance = lambda count: bar(0, count)
            outcome = run_task(
                self._model,
                task,
                journal,
                seed=self._suite.seed,
                apply_chat_template=self._settings.apply_chat_template,
                started=bar,
            )
        samples = SampleScores.from_records(
            outcome.records,
            model=self._folder.name,
            model_digest=self._common["model"],
            task_versions={task.name: task.version},
        )
        facts = {"results": outcome.results, "run": outcome.facts}
        entry.finish(facts, samples)
        return facts
