"""Open a decoder for scoring: by the best form of its graph that onnxruntime runs here."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import EngineError, ModelError, UnsupportedModelError
from .calls import Calls, CapturedCalls
from .engine_graph import DerivedGraph, build_engine_graph
from .forward_pass import run_rows
from .gpu_graph import Form
from .plan import Row
from .providers import memory_name
from .session import decoder_inputs, open_derived, run_error

_log = logging.getLogger(__name__)


def open_for_scoring(
    folder: Path,
    providers: tuple[str, ...],
    *,
    threads: int | None = None,
    for_gpu: bool = False,
    capture: bool = False,
) -> tuple[DerivedGraph, Calls]:
    """The graph that suits a model and its calls.

    Parameters
    ----------
    folder : Path
        A model directory.
    providers : tuple of str
        From `mlflow_degrade.runtime.providers.resolve_device`.
    threads : int, optional
        Threads per operator.
    for_gpu : bool
        Whether a graph without a mask is tried first (see `mlflow_degrade.runtime.gpu_graph`).
    capture : bool
        Whether calls are captured as CUDA graphs where that works.

    Raises
    ------
    ModelError
        The model cannot be opened in any form.
    """
    file = folder / "model.onnx"
    forms: tuple[Form, ...] = ("unmasked", "exported") if for_gpu else ("exported",)
    for form in forms:
        try:
            graph = build_engine_graph(file, form=form)
        except UnsupportedModelError as error:
            if form == "exported":
                raise
            _log.info("%s: attention keeps its mask: %s", folder, error)
            continue
        for captured in (True, False) if capture else (False,):
            if not graph.distinct and (form == "exported" or captured):
                continue
            try:
                return graph, _opened(graph, providers, threads, captured)
            except (ModelError, EngineError) as error:
                what = "calls are not captured" if captured else f"not run {form}"
                _log.info("%s: %s: %s", folder, what, error)
    # No position is shared: the graph was changed by rules that its architecture does not follow.
    graph = build_engine_graph(file, distinct=False)
    return graph, Calls(open_derived(graph, providers, threads=threads), memory_name(providers))


def _opened(
    graph: DerivedGraph, providers: tuple[str, ...], threads: int | None, capture: bool
) -> Calls:
    """Open the session and run two short sequences that begin alike, also on top of a cache."""
    session = open_derived(graph, providers, threads=threads, capture=capture)
    kind = CapturedCalls if capture else Calls
    calls, inputs = kind(session, memory_name(providers)), decoder_inputs(session, graph.folder)
    rows = [Row((0, 0), {1: [0]}), Row((0, 1, 0), {2: [0]})]
    share = graph.distinct
    try:
        run_rows(calls, inputs, rows, 3, multiple=1, share=share)
        if inputs.past_rows and share:
            _, past = run_rows(calls, inputs, rows[:1], 2, multiple=1, share=True, keep_cache=True)
            run_rows(calls, inputs, rows, 3, multiple=1, share=True, past=past)
    except Exception as error:
        raise run_error(error, graph.folder) from error
    return calls
