"""The same questions to an endpoint once more, with more or fewer of them at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import InputError
from ..core.prompting import Prompting
from .endpoint_backend import NAME
from .harness import HarnessRun, HarnessSettings, run_lm_eval
from .question_tasks import QuestionOptions

CONCURRENCY = (1, 16)
"""Requests at a time, of reruns where nobody says."""


def settings_of(model_args: str, asked: Mapping[str, Any], prompting: Prompting) -> HarnessSettings:
    """How an endpoint is asked, by the options of the questions."""
    taken = [name for name in ("concurrency", "dependent", "rerun") if f"{name}=" in model_args]
    if taken and taken != ["concurrency"]:
        raise InputError(f"--model-args names {', '.join(taken)}: reruns set that themselves.")
    if not asked["tasks"]:
        raise InputError("--tasks names no task: an endpoint is asked tasks that you name.")
    stated = prompting.stated()
    arguments = stated.pop("gen_kwargs", None) or {}
    include_path = asked["include_path"]
    return HarnessSettings(
        model=NAME,
        model_args=model_args,
        tasks=asked["tasks"],
        include_path=None if include_path is None else str(include_path),
        limit=asked["limit"],
        num_fewshot=asked["num_fewshot"],
        seed=asked["seed"],
        gen_kwargs=",".join(f"{name}={value}" for name, value in arguments.items()) or None,
        questions=QuestionOptions.of(
            {"columns": asked["columns"], "max_gen_toks": asked["max_gen_toks"]}
        ),
        **stated,
    )


def run_endpoint(settings: HarnessSettings, concurrency: int | None) -> HarnessRun:
    """An evaluation, or a rerun with so many requests at a time."""
    given = [part for part in settings.model_args.split(",") if part]
    if concurrency is not None:
        given = [part for part in given if not part.startswith("concurrency=")]
        given += [f"concurrency={concurrency}", f"rerun=concurrency-{concurrency}"]
    # What a server computes at the same time is what reruns are about: it is not kept from it.
    run = run_lm_eval(replace(settings, model_args=",".join([*given, "dependent=kept"])))
    if run is None:
        raise InputError("lm-eval gave no result: only its first process does.")
    return run
