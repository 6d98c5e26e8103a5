"""Tasks on one model, through lm-eval."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from ..core.cache import digest_json, storing
from ..core.errors import InputError
from ..core.progress import quiet_libraries
from ..core.prompting import Prompting
from ..samples.likelihoods import record_columns
from ..samples.readers.lm_eval import NOT_PER_SAMPLE, choices_of, chosen, sample_score
from .encoder_files import ENCODER_TYPES
from .suite import SuiteTask

if TYPE_CHECKING:
    from ..bench.assistance import Request
    from ..engine.generation import Sampling
    from .backend import OnnxLM
    from .model_evaluation import Model

# Answers of a task that is not finished, kept so that a killed evaluation can go on.

_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until", *ENCODER_TYPES)


class Journal:
    """Answers by request, in a file that grows; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        self._stream: IO[str] | None = None

    def __enter__(self) -> Journal:
        end = 0
        if self.path.exists():
            content = self.path.read_bytes()
            # Whatever follows the last line break was being written when the process died.
            end = content.rfind(b"\n") + 1
            for line in content[:end].splitlines():
                key, answer = json.loads(line)
                self._answers[key] = answer
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a", encoding="utf-8", buffering=1)
            self._stream.truncate(end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with storing(self.path):  # what could not be written is tried again
                stream.close()

    def __len__(self) -> int:
        return len(self._answers)

    def add_partial(self, kind: str, request: Sequence[Any], answer: Any) -> None:
        """Keep an answer; the name is the one lm-eval's cache hook has."""
        if self._stream is None:
            raise RuntimeError("the journal is not open: use it in a with statement.")
        key = _key(kind, request)
        self._answers[key] = answer
        with storing(self.path):
            self._stream.write(json.dumps([key, answer]) + "\n")

    def answer(self, kind: str, request: Sequence[Any]) -> Any:
        """The answer of an earlier run, or None."""
        if kind == "generate_until" and request[1].get("do_sample", False):
            # Sampled texts of one prompt must differ between repeats.
            return None
        found = self._answers.get(_key(kind, request))
        return tuple(found) if isinstance(found, list) else found


class ResumedModel:
    """A model that is asked only what the journal does not answer."""

    def __init__(
        self,
        model: Any,
        journal: Journal,
        found: Callable[[Sequence[Any], Sequence[Any]], None],
        replayed: Callable[[Sequence[Any], float], None],
    ) -> None:
        self._model, self._journal, self._found, self._replayed = model, journal, found, replayed
        model.set_cache_hook(journal)

    def __getattr__(self, name: str) -> Any:
        if name in _KINDS:
            return lambda requests: self._ask(name, requests)
        return getattr(self._model, name)

    def _ask(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        answers = [self._journal.answer(kind, request.args) for request in requests]
        open_ones = [i for i, answer in enumerate(answers) if answer is None]
        self._found(requests, answers)
        if open_ones:
            rest = [requests[i] for i in open_ones]
            asked = getattr(self._model, kind)(rest)
            self._replayed(rest, self._model.replayed())
            for index, answer in zip(open_ones, asked, strict=True):
                answers[index] = answer
        return answers


def _key(kind: str, request: Sequence[Any]) -> str:
    from lm_eval.api.model import hash_args

    key: str = hash_args(kind, request)
    return key


# From lm-eval's samples to rows of the sample table.

# What people read of a prompt: its end, because a long one begins with few-shot examples.
_SHOWN = 2000
# A rolling log-likelihood is that of a whole text, and its score already.
_WITH_LIKELIHOODS = ("multiple_choice", "loglikelihood")


def sample_records(
    task: str,
    output_type: str,
    samples: Sequence[Mapping[str, Any]],
    directions: Mapping[str, bool],
    prompt_tokens: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Rows of one task: one per document, metric and filter."""
    # lm-eval's ``prompt_hash`` covers the first request's context. Here it covers everything the
    # model was asked about a document: all contexts, all choices, stop sequences.
    for sample, tokens in zip(samples, prompt_tokens, strict=True):
        common = {
            "task": task,
            "doc_id": str(sample["doc_id"]),
            "doc_hash": sample["doc_hash"],
            "prompt_hash": digest_json([output_type, *map(_arguments, sample["arguments"])]),
            "target_hash": sample["target_hash"],
            "filter": sample["filter"],
            "prompt": str(sample["arguments"][-1][0])[-_SHOWN:],
            "target": _target(sample),
            "feature.prompt_tokens": float(tokens),
        }
        category = sample["doc"].get("category") if isinstance(sample["doc"], dict) else None
        if category is not None:
            common["feature.category"] = str(category)
        if output_type in _WITH_LIKELIHOODS:
            common |= record_columns(sample, sample["arguments"], _choices(sample))
        for metric in sample["metrics"]:
            score = sample_score(metric, sample[metric])
            if score is not NOT_PER_SAMPLE:
                higher = directions.get(metric)
                yield {
                    **common,
                    "metric": metric,
                    "score": score,
                    "higher_is_better": higher,
                    "response": _response(output_type, sample, metric),
                }


def keep_metrics(found: dict[str, Any], kept: Collection[str]) -> None:
    """Remove metrics that say nothing of a model from lm-eval's results and samples, in place."""
    for task, samples in found["samples"].items():
        names = {name for sample in samples for name in sample["metrics"]}
        if not names & set(kept):
            raise InputError(
                f"task {task!r} has the metrics {sorted(names)}, none of which says something "
                f"about an encoder or classifier: add one of {sorted(kept)} to its metric_list."
            )
        for sample in samples:
            for name in set(sample["metrics"]) - set(kept):
                sample.pop(name, None)
            sample["metrics"] = [name for name in sample["metrics"] if name in kept]
    for part in ("results", "groups", "higher_is_better"):
        for stated in found.get(part, {}).values():
            for name in [n for n in stated if _metric(n, part) not in (None, *kept)]:
                del stated[name]


def _metric(name: str, part: str) -> str | None:
    """The metric a key of lm-eval's results is about; None where it is about none."""
    if part == "higher_is_better":
        return name
    head, comma, _ = name.partition(",")
    return head.removesuffix("_stderr") if comma else None


def _arguments(arguments: Sequence[Any]) -> list[Any]:
    return [a if isinstance(a, (str, dict, int, float)) else str(a) for a in arguments]


def _choices(sample: Mapping[str, Any]) -> list[str]:
    mutual = "acc_mutual_info" in sample["metrics"]
    return choices_of(sample["arguments"], mutual_information=mutual)


def _target(sample: Mapping[str, Any]) -> str:
    target = sample["target"]
    if isinstance(target, int) and not isinstance(target, bool):
        choices = _choices(sample)
        if 0 <= target < len(choices) > 1:
            return choices[target]
    return str(target).strip()


def _response(output_type: str, sample: Mapping[str, Any], metric: str) -> str | None:
    answers = sample["filtered_resps"]
    if output_type == "multiple_choice":
        return chosen(metric, [float(answer[0]) for answer in answers], _choices(sample))
    if output_type == "generate_until":
        return str(answers[0])
    if output_type in ENCODER_TYPES:
        from .encoder_tasks import KINDS

        return KINDS[output_type].response(sample)
    if output_type == "loglikelihood":
        # The model was not asked for a text; what it would have said is known only if it agrees.
        return str(sample["arguments"][0][1]).strip() if answers[0][1] else None
    return None


@dataclass(frozen=True)
class TaskOutcome:
    """What came out of one task."""

    records: list[dict[str, Any]]  # Rows of the sample table.
    # lm-eval's own aggregates, by metric (``metric,filter`` where there are several filters).
    results: dict[str, float]
    # Seconds, requests, requests answered by an earlier run, and the plans that were run.
    facts: dict[str, Any]


# What tasks ask about all that was drawn of them, by task.
Questions: TypeAlias = "dict[str, list[Any]]"


def run_tasks(
    model: Model,
    tasks: Sequence[SuiteTask],
    journal: Journal,
    *,
    seed: int,
    prompting: Prompting,
    started: Callable[[int, int], None],
    questions: Questions | None = None,
) -> dict[str, TaskOutcome]:
    """Evaluate tasks together; what the journal answers is not asked again."""
    # `questions` keeps what tasks ask between calls for some of their documents each.
    from lm_eval.evaluator import evaluate

    begin = time.perf_counter()
    requests: Counter[str] = Counter()
    resumed: Counter[str] = Counter()

    def count(asked: Sequence[Any], answers: Sequence[Any]) -> None:
        requests.update(request.task_name for request in asked)
        known = [r.task_name for r, a in zip(asked, answers, strict=True) if a is not None]
        resumed.update(known)
        started(len(asked), len(known))

    def count_replayed(asked: Sequence[Any], share: float) -> None:
        for name, number in Counter(request.task_name for request in asked).items():
            resumed[name] += round(share * number)

    model.plans.clear()
    kept: Questions = {} if questions is None else questions
    with ExitStack() as stack:
        stack.enter_context(quiet_libraries())
        stack.enter_context(_seeded(seed))
        for task in tasks:
            task.task.set_fewshot_seed(seed=seed)
            stack.enter_context(only_drawn(task, seed, kept))
        model.chat_template(prompting.apply_chat_template or False)
        found = evaluate(
            lm=ResumedModel(model, journal, count, count_replayed),
            task_dict={"tasks": {t.name: t.task for t in tasks}, "groups": {}, "group_map": {}},
            samples={t.name: list(t.indices) for t in tasks if len(t.indices) < t.available},
            # Intervals are this package's own business; lm-eval's bootstrap takes minutes.
            bootstrap_iters=0,
            system_instruction=prompting.system_instruction,
            apply_chat_template=bool(prompting.apply_chat_template),
            fewshot_as_multiturn=prompting.multiturn,
        )
    if model.metrics is not None:
        keep_metrics(found, model.metrics)
    each = (time.perf_counter() - begin) / sum(len(task.indices) for task in tasks)
    outcomes, plans = {}, list(model.plans)
    for task in tasks:
        samples = found["samples"][task.name]
        prompts = [str(sample["arguments"][-1][0]) for sample in samples]
        tokens = [len(ids) for ids in model.encode(prompts)]
        directions = found["higher_is_better"][task.name]
        outcomes[task.name] = TaskOutcome(
            records=list(sample_records(task.name, task.output_type, samples, directions, tokens)),
            results=_results(found["results"][task.name]),
            facts={
                "seconds": each * len(task.indices),
                "documents": len(task.indices),
                "requests": requests[task.name],
                "resumed": resumed[task.name],
                "plans": plans,
            },
        )
        # Tasks that are asked together are planned together; one of them has to say how.
        plans = []
    return outcomes


@contextmanager
def only_drawn(task: SuiteTask, seed: int | None, questions: Questions) -> Iterator[None]:
    """Let lm-eval read the drawn documents of a task only, and ask as in the whole of it."""
    # Without a seed those count that are set when the questions are made.
    # It would walk the data set to find them, for every look at the evidence. And few-shot
    # examples are drawn document after document: those of some documents would be others than the
    # baseline was shown.
    own, build = task.task, task.task.build_all_requests

    def doc_iterator(
        *, samples: Sequence[int] | None = None, **_: Any
    ) -> Iterator[tuple[int, Any]]:
        documents = own.eval_docs
        return enumerate(documents[i] for i in samples or task.indices)

    def build_all_requests(**how: Any) -> None:
        if task.name not in questions:
            with ExitStack() as seeded:
                if seed is not None:
                    seeded.enter_context(_seeded(seed))
                    own.set_fewshot_seed(seed=seed)
                build(**{**how, "samples": list(task.among)})
            questions[task.name] = own.instances
        wanted = set(task.indices)
        places = [position for position, i in enumerate(task.among) if i in wanted]
        numbers = {position: n for n, position in enumerate(places)}
        own._instances = [
            replace(
                asked,
                metadata=(asked.task_name, numbers[asked.doc_id], asked.repeats),
                resps=[],
                filtered_resps={},
            )
            for asked in questions[task.name]
            if asked.doc_id in numbers
        ]

    own.doc_iterator = doc_iterator
    if task.among:
        own.build_all_requests = build_all_requests
    try:
        yield
    finally:
        for name in ("doc_iterator", "build_all_requests"):
            own.__dict__.pop(name, None)


def prompts_of(
    model: Model, task: SuiteTask, count: int, *, seed: int, prompting: Prompting
) -> list[list[int]]:
    """Token ids of what the model is asked about the first `count` drawn documents."""
    first = _asked(model, task, count, seed=seed, prompting=prompting)
    return model.encode(["".join(a for a in args if isinstance(a, str)) for args in first])


def texts_to_continue(
    model: OnnxLM, task: SuiteTask, sampling: Sampling, *, seed: int, prompting: Prompting
) -> list[Request]:
    """What a task's drawn documents let a model write; of questions with choices the question."""
    from ..bench.assistance import Request

    found = []
    for text, *rest in _asked(model, task, len(task.indices), seed=seed, prompting=prompting):
        how = sampling
        if task.output_type == "generate_until":
            own = model.sampling(rest[0])
            most = min(own.max_new_tokens, sampling.max_new_tokens)
            how = replace(sampling, max_new_tokens=most, stop=own.stop)
        found.append(Request(tuple(model.encode([text])[0]), how))
    return found


def _asked(
    model: Model, task: SuiteTask, count: int, *, seed: int, prompting: Prompting
) -> list[tuple[Any, ...]]:
    """The arguments of the first request about each of the first `count` drawn documents."""
    template = bool(prompting.apply_chat_template)
    with quiet_libraries(), _seeded(seed), only_drawn(task, seed, {}):
        task.task.set_fewshot_seed(seed=seed)
        model.chat_template(prompting.apply_chat_template or False)
        task.task.build_all_requests(
            samples=list(task.indices[:count]),
            system_instruction=prompting.system_instruction,
            apply_chat_template=template,
            fewshot_as_multiturn=prompting.multiturn,
            chat_template=model.apply_chat_template if template else None,
            tokenizer_name=model.tokenizer_name if template else "",
        )
        instances = list(task.task.instances)
    return list({instance.doc_id: instance.args for instance in reversed(instances)}.values())


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
