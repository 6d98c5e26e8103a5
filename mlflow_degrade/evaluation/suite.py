"""A suite: the tasks of one evaluation, with the documents that were drawn from each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.cache import digest_json
from ..core.errors import InputError, MissingExtraError, UnknownNameError
from ..core.progress import quiet_libraries
from ..core.prompting import Prompting
from ..core.question_names import absolute, names_questions
from ..engine.conversation import has_template
from ..engine.family import model_family
from .question_tasks import QuestionOptions, question_tasks
from .splits import Part
from .starter import include_path as starter_path
from .task_fit import note_literal_templates, refuse_unfit_metrics

# Find lm-eval tasks by name: the starter suite, task files of one's own, and lm-eval's own.

_NAMED = re.compile(r"^(task|group|tag):[ \t]*[\"']?([^\s\"'#\[]+)", re.MULTILINE)


Spec = str | dict[str, Any]
"""What lm-eval's manager takes: a name, the path of a task file, or a configuration."""


def load_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    questions: QuestionOptions | None = None,
) -> dict[str, Any]:
    """Build the lm-eval tasks behind some names."""
    from rich.console import Console

    manager, specs = find_tasks(names, include_path=include_path, questions=questions)
    tasks: dict[str, Any] = {}
    own = {spec["task"]: n for n, spec in zip(names, specs, strict=True) if isinstance(spec, dict)}
    # A hub that does not answer takes a while; shown on terminals only.
    with quiet_libraries(), Console(stderr=True).status(f"Loading {', '.join(names)}"):
        for name, spec in zip(names, specs, strict=True):
            built = load(manager, [spec], name)["tasks"]
            if isinstance(spec, str):
                _refuse_same_names(built, own)
            tasks.update(built)
    return tasks


def _refuse_same_names(tasks: Iterable[str], own: Mapping[str, str]) -> None:
    """Refuse a file whose task is called like another that is asked as well."""
    for task in tasks:
        if task in own:
            raise InputError(
                f"{own[task]} makes a task {task!r}, and another of that name is asked as well: "
                "rename the file."
            )


def find_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    questions: QuestionOptions | None = None,
) -> tuple[Any, list[Spec]]:
    """Find tasks without loading their data, but for files of questions, which are read."""
    from rich.console import Console

    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError("lm_eval", "cpu") from error

    if not names:
        raise InputError("no task was named: give at least one, e.g. 'starter'.")
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"include_path {include_path} is not a directory with lm-eval task files.")
    files_of_questions = [name for name in names if names_questions(name)]
    made = question_tasks(files_of_questions, questions)
    _refuse_same_names(names, {config["task"]: name for name, config in made.items()})
    own = [str(starter_path()), *([str(include_path)] if include_path is not None else [])]
    extra = None if metadata is None else dict(metadata)
    # Lm-eval's index takes a while.
    with quiet_libraries(), Console(stderr=True).status(f"Looking for {', '.join(names)}"):
        manager = TaskManager(include_path=own, include_defaults=False, metadata=extra)
        elsewhere = [n for n in names if n not in made and n not in manager.all_tasks]
        files = _task_files(elsewhere, manager.all_tasks) if elsewhere else {}
        if any(files[name] is None for name in elsewhere):
            manager = TaskManager(include_path=own, metadata=extra)
    return manager, [made.get(name) or str(files.get(name) or name) for name in names]


def _task_files(names: Iterable[str], local: Iterable[str]) -> dict[str, Path | None]:
    """The file of each name that is a plain task of lm-eval, None for groups and tags."""
    import lm_eval.tasks

    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for kind, name in _NAMED.findall(text):
            found.setdefault(name, []).append((kind, path))
    files: dict[str, Path | None] = {}
    for name in names:
        if name not in found:
            raise UnknownNameError(
                "task",
                name,
                [*local, *found],
                "Task files of your own are found with include_path; a file of questions "
                "is named with its suffix, e.g. mine.csv.",
            )
        definitions = found[name]
        plain = len(definitions) == 1 and definitions[0][0] == "task"
        files[name] = definitions[0][1] if plain else None
    return files


