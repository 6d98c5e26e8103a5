"""From a PyTorch model to ONNX, a decoder with a key-value cache, by Optimum's exporter.

Optimum validates an export on random token ids, with a warning where it differs. That step and its
rewriting of tied weights take a third of the time and are left out: `check_agreement` compares the
file with its PyTorch source on real texts, with and without a cache, and refuses a difference.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.cache import cached_directory, require_space
from ..core.errors import (
    DegradeError,
    InputError,
    MissingExtraError,
    ModelError,
    ParityError,
    UnknownNameError,
    UnsupportedModelError,
)
from ..core.interrupts import uninterrupted
from ..core.progress import quiet_work
from ..engine.encoder import OnnxEncoder
from ..engine.family import UNSCORED_HEADS, Family, architecture, model_family, unscored_task
from ..engine.lengths import attention_window, exact_length
from ..engine.session import read_json
from .embeddings import tie_head
from .onnx_graph.files import MAX_IR, load_graph, save_graph
from .onnx_graph.float_share import float_share
from .parity.agreement import agreement, check_agreement, export_tolerance
from .parity.prompts import window_compared
from .source.model_directory import (
    copy_companions,
    library_versions,
    missing_files,
    write_manifest,
)
from .source.resolve import SourceModel
from .source.weight_files import check_whole

# Decoders that Optimum's exporter can trace, and does not have in its list.

DESCRIBED_AS = "llama"
"""Whose inputs and outputs unlisted decoders are given."""

# Keys of configs that state-space and recurrent models have, hybrids with attention among them.
_STATES = ("state_size", "mamba_d_state", "ssm_state_size", "conv_L_cache", "lru_width")

REGISTERED: set[str] = set()
"""Model types that Optimum was told about in this process."""


def register_unlisted(model_type: str, config: Mapping[str, Any]) -> None:
    """Tell Optimum how to export a decoder that it does not know."""
    from optimum.exporters.onnx.model_configs import COMMON_TEXT_GENERATION_TASKS
    from optimum.exporters.tasks import TasksManager

    why = None
    if key := next((key for key in _STATES if config.get(key)), None):
        why = (
            f"its cache holds states ({key} = {config[key]}), and the engine takes keys and values "
            "alone. PyTorch's newer exporter, tried on models of this kind, fixes the length of a "
            "text or fails, and gives no cache"
        )
    elif model_type not in MIXTURES and (key := _experts(config)):
        why = (
            f"it is a mixture of experts ({key} = {config[key]}), of which a trace would keep "
            "those that its example visits. Mixtures that are exported without being in Optimum's "
            f"list: {', '.join(MIXTURES)}"
        )
    if why is not None:
        raise UnsupportedModelError(
            f"a {model_type!r} model is not exported: Optimum does not list it, and {why}."
        )
    register = TasksManager.create_register("onnx")
    grouped = config.get("num_key_value_heads") is not None
    register(model_type, *COMMON_TEXT_GENERATION_TASKS)(_described(model_type, grouped=grouped))
    REGISTERED.add(model_type)


def _experts(config: Mapping[str, Any]) -> str | None:
    """The key of a config that says that there are experts."""
    counts = {k: v for k, v in config.items() if k.endswith("experts") and isinstance(v, int)}
    return next((key for key, count in counts.items() if count > 1), None)


def _described(model_type: str, *, grouped: bool) -> type:
    """Optimum's description of an architecture, with what is replaced while it is traced."""
    from optimum.exporters.onnx.model_configs import LlamaOnnxConfig
    from optimum.exporters.onnx.model_patcher import ModelPatcher
    from optimum.utils import NormalizedTextConfig

    class_name, forward = _REPLACED.get(model_type, ("", None))
    heads = "num_key_value_heads" if grouped else "num_attention_heads"
    names = NormalizedTextConfig.with_args(num_key_value_heads=heads, allow_new=True)

    class Patcher(ModelPatcher):  # type: ignore[misc]
        def __enter__(self) -> None:
            super().__enter__()
            if class_name:
                name = f"transformers.models.{model_type}.modeling_{model_type}"
                self._kind = getattr(importlib.import_module(name), class_name)
                self._before, self._kind.forward = self._kind.forward, forward

        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            if class_name:
                self._kind.forward = self._before

    members = {"NORMALIZED_CONFIG_CLASS": names, "_MODEL_PATCHER": Patcher}
    return type("UnlistedOnnxConfig", (LlamaOnnxConfig,), members)


