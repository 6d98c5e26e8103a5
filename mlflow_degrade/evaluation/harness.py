"""lm-eval with any of its models, in this process, with its samples kept in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..core.cache import cache_root, digest_json
from ..core.errors import (
    DegradeError,
    EngineError,
    InputError,
    MissingExtraError,
    ModelError,
    StorageError,
    UnknownNameError,
)
from ..core.progress import quiet_libraries
from ..core.prompting import Prompting, parse_gen_kwargs, require_seed
from ..engine.conversation import choose_template
from ..samples.readers.lm_eval import OWN_FACTS, LmEvalOutput, output_of
from ..samples.table import SampleScores
from .lm_eval_task import Questions, keep_metrics, only_drawn
from .question_tasks import QuestionOptions
from .suite import Spec, SuiteTask, find_tasks, load
from .task_fit import fit_tasks, note_literal_templates

if TYPE_CHECKING:
    from .shards import Workers

_ONNX = "onnx"
_ENDPOINT = "endpoint"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HarnessSettings:
    """How lm-eval is called; what is not given is left to lm-eval."""

    # A model of lm-eval, such as ``"hf"`` or ``"vllm"``; ``"onnx"`` is the engine of this package,
    # for decoders, and for encoders and classifiers on multiple-choice tasks.
    model: str
    # ``"key=value,…"``, e.g. ``"pretrained=org/name,dtype=bfloat16"``. For ``"onnx"`` a model
    # directory, or what `mlflow_degrade.optimize.source.resolve.resolve_model` takes, which is
    # exported.
    model_args: str
    # lm-eval tasks, groups or tags; ``starter`` is the packaged suite. Files and data sets of
    # questions are tasks as well.
    tasks: tuple[str, ...]
    include_path: str | None = None  # Directory with task files of one's own.
    limit: float | None = None  # Most documents per task, the first ones; below 1 a share of them.
    num_fewshot: int | None = None  # Few-shot examples per prompt.
    batch_size: str | None = None  # A number, or ``"auto"``.
    device: str | None = None  # E.g. ``"cuda:0"`` or ``"cpu"``.
    apply_chat_template: bool | str | None = None
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    # See `mlflow_degrade.core.prompting.Prompting`. Other models than ``"onnx"`` may take
    # generation arguments of their own, and get them as they are given.
    gen_kwargs: str | None = None
    seed: int | None = None  # Of Python, numpy, torch and the few-shot examples.
    unsafe_code: bool = False  # Whether tasks may run code that the model wrote.
    # How files and data sets of questions are read and asked.
    questions: QuestionOptions = field(default_factory=QuestionOptions)

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit > 0:
            raise InputError(f"limit is {self.limit:g}: leave it out to take all samples.")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise InputError(f"num_fewshot is {self.num_fewshot}, it cannot be negative.")
        _ = self.prompting, self.generation

    @property
    def prompting(self) -> Prompting:
        """How the model is asked, generation arguments of this package's engine among it."""
        own = self.model == _ONNX
        return Prompting.read({**vars(self), "gen_kwargs": self.gen_kwargs if own else None})

    @property
    def generation(self) -> dict[str, Any] | None:
        """Generation arguments; those for another model of lm-eval as they were given."""
        if self.model == _ONNX or not self.gen_kwargs:
            return self.prompting.gen_kwargs
        try:
            given = parse_gen_kwargs(self.gen_kwargs)
            require_seed(given, self.seed)
        except ValueError as error:
            raise InputError(f"parameter gen_kwargs = {self.gen_kwargs!r}: {error}.") from error
        return given


@dataclass(frozen=True)
class HarnessRun:
    """What one call of lm-eval gave."""

    # Scores and results. Where the model is a local directory, the scores carry the digest of its
    # content.
    output: LmEvalOutput
    _samples: Mapping[str, list[dict[str, Any]]] = field(repr=False)
    _tracker: Any = field(repr=False)

    def save(self, folder: str | Path) -> Path:
        """Write the files that lm-eval itself would write, with its own code."""
        self._tracker.output_path = str(folder)
        # It changes what it is given, and only warns when it cannot write.
        samples = {task: [dict(r) for r in records] for task, records in self._samples.items()}
        self._tracker.save_results_aggregated(results=dict(self.output.newest), samples=samples)
        for task, records in samples.items():
            self._tracker.save_results_samples(task_name=task, samples=records)
        written = {path.name for path in Path(folder).rglob(f"*{self._date()}*")}
        if len(written) <= len(samples):
            raise StorageError(f"lm-eval could not write its output to {folder}: make room there.")
        return Path(folder)

    def _date(self) -> str:
        return str(getattr(self._tracker, "date_id", None))


