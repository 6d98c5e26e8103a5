"""Which layers of a model a scheme hurts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ...core.errors import InputError, QuantizationError
from ..parity.prompts import PARITY_PROMPTS
from ..scheme import Scheme
from ..schemes import SCHEME_PLUGINS, SCHEMES, find_scheme, library_errors, with_level
from ..source.model_directory import ModelDirectory
from .calibration import calibration_texts
from .layer_ablation import LayerTrials, Rewrite
from .mixed_precision import RANKING_TEXTS, sensitivity_table
from .mixed_weights import MixtureRule
from .sensitivity_report import SensitivityReport


def measure_sensitivity(
    model_dir: str | Path,
    scheme: str,
    prompts: Collection[str] | None = None,
    *,
    single_layers: bool = True,
    progress: bool = True,
) -> SensitivityReport:
    """Quantize layers one by one and kind by kind, and see how far the model moves.

    Parameters
    ----------
    model_dir : path
        A float model directory, from `mlflow_degrade.optimize.export.export_onnx` or
        `mlflow_degrade.optimize.fusion.optimize_graph.optimize_graph`.
    scheme : str
        As `mlflow_degrade.optimize.schemes.find_scheme` takes it; layers that it would keep in
        float are quantized here.
    prompts : collection of str, optional
        Texts to compare on, by default those that schemes rank layers by. Give no items of an
        evaluation: what was tuned on them proves nothing on them.
    single_layers : bool
        Try every layer as well, not only every kind.
    progress : bool
        Show what is being done, on standard error.

    Returns
    -------
    SensitivityReport

    Raises
    ------
    UnknownNameError
        There is no such scheme.
    InputError
        The scheme changes the type of the whole graph, or no prompt has two tokens.
    QuantizationError
        The model is quantized already, or the scheme changes none of its layers.
    NonFiniteLogitsError
        A layer breaks the model.

    Notes
    -----
    Each answer is a forward pass of a graph that holds every layer in both forms. Answers are kept
    in the cache by the model's content, the scheme's options and the prompts.
    """
    chosen, rewrite = require_layerwise(scheme)
    base = ModelDirectory.load(model_dir)
    if not base.is_float:
        raise QuantizationError(
            f"{base.path} is already {base.scheme!r}: measure {scheme!r} on the export it came "
            "from."
        )
    texts = RANKING_TEXTS if prompts is None else None
    given = PARITY_PROMPTS if prompts is None else prompts
    seen = calibration_texts()
    start = chosen.start(base, seen, progress=progress)
    chosen, _ = with_level(chosen, start)
    observed = seen if chosen.calibrated else None
    with (
        library_errors(scheme, base),
        LayerTrials(
            start, rewrite, chosen.options, given, calibration=observed, progress=progress
        ) as trials,
    ):
        return sensitivity_table(
            trials, scheme, texts=texts, single_layers=single_layers, progress=progress
        )


def require_layerwise(scheme: str) -> tuple[Scheme, Rewrite]:
    """A scheme that quantizes layers one by one, and its function."""
    chosen = find_scheme(scheme, force=True)
    if isinstance(chosen.exclusion, MixtureRule):
        tried = chosen.exclusion.methods[chosen.options["method"]]
        raise InputError(
            f"scheme {scheme!r} takes each layer from another scheme: measure {', '.join(tried)}."
        )
    if chosen.rewrite is None or not (chosen.proof or chosen.simulated):
        known = (*SCHEMES.values(), *SCHEME_PLUGINS.usable())
        fitting = [
            other.name
            for other in known
            if other.proof and not isinstance(other.exclusion, MixtureRule)
        ]
        raise InputError(
            f"scheme {scheme!r} does not quantize layers one by one: choose {', '.join(fitting)} "
            "or a simulated one."
        )
    return chosen, chosen.rewrite