def _all_experts(self: Any, hidden_states: Any) -> tuple[Any, Any]:
    """Forward of a block of experts, with a shared one or without, which visits all of them."""
    import torch

    shape = hidden_states.shape
    rows = hidden_states.view(-1, shape[-1])
    logits = self.gate(rows)
    weights, chosen = torch.topk(torch.softmax(logits, dim=1, dtype=torch.float), self.top_k)
    if getattr(self, "norm_topk_prob", True):  # Mixtral always does
        weights = weights / weights.sum(dim=-1, keepdim=True)
    total = _visited(rows, weights.to(rows.dtype), chosen, self.experts)
    if (shared := getattr(self, "shared_expert", None)) is not None:
        total = total + torch.sigmoid(self.shared_expert_gate(rows)) * shared(rows)
    return total.reshape(shape), logits


def _granite_experts(self: Any, layer_input: Any) -> tuple[Any, Any]:
    """Forward of Granite's block, whose experts are parts of one weight."""
    import torch
    from torch.nn.functional import linear

    shape = layer_input.shape
    rows = layer_input.reshape(-1, shape[-1])
    logits = self.router.layer(rows).float()
    best, chosen = logits.topk(self.router.top_k, dim=1)
    first, second = self.input_linear.weight, self.output_linear.weight

    def expert(index: int) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            gate, up = linear(x, first[index]).chunk(2, dim=-1)
            return linear(self.activation(gate) * up, second[index])

        return run

    experts = [expert(index) for index in range(self.router.num_experts)]
    weights = torch.softmax(best, dim=1).type_as(rows)
    return _visited(rows, weights, chosen, experts).view(shape), logits


def _visited(rows: Any, weights: Any, chosen: Any, experts: Any) -> Any:
    """Sum of what experts make of the rows that were sent to them."""
    import torch

    total = torch.zeros_like(rows)
    sent = torch.nn.functional.one_hot(chosen, num_classes=len(experts)).permute(2, 1, 0)
    for index, expert in enumerate(experts):
        rank, row = torch.where(sent[index])
        found = expert(rows[row]) * weights[row, rank, None]
        total = total.index_add(0, row, found.to(rows.dtype))
    return total


def _repeated_rotary(self: Any, x: Any, position_ids: Any) -> tuple[Any, Any]:
    """Forward of Cohere's rotary embedding with copies for views, which a trace cannot repeat."""
    from optimum.exporters.onnx.model_patcher import patched_cohere_rotary_forward

    found: tuple[Any, Any] = patched_cohere_rotary_forward(self, x, position_ids)
    return found


def _xielu_block(self: Any, x: Any) -> Any:
    """Forward of Apertus's feed-forward block, without ``expm1`` and half-precision scalars."""
    import torch
    from torch.nn.functional import softplus

    act, up = self.act_fn, self.up_proj(x)
    # Parameters, and so constants of the graph, rounded as the model rounds them.
    positive, beta = float(softplus(act.alpha_p)), float(act.beta)
    negative = float(act.beta + softplus(act.alpha_n))
    below = torch.exp(up.clamp(max=float(act.eps))) - 1 - up
    return self.down_proj(
        torch.where(up > 0, positive * up * up + beta * up, below * negative + beta * up)
    )