class InOrder(Protocol):
    """Which documents to ask next, and whether that was enough."""

    @property
    def baseline(self) -> SampleScores:
        """Scores of the model that was asked all of them."""

    def looks(self) -> Iterable[Mapping[str, Collection[str]]]:
        """Documents by task, look by look."""

    def enough(self, candidate: SampleScores) -> bool:
        """Whether the answers so far decide."""


def run_lm_eval(
    settings: HarnessSettings,
    begin: Callable[[str | None], InOrder] | None = None,
    workers: Workers | None = None,
) -> HarnessRun | None:
    """Evaluate a model with lm-eval."""
    # `begin` is given the digest of the model's files, where they are local, and says in what
    # order to ask; without it everything is asked. `workers` run the batches of `"onnx"`.
    name, arguments = require_model(settings.model), _arguments(settings.model_args)
    manager, specs = find_tasks(
        settings.tasks,
        include_path=settings.include_path,
        metadata=arguments,
        questions=settings.questions,
    )
    # Tasks that cannot be loaded are found before a model is.
    with quiet_libraries():
        loaded = load(manager, specs, ", ".join(settings.tasks))
    for task_name, task in loaded["tasks"].items():
        with suppress(TypeError, ValueError):  # no split to evaluate: lm-eval says so
            note_literal_templates(task_name, task, list(islice(task.eval_docs, 200)))
    if settings.model == _ONNX:
        name = _engine(arguments, loaded["tasks"])
    else:
        fit_tasks(loaded["tasks"], None)
        _look_at(settings.model, arguments)
    # Nor are the data loaded a second time.
    manager.load = lambda _specs: loaded
    digest = _local_digest(arguments)
    if settings.model == _ENDPOINT:
        digest = _served_digest(arguments)
    order = None if begin is None else begin(digest)
    if order is not None:
        _require_tasks(order.baseline, loaded["tasks"])
    threads = None if workers is None else workers.threads
    place = _where(settings, arguments, threads)
    model = _load_model(name, _dealt_out(workers, arguments, settings, digest, place), settings)
    date = datetime.now().isoformat().replace(":", "-")

    def made(found: dict[str, Any], tracker: Any) -> HarnessRun:
        if (kept := getattr(model, "metrics", None)) is not None:
            keep_metrics(found, kept)
        samples = found["samples"]
        results = _results({k: v for k, v in found.items() if k != "samples"}, tracker)
        facts = _served(model, tracker, results) if settings.model == _ENDPOINT else {}
        if digest is not None:
            facts |= {"model_digest": digest, **place}
        if facts:
            results[OWN_FACTS] = facts
        return HarnessRun(output_of(results, samples, date), samples, tracker)

    if order is None:
        found, tracker = _evaluate(model, name, arguments, manager, specs, settings)
        whole = None if found is None else made(found, tracker)
        _discard(model)
        return whole
    kept_answers = _answers_of(settings, arguments, digest, order.baseline, threads)

    def ask(documents: Mapping[str, list[int]]) -> tuple[dict[str, Any] | None, Any]:
        some = {task: loaded["tasks"][task] for task in documents}
        manager.load = lambda _specs: {"tasks": some, "groups": {}, "group_map": {}}
        return _evaluate(
            model, name, arguments, manager, specs, settings,
            # A name may stand for other weights by the time that this goes on; and an endpoint
            # keeps its answers itself.
            samples=documents,
            use_cache=None if digest is None or settings.model == _ENDPOINT else str(kept_answers),
        )  # fmt: skip

    run = _in_order(order, loaded["tasks"], ask, made)
    _discard(model)
    for file in kept_answers.parent.glob(f"{kept_answers.name}*"):
        file.unlink()
    return run


