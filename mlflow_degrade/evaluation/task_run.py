"""One task on one model, through lm-eval."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..prompting import Prompting
from .journal import Journal, ResumedModel
from .quiet import quiet_libraries
from .records import keep_metrics, sample_records
from .suite import SuiteTask

if TYPE_CHECKING:
    from .arm import Model


@dataclass(frozen=True)
class TaskOutcome:
    """What came out of one task.

    Attributes
    ----------
    records : list of dict
        Rows of the sample table.
    results : dict of str to float
        lm-eval's own aggregates, by metric (``metric,filter`` where there are several filters).
    facts : dict
        Seconds, requests, requests answered by an earlier run, and the plans that were run.
    """

    records: list[dict[str, Any]]
    results: dict[str, float]
    facts: dict[str, Any]


class _Indices(list[int]):
    """Document indices; lm-eval asks for membership once per document of the data set."""

    def __init__(self, indices: Iterable[int]) -> None:
        super().__init__(indices)
        self._set = frozenset(self)

    def __contains__(self, index: object) -> bool:
        return index in self._set


def run_task(
    model: Model,
    task: SuiteTask,
    journal: Journal,
    *,
    seed: int,
    prompting: Prompting,
    started: Callable[[int, int], None] | None = None,
) -> TaskOutcome:
    """Evaluate one task; what the journal answers is not asked again.

    Parameters
    ----------
    model : OnnxLM or OnnxEncoderLM
    task : SuiteTask
    journal : Journal
        Open.
    seed : int
        Of few-shot examples and of tasks that shuffle.
    prompting : Prompting
        How prompts are made; its generation arguments are the task's already.
    started : callable, optional
        Told the number of requests and how many of them are answered already.

    Returns
    -------
    TaskOutcome
    """
    from lm_eval.evaluator import evaluate

    begin = time.perf_counter()
    counts = {"requests": 0, "resumed": 0}

    def count(total: int, done: int) -> None:
        counts["requests"] += total
        counts["resumed"] += done
        if started is not None:
            started(total, done)

    model.plans.clear()
    everything = len(task.indices) == task.available
    with quiet_libraries(), _seeded(seed):
        task.task.set_fewshot_seed(seed=seed)
        model.chat_template(prompting.apply_chat_template or False)
        found = evaluate(
            lm=ResumedModel(model, journal, count),
            task_dict={"tasks": {task.name: task.task}, "groups": {}, "group_map": {}},
            samples=None if everything else {task.name: _Indices(task.indices)},
            # Intervals are this package's own business; lm-eval's bootstrap takes minutes.
            bootstrap_iters=0,
            system_instruction=prompting.system_instruction,
            apply_chat_template=bool(prompting.apply_chat_template),
            fewshot_as_multiturn=prompting.multiturn,
        )
    if model.metrics is not None:
        keep_metrics(found, model.metrics)
    samples = found["samples"][task.name]
    prompts = [str(sample["arguments"][-1][0]) for sample in samples]
    tokens = [len(ids) for ids in model.encode(prompts)]
    directions = found["higher_is_better"][task.name]
    return TaskOutcome(
        records=list(sample_records(task.name, task.output_type, samples, directions, tokens)),
        results=_results(found["results"][task.name]),
        facts={
            "seconds": time.perf_counter() - begin,
            "documents": len(task.indices),
            **counts,
            "plans": list(model.plans),
        },
    )


def prompts_of(
    model: Model, task: SuiteTask, count: int, *, seed: int, prompting: Prompting
) -> list[list[int]]:
    """Token ids of what the model is asked about the first `count` drawn documents."""
    template = bool(prompting.apply_chat_template)
    with quiet_libraries(), _seeded(seed):
        task.task.set_fewshot_seed(seed=seed)
        model.chat_template(prompting.apply_chat_template or False)
        task.task.build_all_requests(
            samples=_Indices(task.indices[:count]),
            system_instruction=prompting.system_instruction,
            apply_chat_template=template,
            fewshot_as_multiturn=prompting.multiturn,
            chat_template=model.apply_chat_template if template else None,
            tokenizer_name=model.tokenizer_name if template else "",
        )
        instances = list(task.task.instances)
    first = {instance.doc_id: instance.args for instance in reversed(instances)}
    texts = ["".join(a for a in args if isinstance(a, str)) for args in first.values()]
    return model.encode(texts)


def _results(stated: Mapping[str, Any]) -> dict[str, float]:
    """Aggregates without error bars, by metric and, where it says something, filter."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in stated.items()
        if "," in name and "_stderr" not in name and isinstance(value, (int, float))
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that some tasks draw from, and put them back."""
    import numpy as np

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - tasks that draw use the legacy generator
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
