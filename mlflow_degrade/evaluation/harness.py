"""lm-eval with any of its models, in this process, with its samples kept in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

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
from .lm_eval_task import keep_metrics
from .question_tasks import QuestionOptions
from .suite import Spec, find_tasks, load
from .task_fit import fit_tasks, note_literal_templates

_ONNX = "onnx"
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


def run_lm_eval(settings: HarnessSettings) -> HarnessRun | None:
    """Evaluate a model with lm-eval."""
    name, arguments = _model_name(settings.model), _arguments(settings.model_args)
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
    model = _load_model(name, arguments, settings)
    found, tracker = _evaluate(model, name, arguments, manager, specs, settings)
    if found is None:
        return None
    if (kept := getattr(model, "metrics", None)) is not None:
        keep_metrics(found, kept)
    samples = found.pop("samples")
    results = _results(found, tracker)
    if digest is not None:
        results[OWN_FACTS] = {"model_digest": digest, **_where(settings, arguments)}
    date = datetime.now().isoformat().replace(":", "-")
    return HarnessRun(output_of(results, samples, date), samples, tracker)


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


def _folder(arguments: Mapping[str, Any]) -> Path | None:
    """The local directory that is meant, if it is one."""
    folder = Path(str(arguments.get("pretrained", ""))).expanduser()
    return folder if "pretrained" in arguments and folder.is_dir() else None


def _where(settings: HarnessSettings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Where this package's engine computed; of other libraries' kernels nothing is known here."""
    if settings.model != _ONNX:
        return {}
    from .probes import origin_of

    folder = Path(str(arguments["pretrained"])).expanduser()
    device = settings.device or str(arguments.get("device", "auto"))
    return {"origin": origin_of(folder, device).model_dump(mode="json")}


def _model_name(given: str) -> str:
    try:
        import lm_eval.models  # noqa: F401 - registers its models
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise MissingExtraError("lm_eval", "cpu") from error
    from . import backend

    if given == _ONNX:
        return backend.NAME
    known = sorted(model_registry.keys())
    if given not in known:
        raise UnknownNameError("lm-eval model", given, [_ONNX, *known])
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