def _discard(model: Any) -> None:
    """Let a model forget what it kept in case that the evaluation is broken off."""
    if callable(discard := getattr(model, "discard", None)):
        discard()


def _require_tasks(baseline: SampleScores, tasks: Mapping[str, Any]) -> None:
    missing, more = set(baseline.tasks) - set(tasks), set(tasks) - set(baseline.tasks)
    if missing or more:
        raise InputError(
            f"the baseline was asked {', '.join(baseline.tasks)}, and --tasks are "
            f"{', '.join(sorted(tasks))}: name the same tasks, or evaluate without --against."
        )
    strange = [i for i in baseline.table["doc_id"].unique().to_pylist() if not i.isdecimal()]
    if strange:
        raise InputError(
            f"the baseline's samples are called {strange[0]!r} and the like, not by their number "
            "in lm-eval's task: evaluate it with lm-eval or mlflow-degrade evaluate."
        )


def _answers_of(
    settings: HarnessSettings,
    arguments: Mapping[str, Any],
    digest: str | None,
    baseline: SampleScores,
    threads: int | None = None,
) -> Path:
    """Where lm-eval keeps the answers of an evaluation look by look, in case it is broken off."""
    from ..bench.machine import current_processor

    # What another version or processor answered would be the answers of another model.
    versions = [_version(name) for name in ("lm_eval", "transformers", "torch", settings.model)]
    place = current_processor().model_dump(mode="json")
    given = {name: str(value) for name, value in arguments.items()}
    key: list[Any] = [repr(settings), given, digest, baseline.digest(), versions, place]
    key += [] if threads is None else [threads]
    folder = cache_root() / "lm-eval"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / digest_json(key).removeprefix("sha256:")[:24]


def _version(distribution: str) -> str:
    """Of what answers, where it is installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _in_order(
    order: InOrder,
    tasks: Mapping[str, Any],
    ask: Callable[[Mapping[str, list[int]]], tuple[dict[str, Any] | None, Any]],
    made: Callable[[dict[str, Any], Any], HarnessRun],
) -> HarnessRun | None:
    """Ask look by look, until that is enough."""
    table = order.baseline.table.select(["task", "doc_id"]).to_pandas().drop_duplicates()
    drawn = {task: tuple(sorted(map(int, ids))) for task, ids in table.groupby("task")["doc_id"]}
    questions: Questions = {}
    whole: dict[str, Any] = {}
    first = None
    for look in order.looks():
        with ExitStack() as stack:
            documents: dict[str, list[int]] = {}
            for task, ids in look.items():
                every = drawn[task]
                some = SuiteTask(task, tasks[task], len(tasks[task].eval_docs), every).only(ids)
                documents[task] = list(some.indices)
                stack.enter_context(only_drawn(some, None, questions))
            found, tracker = ask(documents)
        if found is None:
            return None
        first = first or tracker.general_config_tracker.start_time
        tracker.general_config_tracker.start_time = first
        tracker.general_config_tracker.log_end_time()
        _add(whole, found)
        run = made({**whole, "samples": dict(whole["samples"])}, tracker)
        if order.enough(run.output.samples):
            break
    return run


def _add(whole: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Add what lm-eval says of some documents to what it said of those before."""
    for name, value in found.items():
        if name == "samples":
            before = whole.setdefault("samples", {})
            for task, samples in value.items():
                before[task] = [*before.get(task, []), *samples]
        elif name == "n-samples":
            before = whole.setdefault(name, {})
            for task, counts in value.items():
                done = before.get(task, {"effective": 0})["effective"]
                before[task] = {**counts, "effective": done + counts["effective"]}
        elif name == "results":
            # Aggregates of some documents would be taken for those of the whole.
            whole.setdefault(name, {}).update({t: {"alias": t} for t in found["samples"]})
        elif isinstance(value, dict) and name != "config":
            whole.setdefault(name, {}).update(value)
        else:
            whole[name] = value


def _arguments(text: str) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    for part in text.split(","):
        if part.strip() and "=" not in part:
            raise InputError(f"model_args: {part!r} is not of the form key=value.")
    return dict(simple_parse_args_string(text))


