"""Finding a scheme by its name, and the way each of them is applied and checked.

What schemes there are says `mlflow_degrade.optimize.scheme_table`. Everything else (caching,
saving, reading back, comparing) is the same for all of them.

Words after a scheme's name change its options, ``int4-weight-only-gptq-block64``: see
`mlflow_degrade.optimize.scheme.Scheme.variants`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..cache import cached_directory, digest_json, require_space
from ..errors import (
    DegradeError,
    InputError,
    MissingExtraError,
    QuantizationError,
    UnknownNameError,
)
from ..runtime.integer_probe import full_range
from ..runtime.providers import CPU
from .agreement import agreement
from .calibration import Calibration, calibration_texts
from .float_share import MIN_QUANTIZED_SHARE, float_share, require_quantized, require_share
from .model_directory import (
    ModelDirectory,
    copy_companions,
    library_versions,
    size_bytes,
    write_manifest,
)
from .onnx_files import load_graph, save_graph
from .quiet_work import quiet_work
from .scheme import Scheme
from .scheme_table import SCHEME_PLUGINS
from .scheme_table import SCHEMES as SCHEMES
from .sensitivity_report import SENSITIVITY_FILE
from .simulate import rounded_weights
from .simulated_schemes import SIMULATED, simulated_scheme

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
        Where the model is to run, from `mlflow_degrade.runtime.providers.resolve_device`.
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
        `mlflow_degrade.optimize.graph.optimize_graph`; unchanged.
    scheme : str
        A key of `SCHEMES`, or ``simulated-<format>``.
    providers : tuple of str
        Where the candidate is to run.
    force : bool
        Apply a scheme even where it is refused.
    calibration : sequence of str, optional
        Texts on which activations are observed, for schemes that need it; by default
        `mlflow_degrade.optimize.calibration_prompts.CALIBRATION_PROMPTS`.
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
    if chosen.rewrite is None:
        return base.path
    if not base.is_float:
        raise QuantizationError(
            f"{base.path} is already {base.scheme!r}: apply {scheme!r} to the export it came from."
        )
    versions = {name: v for name, v in library_versions().items() if name.startswith("onnx")}
    texts = calibration_texts(calibration)
    start = chosen.start(base, texts, progress=progress)
    key: list[Any] = [chosen.name, dict(chosen.options), _VERSION, start.digest, versions]
    if chosen.calibrated:
        key.append(digest_json(texts))
    if chosen.exclusion is not None:
        key.append(chosen.exclusion.as_dict())
    if (plugin := _plugin(chosen)) is not None:
        key.append(plugin)
    rewrite = chosen.rewrite
    made = cached_directory(
        "scheme", key, lambda to: _apply(chosen, rewrite, base, start, to, texts, progress)
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
    progress: bool,
) -> None:
    require_space(target, int(1.1 * base.size_bytes), f"making {scheme.name}")
    options, excluded = dict(scheme.options), None
    if scheme.exclusion is not None:
        with library_errors(scheme.name, base):
            excluded = scheme.exclusion(start, scheme.name, rewrite, options, progress=progress)
        options["keep"] = excluded.kept
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
        **findings,
        "nodes": new,
        "stored": stored.as_dict(),
    }
    write_manifest(
        target,
        scheme=scheme.name,
        source=base.source,
        recipe=[*start.recipe, step],
        parity={"reference": "before the pass", **found.as_dict()},
    )


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
