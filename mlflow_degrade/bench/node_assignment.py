"""Which nodes of a model run on which execution provider, and what is copied between them.

A node without a kernel on the provider that was asked for runs on the CPU, without an error, and
its operands travel there and back. Onnxruntime records where its partitioner puts each node (API
of version 1.24), but not what it does afterwards: copies and the sizes of products come from the
profile of one run.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..engine.ort_values import run_arrays
from ..engine.providers import CPU, on_gpu, open_session, session_options
from ..engine.schedule import one_text
from ..engine.session import run_error
from .results import PRODUCTS

TOKENS = 16
"""Tokens of the text that a placement is found with."""

_COPIES = {"MemcpyFromHost": "to_device", "MemcpyToHost": "to_host"}
_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class Placement:
    """Where a model's nodes run."""

    providers: tuple[str, ...]  # What was asked for, in order of preference.
    # Execution provider → operator → nodes, after constant folding and before a provider fuses its
    # own. Providers that got nothing are there with no operator.
    nodes: Mapping[str, Mapping[str, int]]
    # Copies of tensors that onnxruntime inserted, ``"to_device"`` and ``"to_host"``.
    copies: Mapping[str, int]
    # Execution provider → multiplications in products of matrices, for one text of `tokens`.
    # Attention that is one node, and what a provider compiled into one, is not counted.
    multiply_adds: Mapping[str, int]
    tokens: int  # Length of that text.

    def count(self, provider: str) -> int:
        """Nodes on a provider."""
        return sum(self.nodes.get(provider, {}).values())

    def share(self, provider: str) -> float | None:
        """Share of the multiplications that a provider does; None where none was seen."""
        total = sum(self.multiply_adds.values())
        return self.multiply_adds.get(provider, 0) / total if total else None

    @property
    def fallen_back(self) -> Mapping[str, int]:
        """Operator → nodes that run on the CPU although another provider was asked for."""
        return self.nodes.get(CPU, {}) if on_gpu(self.providers) else {}

    def sentence(self) -> str:
        """All of it in one line."""
        said: list[str] = []
        for provider in self.nodes:
            plural = "" if said or self.count(provider) == 1 else "s"
            noun = "" if said else f" node{plural}"
            part = f"{self.count(provider)}{noun} on {short_name(provider)}"
            if provider != self.providers[0] and (share := self.share(provider)) is not None:
                part += f" with {share:.1%} of the multiplications"
            said.append(part)
        copies = sum(self.copies.values())
        return f"{', '.join(said)}; {copies} memory cop{'y' if copies == 1 else 'ies'}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, `fallen_back` included."""
        return {
            "providers": list(self.providers),
            "nodes": {provider: dict(found) for provider, found in self.nodes.items()},
            "fallen_back": dict(self.fallen_back),
            "copies": dict(self.copies),
            "multiply_adds": dict(self.multiply_adds),
            "tokens": self.tokens,
        }


def short_name(provider: str) -> str:
    """What a provider is called in a sentence."""
    return "the CPU" if provider == CPU else provider.removesuffix("ExecutionProvider")


def find_placement(
    folder: str | Path,
    providers: tuple[str, ...] = (CPU,),
    *,
    threads: int | None = None,
    tokens: int = TOKENS,
) -> Placement:
    """Load a model directory, run one short text through it and see where its nodes are."""
    # On the CPU this is tested; on a GPU it was not run.
    if tokens < 1:
        raise InputError(f"tokens = {tokens}: a placement is found with one token or more.")
    directory = Path(folder)
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        options = session_options(threads=threads, profile_prefix=str(Path(scratch) / "run"))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = open_session(directory / "model.onnx", providers, options=options)
        try:
            feeds = one_text(session, directory, np.ones(tokens, np.int64))
            try:
                run_arrays(session, feeds, [node.name for node in session.get_outputs()])
            except Exception as error:
                raise run_error(error, directory) from error
        finally:
            profile = Path(session.end_profiling())
        kernels = _kernels(json.loads(profile.read_text(encoding="utf-8")))
    nodes: dict[str, Counter[str]] = {provider: Counter() for provider in providers}
    for part in session.get_provider_graph_assignment_info():
        found = nodes.setdefault(part.ep_name, Counter())
        found.update(node.op_type for node in part.get_nodes())
    copies = Counter(_COPIES[k["op_name"]] for k in kernels if k["op_name"] in _COPIES)
    work: Counter[str] = Counter(dict.fromkeys(nodes, 0))
    for kernel in kernels:
        work[kernel["provider"]] += _multiplications(kernel)
    return Placement(
        providers,
        {provider: dict(found.most_common()) for provider, found in nodes.items()},
        {where: copies[where] for where in _COPIES.values()},
        dict(work),
        tokens,
    )


def _kernels(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the profile says about each node that ran."""
    return [
        event["args"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)
    ]


def _multiplications(kernel: Mapping[str, Any]) -> int:
    """Of a product of matrices: for every number that comes out, as many as are summed."""
    if kernel["op_name"] not in PRODUCTS:
        return 0
    (left,) = kernel["input_type_shape"][0].values()
    (result,) = kernel["output_type_shape"][0].values()
    return int(math.prod(result) * left[-1])