# What is replaced while a model is traced: a class of its module, and its forward then.
_REPLACED: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "apertus": ("ApertusMLP", _xielu_block),
    "cohere2": ("Cohere2RotaryEmbedding", _repeated_rotary),
    "granitemoe": ("GraniteMoeMoE", _granite_experts),
    "granitemoeshared": ("GraniteMoeSharedMoE", _granite_experts),
    "mixtral": ("MixtralSparseMoeBlock", _all_experts),
    "qwen2_moe": ("Qwen2MoeSparseMoeBlock", _all_experts),
}

MIXTURES = ("granitemoe", "granitemoeshared", "mixtral", "olmoe", "qwen2_moe")
"""Mixtures of experts that are exported; OLMoE's loop visits all of them by itself."""


TASKS: Mapping[Family, str] = {
    "decoder": "text-generation-with-past",
    "encoder": "feature-extraction",
    "classifier": "text-classification",
}
"""Optimum's task for each family of models."""

UNSCORED_TASKS: Mapping[str, str] = {
    "fill-mask": "ForMaskedLM",
    **{task: end for end, task in UNSCORED_HEADS.items()},
}
"""Further tasks, which the engine does not score, and how the names of their classes end."""

DTYPES = ("fp32", "fp16", "bf16")
"""What an export can be stored and computed in."""

_CALLED: Mapping[str, str] = {
    "text-generation-with-past": "a language model with a cache",
    "feature-extraction": "an encoder",
    "text-classification": "a text classifier",
}

# Operators of a graph that somebody else quantized.
_QUANTIZED = {
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulNBits",
    "QLinearMatMul",
}

# Raise when what is written changes, so that older cache entries are not reused.
_VERSION = 2


def export_onnx(
    source: SourceModel, *, task: str | None = None, dtype: str = "fp32", progress: bool = True
) -> Path:
    """Export a model, or return the export made of it before.

    Parameters
    ----------
    source : SourceModel
        From `mlflow_degrade.optimize.source.resolve.resolve_model`. A directory that is already an
        ONNX model directory is returned as it is; an ONNX model made elsewhere is brought to the
        same layout.
    task : str, optional
        Optimum's name of what the model is for; by default what its config says. Those of
        `UNSCORED_TASKS` are exported, compared with PyTorch output by output, and not scored.
    dtype : {"fp32", "fp16", "bf16"}
        The latter two are the export in fp32 and then the scheme of that name, which keeps in
        float32 what 16 bits cannot hold. Weights stored in bfloat16 stay the same bits.
    progress : bool
        Show what is being done, on standard error.

    Returns
    -------
    Path
        A complete model directory in the cache: never write into it.

    Raises
    ------
    UnknownNameError
        When there is no such task or data type.
    InputError
        When the model is for another task.
    UnsupportedModelError
        When Optimum cannot export the architecture, or the engine cannot run it afterwards.
    ParityError
        When the file does not reproduce the PyTorch model within 1e-3 on any logit, or an encoder
        within 1e-4 on any component of its embeddings.
    StorageError
        When there is no space for it.

    Notes
    -----
    The result depends on the source's files and on the versions of the exporting libraries, and
    both are part of its key in the cache. Tied embeddings stay tied (see `embeddings`).
    """
    require_dtype(dtype)
    if dtype != "fp32":
        from .schemes import apply_scheme  # which are applied to exports

        return apply_scheme(
            export_onnx(source, task=task, progress=progress), dtype, progress=progress
        )
    if source.layout == "onnx":
        if not missing_files(source.path):
            return source.path
        adopted = ["adopt", _VERSION, source.digest, *source.notes]
        return cached_directory("export", adopted, lambda to: _adopt(source, to, progress))
    versions = {name: v for name, v in library_versions().items() if name != "mlflow-degrade"}
    # The manifest says what was chosen where there was a choice.
    key: list[Any] = ["export", _VERSION, source.digest, versions, *source.notes]
    if task is not None and task != (usual := _usual_task(source)):
        _require_task(source, task, usual)
        key.append(task)
    # An exception within torch's tracer may end the process, or come out as another error.
    with uninterrupted(f"the export of {source.name}"):
        return cached_directory(
            "export", key, lambda to: _export(source, to, task or _usual_task(source), progress)
        )