def _local_digest(arguments: Mapping[str, Any]) -> str | None:
    """Digest of the local directory that is evaluated, if it is one."""
    from .model_evaluation import model_digest

    folder = _folder(arguments)
    # Weights that are put on top make another model of the same directory.
    return None if folder is None or {"peft", "delta"} & set(arguments) else model_digest(folder)


def _served_digest(arguments: Mapping[str, Any]) -> str | None:
    """Digest of the files that an endpoint serves, as far as the user names them."""
    from .endpoint_backend import files_digest

    return files_digest(str(arguments["files"])) if arguments.get("files") else None


def _served(model: Any, tracker: Any, results: dict[str, Any]) -> dict[str, Any]:
    """Who answered, how it was asked and what probes showed of it."""
    name = model.endpoint.identity.model
    results["model_name"] = tracker.general_config_tracker.model_name = name
    return {"endpoint": model.facts(), "endpoint_findings": model.findings()}


def _folder(arguments: Mapping[str, Any]) -> Path | None:
    """The local directory that is meant, if it is one."""
    folder = Path(str(arguments.get("pretrained", ""))).expanduser()
    return folder if "pretrained" in arguments and folder.is_dir() else None


def _dealt_out(
    workers: Workers | None,
    arguments: dict[str, Any],
    settings: HarnessSettings,
    digest: str | None,
    place: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments, with a model whose batches workers run in place of its directory."""
    if workers is None:
        return arguments
    from ..engine.family import model_family
    from .model_evaluation import BACKEND
    from .shards import ShardedDecoder, ShardedEncoder, Sharding

    folder = Path(str(arguments["pretrained"]))
    sharding = Sharding(workers, {"model": digest, "backend": BACKEND, **place})
    kind = ShardedDecoder if model_family(folder) == "decoder" else ShardedEncoder
    size = settings.batch_size or arguments.get("batch_size", "auto")
    device = settings.device or str(arguments.get("device", "auto"))
    return {**arguments, "pretrained": kind(folder, sharding, device=device, batch_size=size)}


def _where(
    settings: HarnessSettings, arguments: Mapping[str, Any], threads: int | None = None
) -> dict[str, Any]:
    """Where this package's engine computed; of other libraries' kernels nothing is known here."""
    if settings.model != _ONNX:
        return {}
    from .probes import origin_of

    folder = Path(str(arguments["pretrained"])).expanduser()
    device = settings.device or str(arguments.get("device", "auto"))
    return {"origin": origin_of(folder, device, threads).model_dump(mode="json")}


def require_model(given: str) -> str:
    """Name of a kind of model in lm-eval's registry."""
    try:
        import lm_eval.models  # noqa: F401 - registers its models
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise MissingExtraError("lm_eval", "cpu") from error
    from . import backend, endpoint_backend  # registers them

    if given == _ONNX:
        return backend.NAME
    known = sorted({*model_registry.keys(), endpoint_backend.NAME})
    if given not in known:
        hint = (
            "It is the kind of model; which one goes into --model-args: --model onnx --model-args "
            "pretrained=DIR, of a model directory (mlflow-degrade export makes one)."
        )
        raise UnknownNameError("lm-eval model", given, [_ONNX, *known], hint)
    return given


def _engine(arguments: dict[str, Any], tasks: dict[str, Any]) -> str:
    """The backend for a model of this package's engine, whose directory is put into `arguments`."""
    # What the model does not answer is refused before it is exported.
    from ..optimize.export import export_onnx
    from ..optimize.fusion.optimize_graph import optimize_graph
    from ..optimize.source.resolve import resolve_model
    from . import backend, encoder_backend

    source = resolve_model(str(arguments.get("pretrained", "")))
    encodes = fit_tasks(tasks, source.path)
    ready = source.path if source.layout == "onnx" else optimize_graph(export_onnx(source))
    arguments["pretrained"] = str(ready)
    return encoder_backend.NAME if encodes else backend.NAME


def _look_at(model: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a local directory whose weights are damaged, or filled up at random."""
    # Formats are the other library's business; where weights lie elsewhere too, so are they.
    if (folder := _folder(arguments)) is None:
        return
    from ..engine.family import architecture
    from ..optimize.onnx_graph.packed_weights import is_quantized
    from ..optimize.source.directory_look import ADAPTER, require_readable
    from ..optimize.source.weight_files import check_whole

    require_readable(folder, str(folder))
    elsewhere = {"peft", "delta", "gguf_file"} & set(arguments) or (folder / ADAPTER).exists()
    if model != "hf" or elsewhere or is_quantized(folder):
        return
    if architecture(folder).endswith(("ForCausalLM", "LMHeadModel")):
        # What transformers cannot load at all says so when lm-eval loads it.
        with suppress(AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError):
            check_whole(folder)


def _device_of_torch() -> str | None:
    """The processor where PyTorch has no GPU: lm-eval asks for one by default, and fails then."""
    import torch

    return None if torch.accelerator.is_available() else "cpu"


def _load_model(name: str, arguments: dict[str, Any], settings: HarnessSettings) -> Any:
    from lm_eval.api.registry import get_model

    device = settings.device
    if device is None and name.startswith("hf") and "device" not in arguments:
        device = _device_of_torch()
    extra = {"batch_size": settings.batch_size, "device": device}
    try:
        return get_model(name).create_from_arg_obj(arguments, extra)
    except DegradeError:
        raise
    except Exception as error:
        raise ModelError(
            f"lm-eval cannot load its model {settings.model!r} with {settings.model_args!r} "
            f"({type(error).__name__}: {error})."
        ) from error


def _evaluate(
    model: Any,
    name: str,
    arguments: dict[str, Any],
    manager: Any,
    specs: Sequence[Spec],
    settings: HarnessSettings,
    **some: Any,
) -> tuple[dict[str, Any] | None, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    asked, tracker = settings.prompting, EvaluationTracker()
    template = _template(model, asked)
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        found = simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=list(specs),
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            batch_size=settings.batch_size,
            device=settings.device,
            limit=settings.limit,
            # Intervals are this package's own business; lm-eval's bootstrap takes minutes.
            bootstrap_iters=0,
            log_samples=True,
            evaluation_tracker=tracker,
            system_instruction=asked.system_instruction,
            apply_chat_template=template,
            fewshot_as_multiturn=asked.multiturn,
            # It changes what it is given.
            gen_kwargs=dict(settings.generation or {}),
            confirm_run_unsafe_code=settings.unsafe_code,
            **some,
            **({} if settings.seed is None else dict.fromkeys(seeds, settings.seed)),
        )
    except DegradeError:
        raise
    except Exception as error:
        raise EngineError(f"lm-eval stopped ({type(error).__name__}: {error}).") from error
    tracker.general_config_tracker.log_end_time()
    tracker.general_config_tracker.model_source = name
    if found is not None:
        # It was given the model itself, and would say of which class it is.
        found["config"]["model"] = name
    return found, tracker


def _template(model: Any, asked: Prompting) -> bool | str:
    """The template that lm-eval is told to use; a note where the model has one nobody named."""
    choice = asked.apply_chat_template or False
    tokenizer = getattr(model, "tokenizer", None)
    known = getattr(tokenizer, "chat_template", None)
    if tokenizer is not None and choice:
        # Lm-eval would stop in the middle, or take another one than is named.
        choose_template(tokenizer, choice, str(getattr(tokenizer, "name_or_path", "the model")))
        if isinstance(choice, str) and isinstance(known, dict) and not hasattr(model, "decoder"):
            # Its Hugging Face backend logs the named one and renders the default.
            tokenizer.chat_template = known[choice]
            return True
    if known and asked.apply_chat_template is None:
        _log.warning("note: the model has a chat template; --apply-chat-template uses it")
    return choice


def _results(found: Mapping[str, Any], tracker: Any) -> dict[str, Any]:
    """What lm-eval would write as results file, as it reads from there."""
    from lm_eval.utils import handle_non_serializable

    whole = {**found, **asdict(tracker.general_config_tracker)}
    text = json.dumps(whole, default=handle_non_serializable, ensure_ascii=False)
    return dict(json.loads(text))
