"""Keep lm-eval and datasets from writing over the one progress bar that matters."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

# Their messages below this level tell how the libraries work, not what the user asked for.
_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "transformers", "filelock", "fsspec")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence log messages below ERROR and the progress bars of lm-eval and datasets.

    Everything is put back afterwards, so that a program which uses lm-eval itself is not affected.
    """
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
