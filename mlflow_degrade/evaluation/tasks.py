"""Find lm-eval tasks by name: the starter suite, task files of one's own, and lm-eval's own.

Names of files and data sets become tasks of their rows, see `question_tasks`.

Lm-eval's index of its own 14,000 task files takes a quarter of a minute to build. It is avoided
where it can be: a plain task needs only its own file, and a name that no file mentions is refused
after one quick look at all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError, MissingExtraError, UnknownNameError
from ..core.question_names import names_questions
from ..core.quiet import quiet_libraries
from .question_tasks import QuestionOptions, question_tasks
from .starter import include_path as starter_path

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
