"""Documented modules of before the rooms, found where they are now, with a warning.

Versions that were registered then bring a script that imports these. To be removed with 1.0.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.split(".", maxsplit=1)[0]
_MOVED = {
    "errors": "core.errors",
    "evaluation.paths": "evaluation.scoring_path",
    "evaluation.starter_encoder": "optimize.source.starter_encoder",
    "evaluation.starter_model": "optimize.source.starter_model",
    "optimize.bfloat16": "optimize.passes.bfloat16",
    "optimize.blockwise": "optimize.passes.blockwise",
    "optimize.calibration": "optimize.passes.calibration",
    "optimize.dynamic": "optimize.passes.static",
    "optimize.encoder_fusion": "optimize.fusion.encoder",
    "optimize.encoder_parity": "optimize.parity.agreement",
    "optimize.exclusion": "optimize.passes.mixed_precision",
    "optimize.formats.elements": "optimize.formats.number_format",
    "optimize.formats.names": "optimize.formats.number_format",
    "optimize.graph": "optimize.fusion.optimize_graph",
    "optimize.half": "optimize.passes.bfloat16",
    "optimize.integer_weights": "optimize.passes.static",
    "optimize.joints": "optimize.passes.smoothing",
    "optimize.layer_trials": "optimize.passes.layer_ablation",
    "optimize.model_directory": "optimize.source.model_directory",
    "optimize.output_parity": "optimize.parity.agreement",
    "optimize.pass_result": "optimize.pass_table",
    "optimize.sensitivity": "optimize.passes.sensitivity",
    "optimize.sensitivity_report": "optimize.passes.sensitivity_report",
    "optimize.simulate": "optimize.passes.simulate",
    "optimize.smoothing": "optimize.passes.smoothing",
    "optimize.static": "optimize.passes.static",
    "optimize.weight_only": "optimize.passes.weight_only",
    "origin": "samples.origin",
    "pairing": "samples.pairing",
    "planning": "decision.planning",
    "policy": "decision.policy",
    "recipes.export": "workflows.optimize",
    "recipes.optimize": "workflows.optimize",
    "recipes.pass_steps": "workflows.optimize",
    "recipes.quantize": "workflows.quantize",
    "recipes.steps": "workflows.steps",
    "report.benchmark": "report.bench",
    "report.placement": "report.bench",
    "report.planning_plot": "report.plan_view",
    "report.remedies": "report.recommendations",
    "rerun": "decision.rerun",
    "results": "decision.results",
    "runtime.benchmark_results": "bench.results",
    "runtime.bfloat16": "engine.bfloat16",
    "runtime.conversation": "engine.conversation",
    "runtime.cost": "bench.cost",
    "runtime.decoder": "engine.decoder",
    "runtime.dependent_operations": "evaluation.probes",
    "runtime.distinct_positions": "engine.distinct_positions",
    "runtime.encoder": "engine.encoder",
    "runtime.encoder_probe": "evaluation.probes",
    "runtime.energy": "bench.memory",
    "runtime.family": "engine.family",
    "runtime.generation": "engine.generation",
    "runtime.integer_kernels": "engine.integer_probe",
    "runtime.integer_probe": "engine.integer_probe",
    "runtime.lengths": "engine.lengths",
    "runtime.machine": "bench.machine",
    "runtime.memory": "bench.memory",
    "runtime.placement": "bench.node_assignment",
    "runtime.pooling": "engine.pooling",
    "runtime.probes": "evaluation.probes",
    "runtime.providers": "engine.providers",
    "runtime.ratios": "bench.results",
    "runtime.roofline": "bench.results",
    "runtime.sharing": "engine.schedule",
    "scores": "samples.table",
    "subgroups": "decision.subgroups",
    "tracking.benchmarks": "tracking.bench",
    "tracking.candidates": "registry.candidates",
    "tracking.elsewhere": "registry.verification",
    "tracking.evidence": "registry.evidence",
    "tracking.evidence_bundle": "registry.evidence_bundle",
    "tracking.gate_config": "registry.gate_config",
    "tracking.lm_eval_runs": "registry.lm_eval_runs",
    "tracking.passes": "tracking.bench",
    "tracking.placement": "tracking.bench",
    "tracking.promotion": "registry.promotion",
    "tracking.registration": "registry.registration",
    "tracking.reporting": "registry.register_on_pass",
    "tracking.sensitivity": "tracking.bench",
    "tracking.signing_keys": "registry.signing_keys",
    "tracking.verification": "registry.verification",
    "tracking.verified_loading": "registry.verification",
}
_ROOMS = {name.split(".")[0] for name in _MOVED if "." in name}


class _Moved(MetaPathFinder, Loader):
    """Finds a module by its former name. It comes last: what exists is found before."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - part of Python's interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or (name not in _MOVED and name not in _ROOMS):
            return None
        return ModuleSpec(fullname, self, is_package=name not in _MOVED)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.partition(".")[2]
        if name in _MOVED:
            _warn(module.__name__, f"{_PACKAGE}.{_MOVED[name]}")
            found = vars(import_module(f"{_PACKAGE}.{_MOVED[name]}"))
            vars(module).update({k: v for k, v in found.items() if not k.startswith("__")})


def install() -> None:
    """Let Python ask here for modules that it finds nowhere else."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())


def names_of(package: str, *modules: str) -> Callable[[str], Any]:
    """A package's ``__getattr__`` for former names of its own, which are in these modules now."""

    def look_up(name: str) -> Any:
        for module in () if name.startswith("_") else modules:
            found = getattr(import_module(f"{package}.{module}"), name, None)
            if found is not None and not isinstance(found, ModuleType):
                _warn(f"{package}.{name}", f"{package}.{module}.{name}")
                return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return look_up


def _warn(old: str, new: str) -> None:
    text = f"{old} is {new} now, which may change; public names are in {_PACKAGE} and its rooms."
    warnings.warn(text, DeprecationWarning, stacklevel=3)