def load(manager: Any, specs: Sequence[Spec], what: str) -> dict[str, Any]:
    """Build tasks with a manager of lm-eval."""
    try:
        loaded: dict[str, Any] = manager.load(list(specs))
    except (StopIteration, IndexError) as error:
        raise InputError(
            f"task {what!r} has no samples: its data set is empty; check its test_split and "
            "data_files."
        ) from error
    except Exception as error:
        raise InputError(
            f"task {what!r} cannot be loaded ({type(error).__name__}: {error}). If its data set is "
            "on the Hugging Face hub, check the network and that you have access to it, or use a "
            "task with local data (include_path), such as 'starter'."
        ) from error
    return loaded


#: Samples per task where nobody says how many: enough for the default policy on six tasks.
DEFAULT_LIMIT = 220

# Where a task's data come from differs between machines; the documents themselves are hashed.
_ORIGIN = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata")


@dataclass(frozen=True)
class SuiteTask:
    """One lm-eval task and the documents it is evaluated on."""

    name: str
    task: Any  # Ready to build requests.
    available: int  # Documents the task has.
    indices: tuple[int, ...]  # Those that were drawn, ascending.
    among: tuple[int, ...] = ()  # All that were drawn, where these are some of them.

    @property
    def version(self) -> str:
        """Version of the task's definition."""
        return str(self.task.VERSION)

    @property
    def output_type(self) -> str:
        """``"multiple_choice"``, ``"generate_until"``, ``"loglikelihood"`` …"""
        return str(self.task.OUTPUT_TYPE)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the definition and of the drawn documents (and those for few-shot prompts)."""
        # Two suites with the same digest ask the same questions in the same words.
        config = {k: v for k, v in self.task.dump_config().items() if k not in _ORIGIN}
        documents = hashlib.sha256()
        for document in self.documents():
            documents.update(_canonical(document))
        if self.task.get_config("num_fewshot"):
            for document in self.task.fewshot_docs() or ():
                documents.update(_canonical(document))
        text = _canonical([self.name, self.version, config])
        return "sha256:" + hashlib.sha256(text + documents.digest()).hexdigest()

    def only(self, ids: Collection[str]) -> SuiteTask:
        """The same task with some of its documents, by their ids in a sample table."""
        wanted = set(ids)
        some = tuple(i for i in self.indices if str(i) in wanted)
        return replace(self, indices=some, among=self.indices)

    def documents(self) -> list[dict[str, Any]]:
        """The drawn documents, in order of their index."""
        docs = self.task.eval_docs
        if not hasattr(docs, "select"):
            return [docs[i] for i in self.indices]
        # Of a data set, all at once: row by row takes ten times as long.
        columns = docs[list(self.indices)]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class Suite:
    """The tasks of one evaluation."""

    names: tuple[str, ...]  # As the caller named them.
    tasks: tuple[SuiteTask, ...]
    limit: int | None  # Most documents per task.
    seed: int  # Of the drawing and of few-shot examples.
    num_fewshot: int | None  # Few-shot examples per prompt, where the caller said so.
    include_path: str | None = None  # Directory the task files were looked for in.
    # How questions become prompts. Its generation arguments are in the tasks.
    prompting: Prompting = field(default_factory=Prompting)
    # How files and data sets of questions were read and asked.
    questions: QuestionOptions = field(default_factory=QuestionOptions)
    # Which part of the drawn documents it has; all of them by default.
    part: Part | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """What makes this suite again by `load_suite`, JSON-serializable."""
        own = any(map(names_questions, self.names))
        return {
            "tasks": absolute(self.names),
            "include_path": self.include_path,
            "limit": self.limit,
            "seed": self.seed,
            "num_fewshot": self.num_fewshot,
            **self.prompting.stated(),
            **(self.questions.asked if own else {}),
            **({} if self.part is None else {"part": self.part.stated()}),
        }

    @property
    def sentences(self) -> list[str]:
        """What was made of each file of questions."""
        stated = (task.task.config.metadata or {} for task in self.tasks)
        return [data["questions"] for data in stated if "questions" in data]

    @property
    def documents(self) -> int:
        """Documents over all tasks."""
        return sum(len(task.indices) for task in self.tasks)

    @property
    def generates(self) -> bool:
        """Whether any task lets the model generate text."""
        return any(task.output_type == "generate_until" for task in self.tasks)

    @property
    def sampling_seeds(self) -> set[int]:
        """Seeds of the tasks whose texts are drawn at random; empty where all are the likeliest."""
        stated = [
            task.task.get_config("generation_kwargs") or {}
            for task in self.tasks
            if task.output_type == "generate_until"
        ]
        # Lm-eval samples where a temperature is given, unless told not to.
        return {
            int(options.get("seed", 0))
            for options in stated
            if options.get("do_sample", True) and float(options.get("temperature", 0.0)) > 0
        }

    @property
    def digest(self) -> str:
        """SHA-256 over the tasks' digests."""
        return digest_json({task.name: task.digest for task in self.tasks})

    @property
    def versions(self) -> Mapping[str, str]:
        """Version of each task's definition."""
        return {task.name: task.version for task in self.tasks}


