"""One model of an evaluation: its probes, its tasks, and what is kept of both."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..core.cache import (
    MANIFEST_FILE,
    cache_root,
    digest_file,
    digest_json,
    digest_model,
    storing,
)
from ..core.errors import InputError, ModelError
from ..core.progress import progress_bar
from ..engine.conversation import says_the_date, template_digest, template_of
from ..engine.decoder import OnnxDecoder
from ..engine.encoder import OnnxEncoder
from ..engine.family import model_family
from ..engine.integer_probe import KernelCheck, choose_kernels
from ..engine.providers import on_gpu, resolve_device, session_options
from ..engine.session import read_json
from ..optimize.onnx_graph.files import load_graph
from ..optimize.source.model_directory import library_versions
from ..samples.origin import Origin
from ..samples.table import SampleScores
from .known_texts import KnownTexts
from .lm_eval_task import Journal, Questions, TaskOutcome
from .probes import (
    PROBED_PROMPTS,
    SHORTEST_PROMPT,
    TOLERANCE,
    BatchInvariance,
    PathEquivalence,
    ScoringPath,
    origin_of,
    probe_path_equivalence,
)
from .suite import Suite, SuiteTask
from .task_fit import fitted_suite

if TYPE_CHECKING:
    from .backend import OnnxLM
    from .encoder_backend import OnnxEncoderLM
    from .run import EvaluationSettings
    from .shards import Sharding

    Model: TypeAlias = OnnxLM | OnnxEncoderLM

# Finished tasks on disk: scores and facts under the key of everything they depend on.

_SAMPLES = "samples.parquet"
_FACTS = "facts.json"
_JOURNAL = "journal.jsonl"
_PARQUET_END = b"PAR1"


class Entry:
    """Place of one piece of work: finished, begun, or not yet there."""

    def __init__(self, kind: str, key: Mapping[str, Any]) -> None:
        self.key = dict(key)
        name = digest_json(self.key).removeprefix("sha256:")[:24]
        self.folder: Path = cache_root() / kind / name

    @property
    def journal(self) -> Path:
        """File for the answers of work that is under way."""
        return self.folder / _JOURNAL

    def facts(self) -> dict[str, Any] | None:
        """What was stored beside the scores; None when the work is not finished, or was cut off."""
        path = self.folder / _FACTS
        if not path.is_file() or _cut_off(self.folder / _SAMPLES):
            return None
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return facts

    def samples(self) -> SampleScores:
        """The finished scores."""
        return SampleScores.read_parquet(self.folder / _SAMPLES)

    def finish(self, facts: Mapping[str, Any], samples: SampleScores | None = None) -> None:
        """Store the result. The facts come last: an entry that has them has everything."""
        scratch = self.folder / f".{_FACTS}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if samples is not None:
                samples.write_parquet(self.folder / _SAMPLES)
            try:
                scratch.write_text(
                    json.dumps({**facts, "key": self.key}, indent=1, sort_keys=True),
                    encoding="utf-8",
                )
                os.replace(scratch, self.folder / _FACTS)
            finally:
                scratch.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove what is there, so that the work is done again from the start."""
        for name in (_FACTS, _SAMPLES, _JOURNAL):
            (self.folder / name).unlink(missing_ok=True)


def _cut_off(samples: Path) -> bool:
    """Whether there is a Parquet file that lacks its end."""
    if not samples.is_file():
        return False
    with samples.open("rb") as stream:
        stream.seek(max(0, samples.stat().st_size - len(_PARQUET_END)))
        return stream.read() != _PARQUET_END


# Raised when the engine computes other numbers than before: older results are not reused then.
_ENGINE = 3
BACKEND = f"mlflow-degrade-onnx/{_ENGINE}"
# Raised when a row says more than before of the same answers: 1, log-likelihoods. Probes keep.
_COLUMNS = 1


