"""Finding a scheme by its name, and the way each of them is applied and checked.

What schemes there are says `mlflow_degrade.optimize.schemes`. Everything else (caching,
saving, reading back, comparing) is the same for all of them.

Words after a scheme's name change its options, ``int4-weight-only-gptq-block64``: see
`mlflow_degrade.optimize.scheme.Scheme.variants`.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.cache import cached_directory, digest_json, require_space
from ..core.errors import (
    DegradeError,
    InputError,
    MissingExtraError,
    QuantizationError,
    UnknownNameError,
)
from ..core.plugins import Plugins
from ..core.progress import quiet_work
from ..engine.integer_probe import full_range
from ..engine.providers import CPU, CUDA, TENSORRT
from .formats.number_format import parse_format
from .onnx_graph.files import load_graph, save_graph
from .onnx_graph.float_share import (
    MIN_QUANTIZED_SHARE,
    float_share,
    require_quantized,
    require_share,
)
from .parity.agreement import agreement
from .passes.accuracy_level import MEASURED, choose_level
from .passes.bfloat16 import convert_to_bfloat16, convert_to_half
from .passes.calibration import Calibration, calibration_texts
from .passes.mixed_precision import ExclusionRule
from .passes.mixed_weights import Made, MixtureRule, mix_weights
from .passes.sensitivity_report import SENSITIVITY_FILE
from .passes.simulate import VALUE_FORMATS, require_value_format, rounded_weights, simulate_format
from .passes.static import CALIBRATIONS, quantize_dynamically, quantize_statically
from .passes.weight_only import BLOCK_SIZES, quantize_weights
from .scheme import Scheme
from .source.model_directory import (
    ModelDirectory,
    copy_companions,
    library_versions,
    size_bytes,
    write_derived,
)

# Schemes that round weights to a number format: ``simulated-<format>``.

SIMULATED = "simulated-"
"""What the names of simulated schemes begin with; a number format follows."""

_ROUNDED_VALUES = {"act": ("activations", "activations"), "kv": ("cache", "key-value cache")}
_CONTRACTED = (
    "TensorRT may compute a product and a difference in one step, and rounding while running "
    "depends on the bits of each: use device 'cuda' or 'cpu'"
)
_ADDITIONS = ("ends", *(f"{what}-{e}" for what in _ROUNDED_VALUES for e in VALUE_FORMATS))


def simulated_scheme(name: str) -> Scheme:
    """The scheme of a number format."""
    number_format, *further = name.removeprefix(SIMULATED).split("+")
    if number_format != "fp32" or not further:  # weights may stay when other values are rounded
        parse_format(number_format)
    options: dict[str, str | bool] = {"number_format": number_format}
    summary = f"weights rounded to {number_format}"
    for word in further:
        what, _, element = word.partition("-")
        if what in _ROUNDED_VALUES and element:
            require_value_format(element)
            option, said = _ROUNDED_VALUES[what]
        elif word == "ends":
            option, said = "ends", "embedding and projection too"
        else:
            raise UnknownNameError("addition to a simulated scheme", word, _ADDITIONS)
        if option in options:
            raise InputError(f"scheme {name!r} says {what!r} twice: keep one.")
        options[option] = element or True
        summary += f", {said}" + (f" to {element}" if element else "")
    text = f"{summary}; stored and computed in float32: quality only"
    running = any(option in options for option, _ in _ROUNDED_VALUES.values())
    refused = {TENSORRT: _CONTRACTED} if running else {}
    return Scheme(name, text, simulate_format, options, simulated=True, refused=refused)


# The table of named optimizations.

_Variants = Mapping[str, Mapping[str, Any]]
_BLOCKS: _Variants = {f"block{size}": {"block_size": size} for size in BLOCK_SIZES}
_MERGED: _Variants = {"merged": {"merged": True}}
# The two ends of a language model.
_EMBEDDING: _Variants = {"embedding8": {"embedding_bits": 8}}
_HEAD: _Variants = {"head8": {"head_bits": 8}}
# Measuring is asked for, never done unasked: the same recipe makes the same bytes everywhere.
_LEVELS: _Variants = {
    "level0": {"accuracy_level": 0},
    "tuned": {"accuracy_level": MEASURED},
}
_ROUNDED_BLOCKS: _Variants = {
    **_BLOCKS, "asym": {"symmetric": False}, **_MERGED, **_LEVELS, **_EMBEDDING
}  # fmt: skip
# Schemes that a mixture takes layers from, each word with what has 4 bits in it.
_MIXED_FROM: Mapping[str, tuple[str, ...]] = {
    "gptq": ("int8-weight-only", "int4-weight-only-gptq"),
    "hqq": ("int8-weight-only", "int4-weight-only-hqq"),
    "nearest": ("int8-weight-only", "int4-weight-only-asym"),
    "best": ("int8-weight-only", "int4-weight-only-gptq", "int4-weight-only-hqq"),
}
# Limits of a mixture: bits for each weight, scales included, and distance from the float model.
_LIMITS: _Variants = {
    **{f"bits{x:g}": {"bits": x} for x in (5, 5.5, 6, 6.5, 7, 7.5, 8, 9)},
    **{f"loss{x:g}": {"loss": x} for x in (0.005, 0.02, 0.03, 0.05, 0.1)},
    **{method: {"method": method} for method in _MIXED_FROM},
}
_RANGES: _Variants = {method: {"calibration_method": method} for method in CALIBRATIONS}
_SMOOTHED: _Variants = {
    "smooth": {"smoothing": "always"},
    "unsmoothed": {"smoothing": "never"},
}
_TARGETS: _Variants = {"vnni": {"target": "vnni"}}
_NO_PRODUCTS = (
    "its products in 8 bits have no CUDA kernels, and each would run in float between two "
    "roundings: use 'int8-weight-only' or 'fp16'"
)
_NO_BLOCKS = {TENSORRT: "TensorRT has no MatMulNBits: these products run on CUDA's kernel"}
_CHOSEN_INTEGERS = {"bits": 4, "block_size": 32, "symmetric": False, "accuracy_level": 4}
_BLOCKWISE: dict[str, Any] = {"proof": ("MatMulNBits",), "notes": _NO_BLOCKS}
_STATIC: dict[str, Any] = {"proof": ("QuantizeLinear",), "calibrated": True}

SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", "the export as it is", None),
        Scheme(
            "fp16",
            "weights, activations and cache in half precision; for GPUs",
            convert_to_half,
            notes={
                CPU: "half the size, but not faster: CPU kernels compute in float32, so what "
                "overflows on a GPU does not here; judge it there"
            },
        ),
        Scheme(
            "bf16",
            "the same in bfloat16, which has float32's range and 8 significant bits; for GPUs",
            convert_to_bfloat16,
            notes={CPU: "half the size; computed in float32 between roundings, slower"},
        ),
        Scheme(
            "int8-weight-only",
            "weights in 8 bits, blocks of 32, float activations",
            quantize_weights,
            {"bits": 8, "block_size": 32, "symmetric": True, "accuracy_level": 4},
            variants=_ROUNDED_BLOCKS,
            **_BLOCKWISE,
        ),
        Scheme(
            "int4-weight-only",
            "weights in 4 bits, blocks of 32, float activations",
            quantize_weights,
            {"bits": 4, "block_size": 32, "symmetric": True, "accuracy_level": 4},
            variants={**_ROUNDED_BLOCKS, **_HEAD},
            **_BLOCKWISE,
        ),
        Scheme(
            "int4-weight-only-hqq",
            "the same with zero points fitted to the weights (HQQ); the vocabulary in 8 bits",
            quantize_weights,
            {**_CHOSEN_INTEGERS, "algorithm": "hqq"},
            variants={**_BLOCKS, **_MERGED, **_LEVELS, **_EMBEDDING},
            **_BLOCKWISE,
        ),
        Scheme(
            "int4-weight-only-gptq",
            "the same with integers fitted to what the layers compute on texts (GPTQ)",
            quantize_weights,
            {**_CHOSEN_INTEGERS, "algorithm": "gptq"},
            calibrated=True,
            variants={**_BLOCKS, **_MERGED, **_LEVELS, **_EMBEDDING, **_HEAD},
            **_BLOCKWISE,
        ),
        Scheme(
            "mixed-weight-only",
            "weights in 4 or 8 bits, layer by layer where it costs the least; the embedding in 8",
            mix_weights,
            {"bits": None, "loss": None, "method": "gptq", "block_size": 32},
            calibrated=True,
            exclusion=MixtureRule(_MIXED_FROM),
            variants={**_LIMITS, **_BLOCKS},
            **_BLOCKWISE,
        ),
        Scheme(
            "int8-dynamic",
            "weights in 8 bits per channel, activations in 8 bits per tensor, outliers moved into "
            "weights, layers that stay sensitive in float; for CPUs",
            quantize_dynamically,
            {"target": "any"},
            exclusion=ExclusionRule(),
            proof=("MatMulInteger", "DynamicQuantizeMatMul"),
            refused={
                CUDA: "its integer products have no CUDA kernels and fall back to the CPU node by "
                "node, many times slower than fp16: use 'int8-weight-only' or 'fp16'",
                TENSORRT: "TensorRT takes no ranges found while running: use "
                "'int8-static-symmetric'",
            },
            notes={CPU: "scores depend on the batch: samples are scored one at a time"},
            smoothing="where possible",
            variants={**_SMOOTHED, **_TARGETS},
        ),
        Scheme(
            "int8-static",
            "weights in 8 bits per channel, activations in 8 bits with ranges seen on texts, "
            "outliers moved into weights",
            quantize_statically,
            {"calibration_method": "percentile", "symmetric": False, "target": "any"},
            refused={
                CUDA: _NO_PRODUCTS,
                TENSORRT: "TensorRT takes no zero points: use 'int8-static-symmetric'",
            },
            notes={CPU: "for encoders and classifiers: language models lose more by fixed ranges"},
            smoothing="where possible",
            variants={**_RANGES, **_SMOOTHED, **_TARGETS},
            **_STATIC,
        ),
        Scheme(
            "int8-static-symmetric",
            "the same without zero points for activations; for TensorRT",
            quantize_statically,
            {"calibration_method": "percentile", "symmetric": True, "target": "any"},
            refused={CUDA: _NO_PRODUCTS},
            notes={CPU: "made for TensorRT; 'int8-static' rounds activations more finely"},
            smoothing="where possible",
            variants={**_RANGES, **_SMOOTHED, **_TARGETS},
            **_STATIC,
        ),
        Scheme(
            "fp8-static",
            "the same in 8-bit floats (E4M3); for TensorRT on GPUs of the Ada generation and later",
            quantize_statically,
            {"calibration_method": "minmax", "symmetric": True, "element": "fp8-e4m3"},
            refused={CUDA: _NO_PRODUCTS},
            notes={CPU: "made for TensorRT: on the CPU it computes in float32, and more slowly"},
            variants={**_RANGES, **_SMOOTHED},
            **_STATIC,
        ),
    )
}
"""Every scheme that runs as it is, by its name, in the order in which they are shown."""


def _taken(name: str) -> bool:
    # Words after a built-in name are its variants.
    return any(f"{name}-".startswith(f"{base}-") for base in (*SCHEMES, "simulated"))


SCHEME_PLUGINS = Plugins("mlflow_degrade.schemes", "scheme", Scheme, _taken)
"""Schemes of other distributions."""


# Raise when a scheme's code changes what it writes, so that older cache entries are not reused.
_VERSION = 2


def find_scheme(
    name: str,
    providers: tuple[str, ...] = (CPU,),
    *,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Scheme:
    """Look a scheme up, before anything expensive is done for it.

    Parameters
    ----------
    name : str
        A key of `SCHEMES`, or ``simulated-<format>``.
    providers : tuple of str
        Where the model is to run, from `mlflow_degrade.engine.providers.resolve_device`.
    options : mapping, optional
        Options by their names instead of words after the scheme's: see `Scheme.choices`.
    force : bool
        Accept a scheme that is refused there.

    Returns
    -------
    Scheme
        Its entry in the table.

    Raises
    ------
    UnknownNameError
        When there is no such scheme, number format or option.
    InputError
        When the scheme makes no sense on the first of `providers`, the format in itself, or an
        option beside the words of `name`.

    Examples
    --------
    >>> find_scheme("int8-weight-only").options["bits"]
    8
    >>> find_scheme("simulated-mxfp4").simulated
    True
    >>> find_scheme("int4-weight-only", options={"block_size": 64}).name
    'int4-weight-only-block64'
    """
    scheme = _base(name).variant(name, options)
    reason = scheme.refused.get(providers[0])
    if scheme.options.get("target") == "vnni" and providers[0] == CPU and not force:
        check = full_range()
        if not check.exact:
            reason = f"{check}, for want of VNNI; use {scheme.name.replace('-vnni', '')!r}"
    if reason and not force:
        raise InputError(
            f"scheme {scheme.name!r} is refused on {providers[0]}: {reason}. force=true takes it "
            "all the same."
        )
    return scheme


def _base(name: str) -> Scheme:
    """The scheme whose name is what `name` begins with."""
    if name.startswith(SIMULATED):
        return simulated_scheme(name)
    known = (*SCHEMES, *SCHEME_PLUGINS.names)
    bases = [base for base in known if name == base or name.startswith(f"{base}-")]
    if not bases:
        hint = f"'{SIMULATED}<format>' rounds weights to a number format, e.g. '{SIMULATED}mxfp4'."
        raise UnknownNameError("scheme", name, known, hint)
    base = max(bases, key=len)
    return SCHEMES[base] if base in SCHEMES else SCHEME_PLUGINS.load(base)


def _plugin(scheme: Scheme) -> str | None:
    """The package that brings a scheme or a variant of it, with its version."""
    names = [n for n in SCHEME_PLUGINS.names if f"{scheme.name}-".startswith(f"{n}-")]
    found = SCHEME_PLUGINS.source(max(names, key=len)) if names else None
    return None if found is None else str(found)


def apply_scheme(
    model: str | Path,
    scheme: str,
    *,
    providers: tuple[str, ...] = (CPU,),
    force: bool = False,
    calibration: Sequence[str] | None = None,
    min_quantized_share: float = MIN_QUANTIZED_SHARE,
    progress: bool = True,
) -> Path:
    """Make the candidate: apply a scheme to a float model directory.

    Parameters
    ----------
    model : path
        From `mlflow_degrade.optimize.export.export_onnx` or
        `mlflow_degrade.optimize.fusion.optimize_graph.optimize_graph`; unchanged.
    scheme : str
        A key of `SCHEMES`, or ``simulated-<format>``.
    providers : tuple of str
        Where the candidate is to run.
    force : bool
        Apply a scheme even where it is refused.
    calibration : sequence of str, optional
        Texts on which activations are observed, for schemes that need it; by default
        `mlflow_degrade.optimize.passes.calibration.CALIBRATION_PROMPTS`.
    min_quantized_share : float
        Least share of the weights in products that must not be in float any more, where the scheme
        is one that quantizes them.
    progress : bool
        Show what is being done, on standard error.

    Returns
    -------
    Path
        A model directory in the cache (`model` itself for ``"fp32"``). Its manifest records what
        was done, what the weights are stored in (`float_share`), and how far the saved file is
        from `model`.

    Raises
    ------
    UnknownNameError, InputError
        As `find_scheme`, when calibration texts are too few, and when a share is none.
    QuantizationError
        When the pass fails, changes nothing, saves nothing, or breaks the model, and when it
        leaves more in float than `min_quantized_share` allows.
    ParityError
        When the saved file does not read back as it was in memory.
    NonFiniteLogitsError
        When the result produces NaN or infinity.
    StorageError
        When there is no space for it.
    """
    require_share(min_quantized_share)
    chosen = find_scheme(scheme, providers, force=force)
    base = ModelDirectory.load(model)
    if (rewrite := chosen.rewrite) is None:
        return base.path
    if not base.is_float:
        raise QuantizationError(
            f"{base.path} is already {base.scheme!r}: apply {scheme!r} to the export it came from."
        )
    versions = {name: v for name, v in library_versions().items() if name.startswith("onnx")}
    texts = calibration_texts(calibration)
    start = chosen.start(base, texts, progress=progress)
    chosen, measured = with_level(chosen, start)
    key: list[Any] = [chosen.name, dict(chosen.options), _VERSION, start.digest, versions]
    if chosen.calibrated:
        key.append(digest_json(texts))
    if chosen.exclusion is not None:
        key.append(chosen.exclusion.as_dict())
    if (plugin := _plugin(chosen)) is not None:
        key.append(plugin)
    made = cached_directory(
        "scheme",
        key,
        lambda to: _apply(chosen, rewrite, base, start, to, texts, measured, progress),
    )
    if chosen.proof:  # others change the type of what is float, or round it to be judged
        stored = ModelDirectory.load(made).recipe[-1]["stored"]
        require_quantized(chosen.name, stored, min_quantized_share)
    return made


def _apply(
    scheme: Scheme,
    rewrite: Callable[..., dict[str, Any]],
    base: ModelDirectory,
    start: ModelDirectory,
    target: Path,
    texts: Sequence[str],
    measured: Mapping[str, Any],
    progress: bool,
) -> None:
    require_space(target, int(1.1 * base.size_bytes), f"making {scheme.name}")
    options, excluded = dict(scheme.options), None
    if scheme.exclusion is not None:
        apply = functools.partial(_made, base=start, texts=texts, progress=progress)
        with library_errors(scheme.name, base):
            excluded = scheme.exclusion(
                start, scheme.name, rewrite, options, apply=apply, progress=progress
            )
        options |= excluded.options
    with quiet_work(f"Applying {scheme.name}", progress):
        model = load_graph(start.path)
        before = _operators(model)
        observed = {"calibration": Calibration(start.path, texts)} if scheme.calibrated else {}
        with library_errors(scheme.name, base):
            findings = rewrite(model, **options, **observed)
        after = _operators(model)
        stored = float_share(model, rounded_weights(model, options) if scheme.simulated else None)
        save_graph(model, target)
        del model
        _require_effect(scheme, base, target, after - before)
        copy_companions(base.path, target)
        if excluded is not None:
            text = json.dumps(excluded.report.to_dict(), indent=1) + "\n"
            (target / SENSITIVITY_FILE).write_text(text, encoding="utf-8")
            findings |= excluded.as_dict()
    with quiet_work(f"Comparing {scheme.name} with its source", progress):
        found = agreement(base.path, target)
    if found.broken is not None:
        raise QuantizationError(
            f"{scheme.name} breaks {base.path}: {found}; {found.broken}. Choose another scheme."
        )
    new = {op: count for op, count in (after - before).items() if op in scheme.proof}
    step = {
        "pass": scheme.name,
        **({} if (plugin := _plugin(scheme)) is None else {"plugin": plugin}),
        **scheme.options,
        **measured,
        **findings,
        "nodes": new,
        "stored": stored.as_dict(),
    }
    write_derived(target, start, step, found.as_dict(), scheme=scheme.name)


def with_level(scheme: Scheme, start: ModelDirectory) -> tuple[Scheme, dict[str, Any]]:
    """A scheme with the kernels that are the fastest here, where it asks for them."""
    options = dict(scheme.options)
    if options.get("accuracy_level") != MEASURED:
        return scheme, {}
    graph = load_graph(start.path, weights=False).graph
    found = choose_level(
        graph, options["bits"], options["block_size"], symmetric=options["symmetric"]
    )
    options["accuracy_level"] = found["accuracy_level"]
    return replace(scheme, options=options), {"level_measured": found}


def _made(name: str, *, base: ModelDirectory, texts: Sequence[str], progress: bool) -> Made:
    """What another scheme makes of a model, and by what."""
    scheme = find_scheme(name, force=True)
    assert scheme.rewrite is not None
    given = texts if scheme.calibrated else None
    folder = apply_scheme(
        base.path, name, force=True, calibration=given, min_quantized_share=0, progress=progress
    )
    return Made(folder, scheme.rewrite, scheme.options, given)


@contextmanager
def library_errors(scheme: str, base: ModelDirectory) -> Iterator[None]:
    """Raise what libraries raise while they quantize `base` as errors of this package."""
    try:
        yield
    except DegradeError:
        raise
    except ImportError as error:
        raise MissingExtraError(error.name or "onnxruntime", "cpu") from error
    except (ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise QuantizationError(
            f"{scheme} failed on {base.path}: {type(error).__name__}: {error}"
        ) from error


def _require_effect(
    scheme: Scheme, base: ModelDirectory, target: Path, added: Counter[str]
) -> None:
    """Raise unless the pass did what its name says: other operators, fewer bytes."""
    if scheme.simulated:
        return  # the pass itself sees to it that weights change, and nothing else does
    if scheme.proof and not any(added[op] for op in scheme.proof):
        raise QuantizationError(
            f"{scheme.name} quantized nothing in {base.path}: no {' or '.join(scheme.proof)} among "
            "the result's operators. The graph has no product with a constant matrix."
        )
    now = size_bytes(target)
    if now >= base.size_bytes:
        raise QuantizationError(
            f"{scheme.name} does not make {base.path} smaller: {base.size_bytes:,} bytes before, "
            f"{now:,} after."
        )


def _operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)