def default_tasks(model: str | Path) -> tuple[str, ...]:
    """The packaged suite that fits a model, for those who name no tasks."""
    family = model_family(model)
    if family == "classifier":
        raise InputError(
            f"no packaged suite fits the classifier in {model}: name tasks whose choices are its "
            "labels."
        )
    return ("starter",) if family == "decoder" else ("starter-encoder",)


def prompting_notes(models: Mapping[str, Path], suite: Suite) -> list[str]:
    """What to know of how model directories are asked, by what they are called."""
    notes = []
    with_template = [label for label, folder in models.items() if has_template(folder)]
    if with_template and suite.prompting.apply_chat_template is None:
        notes.append(
            f"note: {' and '.join(with_template)} {'have' if len(with_template) > 1 else 'has'} a "
            "chat template; apply_chat_template=true uses it"
        )
    if suite.prompting.gen_kwargs and not suite.generates:
        notes.append("note: no task generates text, so gen_kwargs change nothing")
    return notes


def load_suite(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    num_fewshot: int | None = None,
    prompting: Prompting | None = None,
    questions: QuestionOptions | None = None,
    part: Part | None = None,
) -> Suite:
    """Load tasks and draw their documents; of these take a part."""
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, it must be at least 1: leave it out to take all.")
    asked = prompting or Prompting()
    built = load_tasks(names, include_path=include_path, questions=questions)
    tasks = []
    with quiet_libraries():
        for name, task in built.items():
            refuse_unfit_metrics(name, task)
            _configure(task, seed, num_fewshot)
            if asked.gen_kwargs and task.get_config("output_type") == "generate_until":
                task.set_config(key="generation_kwargs", value=asked.gen_kwargs, update=True)
            available = _count(name, task)
            drawn = SuiteTask(name, task, available, draw(name, available, limit, seed))
            if part is not None:
                drawn = replace(drawn, indices=part.of(drawn))
                if not drawn.indices:
                    raise InputError(
                        f"task {name!r}: none of its documents is for the {part.name}: draw more "
                        "with limit, or change selection_share."
                    )
            note_literal_templates(name, task, drawn.documents())
            tasks.append(drawn)
    where = None if include_path is None else str(Path(include_path).absolute())
    return Suite(
        tuple(names),
        tuple(tasks),
        limit,
        seed,
        num_fewshot,
        where,
        asked,
        questions or QuestionOptions(),
        part,
    )


def draw(task: str, available: int, limit: int | None, seed: int) -> tuple[int, ...]:
    """Indices of the documents to evaluate, ascending."""
    # Each index is ranked by a hash of seed, task and index, and the first `limit` are taken: the
    # same on every machine and in every version, and nested in the limit.
    if limit is None or limit >= available:
        return tuple(range(available))

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{task}:{index}".encode()).digest()

    return tuple(sorted(sorted(range(available), key=rank)[:limit]))


def _configure(task: Any, seed: int, num_fewshot: int | None) -> None:
    """Set the number of few-shot examples and their seed, by lm-eval's rules."""
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)


def _count(name: str, task: Any) -> int:
    try:
        available = len(task.eval_docs)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"task {name!r} has neither a test nor a validation split ({error}): there is nothing "
            "to evaluate; set test_split in its file."
        ) from error
    if not available:
        raise InputError(
            f"task {name!r} has no samples: its test split is empty; check its test_split, "
            "data_files and process_docs."
        )
    return available


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()