def model_digest(model_dir: str | Path) -> str:
    """Content digest of a model directory: its manifest's, or computed where it has none."""
    folder = Path(model_dir)
    if not folder.is_dir():
        raise ModelError(f"there is no model directory {folder}: export the model first.")
    stated = read_json(folder, MANIFEST_FILE, needed=False).get("digest")
    return str(stated) if stated else digest_model(folder)


class Arm:
    """One model on the way through a suite; it is opened when it is first needed."""

    def __init__(
        self,
        folder: Path,
        suite: Suite,
        settings: EvaluationSettings,
        label: str | None = None,
    ) -> None:
        self.folder, self._settings = folder, settings
        self._suite = fitted_suite(suite, folder)
        self._label = label or folder.name
        self._advance: Callable[[int], None] = lambda _count: None
        self._questions: Questions = {}

    @cached_property
    def _origin(self) -> Origin:
        return origin_of(self.folder, self._settings.device, self._settings.threads)

    @cached_property
    def _common(self) -> dict[str, Any]:
        versions = library_versions()
        return {
            "model": model_digest(self.folder),
            "backend": BACKEND,
            "provider": resolve_device(self._settings.device)[0],
            # What one processor computed is not taken for what another would.
            "processor": self._origin.processor.model_dump(mode="json"),
            "seed": self._suite.seed,
            **self._asked,
            **({"rerun": self._settings.rerun} if self._settings.rerun else {}),
            "versions": {
                "lm_eval": version("lm_eval"),
                "tokenizers": version("tokenizers"),
                "transformers": versions["transformers"],
            },
        }

    @cached_property
    def _template(self) -> str | None:
        choice = self._suite.prompting.apply_chat_template
        if not choice:
            return None
        if model_family(self.folder) != "decoder":
            raise InputError(
                f"{self.folder} is an encoder or classifier and has no chat template: evaluate it "
                "without apply_chat_template."
            )
        return template_of(self.folder, choice)

    @property
    def _facts(self) -> dict[str, Any]:
        """How the model is asked, as scores carry it."""
        digest = None if self._template is None else template_digest(self._template)
        return self._suite.prompting.facts(digest)

    @property
    def _asked(self) -> dict[str, Any]:
        """The same for the key, which keeps its form where plain prompts are asked."""
        template = self._template
        given = self._suite.prompting.stated()
        asked: dict[str, Any] = {"apply_chat_template": given.pop("apply_chat_template", False)}
        if template is not None:
            given |= {
                name: self._facts[name] for name in ("chat_template_sha", "fewshot_as_multiturn")
            }
            if says_the_date(template):
                given["date"] = date.today().isoformat()
        else:
            given.pop("fewshot_as_multiturn", None)
        return {**asked, **given}

    def key(self, path: ScoringPath) -> dict[str, Any]:
        """Key of the whole evaluation."""
        suite = self._suite
        return {
            **self._common,
            "columns": _COLUMNS,
            "suite": suite.digest,
            "tasks": [task.name for task in suite.tasks],
            "limit": suite.limit,
            "num_fewshot": suite.num_fewshot,
            "path": path,
        }

    @cached_property
    def _sharding(self) -> Sharding | None:
        """How batches are dealt out to others, if they are."""
        from .shards import Sharding

        settings = self._settings
        if settings.workers is None:
            return None
        progress, resume = settings.progress, settings.resume
        return Sharding(settings.workers, self._common, progress=progress, resume=resume)

    @cached_property
    def _model(self) -> Model:
        from .shards import ShardedDecoder, ShardedEncoder

        settings = self._settings
        opened: dict[str, Any] = {
            "device": settings.device,
            "batch_size": settings.batch_size,
        }
        if self._sharding is None:
            opened["threads"] = settings.threads

        def advance(count: int) -> None:
            self._advance(count)

        # Which path is taken is decided here, for both models of a comparison.
        if model_family(self.folder) == "decoder":
            from .backend import OnnxLM

            decoder: OnnxDecoder = (
                OnnxDecoder(self.folder, **opened)
                if self._sharding is None
                else ShardedDecoder(self.folder, self._sharding, **opened)
            )
            model = OnnxLM(decoder, path="batched", advance=advance)
            model.sampling_seed = settings.sampling_seed
            return model
        from .encoder_backend import OnnxEncoderLM

        encoder: OnnxEncoder = (
            OnnxEncoder(self.folder, **opened)
            if self._sharding is None
            else ShardedEncoder(self.folder, self._sharding, **opened)
        )
        return OnnxEncoderLM(encoder, path="batched", advance=advance)

    @cached_property
    def _texts(self) -> KnownTexts | None:
        """What other models wrote to these prompts; None where each text is to be written."""
        settings, tokenizer = self._settings, self.folder / "tokenizer.json"
        anew = settings.rerun or not settings.resume or self._sharding is not None
        if anew or not self._suite.generates or not tokenizer.is_file():
            return None
        # Only a hint where to look: a text is kept if this model would write it.
        key = {"suite": self._suite.digest, "tokenizer": digest_file(tokenizer), **self._asked}
        return KnownTexts(Entry("texts", key).folder / "texts.json")

    @cached_property
    def probe(self) -> BatchInvariance:
        """Whether this model's scores depend on the batch, measured on the suite's own prompts."""
        entry = self._entry("probe")
        known = entry.facts()
        if known is not None:
            return BatchInvariance(**known["probe"])
        with progress_bar(f"Probing {self._label}", self._settings.progress) as bar:
            bar(1, 0)
            probe = self._model.probe(self._probed, generation=self._suite.generates)
            bar(0, 1)
        entry.finish({"probe": probe.fields()})
        return probe

    @cached_property
    def kernels(self) -> tuple[KernelCheck, ...]:
        """Whether this processor gets the model's integer products right."""
        # One it gets wrong is refused when it is opened.
        if on_gpu(resolve_device(self._settings.device)):
            return ()
        return choose_kernels(
            load_graph(self.folder, weights=False), self.folder, session_options()
        )

    @cached_property
    def _probed(self) -> list[list[int]]:
        """Prompts of all tasks of the suite."""
        from .lm_eval_task import prompts_of

        suite = self._suite
        share = -(-PROBED_PROMPTS // len(suite.tasks))
        asked: dict[str, Any] = {"seed": suite.seed, "prompting": suite.prompting}
        found = (prompts_of(self._model, task, share, **asked) for task in suite.tasks)
        return [prompt for prompts in found for prompt in prompts][:PROBED_PROMPTS]

    def _entry(self, kind: str) -> Entry:
        """Where a probe of this model on this suite is kept."""
        key = {**self._common, "suite": self._suite.digest, "tolerance": TOLERANCE}
        return Entry(kind, key)

    def known_equivalence(self) -> PathEquivalence | None:
        """What `equivalence` found, if it was ever measured."""
        known = self._entry("equivalence").facts()
        return None if known is None else PathEquivalence(**known["equivalence"])

    @cached_property
    def equivalence(self) -> PathEquivalence | None:
        """Whether this model's scores change with shared prefixes; None where it cannot share."""
        from .backend import OnnxLM

        found = self.known_equivalence()
        if found is not None:
            return found
        prompts = [prompt for prompt in self._probed if len(prompt) >= SHORTEST_PROMPT]
        model = self._model
        if not prompts or not isinstance(model, OnnxLM) or not model.decoder.can_reuse_prefixes:
            return None
        with progress_bar(f"Probing {self._label}", self._settings.progress) as bar:
            bar(1, 0)
            found = probe_path_equivalence(model.decoder, prompts)
            bar(0, 1)
        self._entry("equivalence").finish({"equivalence": found.fields()})
        return found

    def evaluate(
        self, path: ScoringPath
    ) -> tuple[list[SampleScores], dict[str, dict[str, float]], dict[str, dict[str, Any]]]:
        """Run, or fetch, every task."""
        parts, results, tasks = [], {}, {}
        for task in self._suite.tasks:
            entry = self._results({"task": task.digest}, path)
            known = entry.facts()
            facts = known or self._run_one(task, entry, path)
            parts.append(entry.samples())
            results[task.name] = facts["results"]
            tasks[task.name] = {**facts["run"], "reused": known is not None}
        self.close()
        return parts, results, tasks

    def look(
        self, path: ScoringPath, documents: Mapping[str, Collection[str]]
    ) -> tuple[SampleScores, dict[str, dict[str, Any]]]:
        """Run, or fetch, some documents of the tasks together."""
        some = [task.only(documents.get(task.name, ())) for task in self._suite.tasks]
        asked = [task for task in some if task.indices]
        whole = {task.name: task.digest for task in self._suite.tasks}
        entry = self._results(
            {"look": {task.name: [whole[task.name], list(task.indices)] for task in asked}}, path
        )
        known = entry.facts()
        runs = (known or self._run_some(asked, entry, path))["runs"]
        reused = {"reused": known is not None}
        return entry.samples(), {name: {**facts, **reused} for name, facts in runs.items()}

    def close(self) -> None:
        """Free the model, if it was opened."""
        if "_model" in self.__dict__:
            self._model.close()

    def _results(self, asked: Mapping[str, Any], path: ScoringPath) -> Entry:
        """Where the answers to some questions are kept."""
        entry = Entry("evaluation", {**self._common, "columns": _COLUMNS, **asked, "path": path})
        if not self._settings.resume:
            entry.forget()
        return entry

    def _run_one(self, task: SuiteTask, entry: Entry, path: ScoringPath) -> dict[str, Any]:
        title, visible = f"{task.name} ({self._label})", self._settings.progress
        if self._sharding is not None:  # there is one bar at a time
            self._sharding.title, visible = f"{title}, shards", False
        with progress_bar(title, visible) as bar:
            self._advance = lambda count: bar(0, count)
            outcome = self._outcomes([task], entry, path, bar)[task.name]
        facts = {"results": outcome.results, "run": outcome.facts}
        entry.finish(facts, self._scores([task], {task.name: outcome}))
        self._model.discard()
        return facts

    def _run_some(
        self, tasks: Sequence[SuiteTask], entry: Entry, path: ScoringPath
    ) -> dict[str, Any]:
        outcomes = self._outcomes(tasks, entry, path, lambda _total, _done: None)
        facts = {"runs": {name: outcome.facts for name, outcome in outcomes.items()}}
        entry.finish(facts, self._scores(tasks, outcomes))
        self._model.discard()
        return facts

    def _outcomes(
        self,
        tasks: Sequence[SuiteTask],
        entry: Entry,
        path: ScoringPath,
        started: Callable[[int, int], None],
    ) -> dict[str, TaskOutcome]:
        from .backend import OnnxLM
        from .lm_eval_task import run_tasks

        model, texts = self._model, self._texts
        model.take(path)
        if isinstance(model, OnnxLM):
            model.known = texts
        with Journal(entry.journal) as journal:
            outcomes = run_tasks(
                self._model,
                tasks,
                journal,
                seed=self._suite.seed,
                prompting=self._suite.prompting,
                started=started,
                questions=self._questions,
            )
        if texts is not None:
            texts.save()
            if (found := texts.counted())["difference"] is not None:
                outcomes[tasks[0].name].facts["texts"] = found
        return outcomes

    def _scores(
        self, tasks: Sequence[SuiteTask], outcomes: Mapping[str, TaskOutcome]
    ) -> SampleScores:
        return SampleScores.from_records(
            [record for outcome in outcomes.values() for record in outcome.records],
            model=self.folder.name,
            model_digest=self._common["model"],
            task_versions={task.name: task.version for task in tasks},
            origin=self._origin,
            prompting=self._facts,
        )