def require_dtype(dtype: str) -> None:
    """Raise unless a model can be exported in this data type."""
    if dtype not in DTYPES:
        raise UnknownNameError("data type of an export", dtype, DTYPES)


def _usual_task(source: SourceModel) -> str:
    """What the config says that the model is for."""
    return unscored_task(source.path) or TASKS[model_family(source.path)]


def _require_task(source: SourceModel, task: str, usual: str) -> None:
    """Raise unless the model has the head that a task needs: a new one would be random."""
    known = (*TASKS.values(), *UNSCORED_TASKS)
    if task not in known:
        hint = "Others need several graphs, or inputs that are no text."
        raise UnknownNameError("task of an export", task, known, hint)
    name = architecture(source.path)
    fits = name.endswith(UNSCORED_TASKS[task]) if task in UNSCORED_TASKS else False
    if not fits:
        raise InputError(
            f"{source.name} is a {name or 'model without a class in its config'}, which is for "
            f"{usual!r}; for {task!r} its head would be random. Leave the task out."
        )


def _require_supported(source: SourceModel, task: str) -> bool:
    """Raise unless Optimum knows how to export this architecture for its task."""
    # Of decoders it is told more than it knows; whether that was so.
    try:
        with quiet_work("Looking up the architecture", progress=False):
            import optimum.exporters.onnx.model_configs  # noqa: F401 - registers architectures
            from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise MissingExtraError("optimum.exporters.onnx", "cpu") from error
    model_type = _model_type(source.path)
    known = TasksManager.get_supported_model_type_for_task(task, "onnx")
    if model_type in REGISTERED:
        return True
    if model_type.replace("_", "-") in {name.replace("_", "-") for name in known}:
        return False
    if task != TASKS["decoder"]:
        raise UnsupportedModelError(
            f"{source.name} is a {model_type!r} model, which Optimum does not export as "
            f"{_CALLED.get(task, task)}. It exports: {', '.join(sorted(known))}."
        )
    register_unlisted(model_type, read_json(source.path, "config.json", needed=True))
    return True


def _model_type(directory: Path) -> str:
    """``model_type`` of a config, which names the architecture."""
    found = read_json(directory, "config.json", needed=True).get("model_type")
    if found is None:
        raise ModelError(f"{directory / 'config.json'} is not a model's config: no model_type.")
    return str(found)


def _export(source: SourceModel, target: Path, task: str, progress: bool) -> None:
    """Fill `target` with the export of `source`."""
    unlisted = _require_supported(source, task)
    if task in (TASKS["encoder"], TASKS["classifier"]):
        # What the engine cannot run is found before minutes of work.
        OnnxEncoder(source.path, device="cpu")
    with _loading(source), quiet_work(f"Checking the weights of {source.name}", progress):
        check_whole(source.path)
    import torch

    weights = [p for p in source.path.iterdir() if p.suffix in (".safetensors", ".bin")]
    # The raw export, fp32 whatever the source is, and the final one exist side by side; weights
    # in half precision double.
    config = read_json(source.path, "config.json", needed=True)
    single = str(config.get("dtype") or config.get("torch_dtype") or "float32") == "float32"
    size = sum(p.stat().st_size for p in weights) * (1 if single else 2)
    require_space(target, int(2.6 * size) + 50_000_000, f"exporting {source.name}")
    with (
        quiet_work(f"Exporting {source.name} to ONNX", progress),
        tempfile.TemporaryDirectory(dir=target) as scratch,
        torch.random.fork_rng(devices=[]),
    ):
        _main_export(source, scratch, task)
        model = load_graph(scratch)
        tied = tie_head(model)
        save_graph(model, target)
        del model
        copy_companions(Path(scratch), target)
    # Optimum saves the tokenizer anew, which changes its files: what was given counts.
    copy_companions(source.path, target, leave=("config.json", "generation_config.json"))
    with quiet_work("Comparing the export with PyTorch", progress):
        found = check_agreement(source.path, target)
    step = {
        "pass": "export",
        "exporter": "optimum.exporters.onnx.main_export",
        **({"described_as": DESCRIBED_AS} if unlisted else {}),
        "task": task,
        "dtype": "float32",
        "tied_embeddings": tied,
        "tolerance": export_tolerance(target),
        **_length_facts(target),
    }
    write_manifest(
        target,
        scheme="fp32",
        source=source.as_dict(),
        recipe=[step],
        parity={"reference": "pytorch", **found.as_dict()},
    )


