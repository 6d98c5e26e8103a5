"""How far a job has come: counted steps, and one progress bar that no library writes over."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial

from .cache import cache_root

# How far a job has come: its steps, counted and with an estimate, and the one progress bar.

VERBOSE = "MLFLOW_DEGRADE_VERBOSE"
"""Variable that asks for the notes of the engine; ``mlflow-degrade --verbose`` sets it."""

# What is worth an estimate; and steps that found their work done before are no measure of it.
_LONG_SECONDS = 20.0
_TIMES = "step-seconds.json"
_steps: ContextVar[list[int] | None] = ContextVar("steps", default=None)


def verbose() -> bool:
    """Whether what the engine found about itself is to be said as well."""
    return os.environ.get(VERBOSE, "").lower() not in ("", "0", "false", "no")


@contextmanager
def counted_steps(total: int) -> Iterator[None]:
    """Number the steps that are announced inside: 1 of 7, 2 of 7, …"""
    token = _steps.set([0, total])
    try:
        yield
    finally:
        _steps.reset(token)


def step_heading(title: str) -> str:
    """What announces a step: its number where steps are counted, and how long it took before."""
    counted, known = _steps.get(), _known_times().get(title)
    number = ""
    if counted is not None:
        counted[0] += 1
        # A job with a step more than it said would otherwise count 8 of 7.
        number = f"{counted[0]} of {max(counted)}  "
    return f"{number}{title}" + ("" if known is None else f" (took {duration(known)} before)")


def remember_step(title: str, seconds: float) -> None:
    """Keep how long a step took on this machine, for the next announcement of it."""
    if seconds < _LONG_SECONDS:
        return
    path = cache_root() / _TIMES
    # An estimate is worth no error: where the cache cannot be written there is none.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{os.getpid()}.{_TIMES}")
        scratch.write_text(json.dumps(_known_times() | {title: round(seconds)}), encoding="utf-8")
        os.replace(scratch, path)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Examples
    --------
    >>> duration(42), duration(325), duration(7300)
    ('42 s', '5 min', '2 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _known_times() -> dict[str, float]:
    try:
        known = json.loads((cache_root() / _TIMES).read_text(encoding="utf-8"))
        return {str(title): float(seconds) for title, seconds in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


@contextmanager
def progress_bar(
    title: str, visible: bool = True, *, in_bytes: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; the function adds to its total and to what is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as progress:
        bar = progress.add_task(title, total=None)
        total = 0

        def change(more: int, done: int) -> None:
            nonlocal total
            total += more
            progress.update(bar, total=total or None, advance=done)

        yield change


# One line with a spinner while a library works, instead of its chatter.

_log = logging.getLogger(__name__)

# Loggers of libraries whose messages concern how they work, not what the user asked for. "root" is
# what logging.warning() itself writes to, which onnxruntime's quantizer uses.
_CHATTY = ("transformers", "optimum", "onnxruntime", "onnx", "torch", "fusion", "root")


class _Capture(logging.Handler):
    """Keep the warnings of chatty libraries; hand everything else to the handlers it replaces."""

    def __init__(self, replaced: list[logging.Handler]) -> None:
        super().__init__()
        self.replaced = replaced
        self.caught: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] in _CHATTY:
            if record.levelno >= logging.WARNING:
                self.caught.append(f"{record.name}: {record.getMessage()}")
            return
        for handler in self.replaced:
            if record.levelno >= handler.level:
                handler.handle(record)


@contextmanager
def quiet_work(title: str, progress: bool = True) -> Iterator[None]:
    """Show `title` with a spinner and the time, and send the libraries' messages to the log."""
    # Warnings are collected through Python's global filters, so only one such block should be
    # active at a time.
    captures: list[_Capture] = []
    caught: list[warnings.WarningMessage] | None = None
    try:
        with ExitStack() as stack:
            stack.enter_context(_spinner(title, progress))
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            # The root's name is "root", but only getLogger() without a name returns it.
            names = (None, *(name for name in _CHATTY if name != "root"))
            captures += [stack.enter_context(_captured(logging.getLogger(n))) for n in names]
            yield
    finally:
        messages = [f"{w.category.__name__}: {w.message}" for w in caught or []]
        for text in [*messages, *(line for capture in captures for line in capture.caught)]:
            _log.debug("%s: %s", title, text)


@contextmanager
def _captured(logger: logging.Logger) -> Iterator[_Capture]:
    """Put a `_Capture` in the place of a logger's handlers, and them back afterwards."""
    handlers, level = list(logger.handlers), logger.level
    capture = _Capture(handlers)
    # A logger without handlers of its own reaches the root's, which is captured as well.
    if handlers or logger.parent is None:
        logger.handlers[:] = [capture]
    try:
        yield capture
    finally:
        # A library imported meanwhile may have added the handler it needs from now on.
        added = [h for h in logger.handlers if h is not capture and h not in handlers]
        logger.handlers[:] = handlers + (added if logger.parent is not None else [])
        if logger.parent is None:
            logger.setLevel(level)


@contextmanager
def _spinner(title: str, visible: bool) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not visible
    ) as bar:
        task = bar.add_task(title, total=None)
        yield
        bar.update(task, total=1, completed=1)


# Their messages below this level tell how the libraries work, not what the user asked for.
_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "transformers", "filelock", "fsspec")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence log messages below ERROR and the progress bars of lm-eval and datasets."""
    # Everything is put back afterwards, so that a program which uses lm-eval itself is not
    # affected.
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    # lm-eval has no switch for these bars; they are looked up in its modules at each use.
    modules = (lm_eval.api.model, lm_eval.api.task)
    shown = [module.tqdm for module in modules]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        for module in modules:
            module.tqdm = partial(module.tqdm, disable=True)
        yield
    finally:
        for module, bar in zip(modules, shown, strict=True):
            module.tqdm = bar
        if not bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