def _length_facts(folder: Path) -> dict[str, Any]:
    """What is different for long texts, and whether it is compared; empty for most models."""
    config = read_json(folder, "config.json", needed=True)
    found: dict[str, Any] = {}
    if (window := attention_window(config)) is not None:
        found |= {"attention_window": window, "window_compared": window_compared(config)}
    if (limit := exact_length(config)) is not None:
        found["exact_length"] = limit
    return found


def _main_export(source: SourceModel, output: str, task: str) -> None:
    from optimum.exporters.onnx import main_export

    with _loading(source):
        main_export(
            str(source.path),
            output,
            task=task,
            dtype="fp32",
            library_name="transformers",
            framework="pt",
            local_files_only=True,
            do_validation=False,
            no_post_process=True,
        )


@contextmanager
def _loading(source: SourceModel) -> Iterator[None]:
    """Name what Optimum and transformers raise while they read a model."""
    try:
        yield
    except (MemoryError, DegradeError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise  # a full disk, not a broken model
        raise ModelError(f"{source.name} cannot be loaded: {error}") from error
    except (ValueError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
        raise _not_exported(source, error) from error
    except Exception as error:  # damaged weights raise types of the file format's own
        if _model_type(source.path) in REGISTERED:
            raise _not_exported(source, error) from error
        raise ModelError(
            f"{source.name} cannot be loaded or exported: {type(error).__name__}: {error}"
        ) from error


def _not_exported(source: SourceModel, error: Exception) -> UnsupportedModelError:
    """What to say of a model that loads and cannot be traced."""
    why, kind = f"{type(error).__name__}: {error}".rstrip("."), _model_type(source.path)
    if kind in REGISTERED:
        why += f". Optimum does not list {kind!r} models; the export of Llama was tried"
    return UnsupportedModelError(f"Optimum could not export {source.name}: {why}.")


def _adopt(source: SourceModel, target: Path, progress: bool) -> None:
    """Bring an ONNX model made elsewhere to this package's layout."""
    size = sum(p.stat().st_size for p in source.path.iterdir() if p.is_file())
    require_space(target, int(1.3 * size), f"copying {source.name}")
    with quiet_work(f"Reading {source.name}", progress):
        model = load_graph(source.path)
        if model.ir_version > MAX_IR:  # the original is run as well, to compare
            raise UnsupportedModelError(
                f"{source.name} has ONNX IR version {model.ir_version}, this onnxruntime reads up "
                f"to {MAX_IR}: set ir_version to {MAX_IR} and save it again."
            )
        operators = {node.op_type for node in model.graph.node}
        stored = float_share(model).as_dict()
        save_graph(model, target)
        copy_companions(source.path, target)
        found = agreement(source.path, target)
    if found.max_abs_difference > export_tolerance(target):
        raise ParityError(f"the copy of {source.name} does not reproduce it: {found}.")
    step = {
        "pass": "adopt",
        "note": "an ONNX model made elsewhere, its weights unchanged",
        "stored": stored,
    }
    write_manifest(
        target,
        scheme="quantized elsewhere" if operators & _QUANTIZED else "given",
        source=source.as_dict(),
        recipe=[step],
        parity={"reference": "given", **found.as_dict()},
    )
