"""How long a gate takes that stops early, beside one that asks everything.

    python benchmarks/early_stop.py --scheme int4-weight-only --repeats 3

Gates a quantized starter model against its export, whose evaluation is in MLflow already, by turns
with a fixed number of samples and early, in another order each time. Each is the first gate that
its store sees, so that nothing is found and no attempt counts. Prints the verdicts, medians of
samples and seconds, and the ratio of the seconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from measurements import as_script, record

if TYPE_CHECKING:
    from mlflow_degrade import GatePolicy

_CLAIMS: dict[str, dict[str, str] | None] = {
    "fixed": None,
    "population": {"claim": "population"},
    "suite": {"claim": "suite"},
    "informed": {"claim": "suite", "order": "informed"},
}


@click.command(help=__doc__)
@click.option("--scheme", default="int4-weight-only", show_default=True)
@click.option("--rule", default="non_inferiority", show_default=True)
@click.option("--repeats", default=3, show_default=True, help="Gates of each kind.")
@click.option("--limit", default=220, show_default=True, help="Samples of each of six tasks.")
def main(scheme: str, rule: str, repeats: int, limit: int) -> None:
    import mlflow

    from mlflow_degrade import GatePolicy
    from mlflow_degrade.core.cache import cache_root
    from mlflow_degrade.optimize.export import export_onnx
    from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
    from mlflow_degrade.optimize.schemes import apply_scheme
    from mlflow_degrade.optimize.source.resolve import resolve_model
    from mlflow_degrade.registry.registration import log_model

    policy: dict[str, Any] = {"rule": rule, "margin_pp": 2}
    base = optimize_graph(export_onnx(resolve_model("starter")))
    folders = {"baseline": base, "candidate": apply_scheme(base, scheme)}
    # What was asked before lies in this cache, and is forgotten between the gates.
    asked = [cache_root() / kind for kind in ("evaluation", "probe", "equivalence")]
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "kept"
        for folder in asked:
            if folder.exists():
                shutil.move(folder, kept / folder.name)
        try:
            os.chdir(scratch)
            mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
            uris = {}
            for side, folder in folders.items():
                with mlflow.start_run(run_name=side):
                    uris[side] = log_model(folder).model_uri
            # The baseline's evaluation, and files that are read once.
            _first(uris, GatePolicy.from_mapping(policy), limit, Path(scratch))
            found: dict[str, list[tuple[float, int, str]]] = {name: [] for name in _CLAIMS}
            for seed in range(repeats):
                for name, claim in _CLAIMS.items():
                    for folder in asked[:1]:
                        shutil.rmtree(folder, ignore_errors=True)
                    early = None if claim is None else {**claim, "seed": seed}
                    found[name].append(_gate(uris, {**policy, "sequential": early}, Path(scratch)))
                    click.echo(f"{name:10} {found[name][-1]}", err=True)
        finally:
            os.chdir("/")
            for folder in asked:
                shutil.rmtree(folder, ignore_errors=True)
                if (kept / folder.name).exists():
                    shutil.move(kept / folder.name, folder)
    whole = statistics.median(seconds for seconds, _, _ in found["fixed"])
    for name, gates in found.items():
        middle = statistics.median(seconds for seconds, _, _ in gates)
        verdicts = sorted({verdict for _, _, verdict in gates})
        samples = round(statistics.median(count for _, count, _ in gates))
        click.echo(
            f"{name:10} {'/'.join(verdicts):13} {samples:6} samples {middle:6.1f} s "
            f"{middle / whole:5.2f}"
        )
        record(f"{name} seconds", middle, "s")
        record(f"{name} samples", samples, "samples")


def _first(uris: dict[str, str], policy: GatePolicy, limit: int, folder: Path) -> None:
    """A gate of which only the baseline's evaluation is left."""
    import mlflow
    from mlflow.tracking._tracking_service.utils import _get_store

    from mlflow_degrade.registry.promotion import promote
    from mlflow_degrade.registry.references import content_digest, evaluations_of

    done = promote(
        uris["candidate"], uris["baseline"], policy, register_as=None,
        questions={"tasks": ["starter"], "limit": limit},
    )  # fmt: skip
    client, store = mlflow.MlflowClient(), _get_store()
    everywhere = [e.experiment_id for e in client.search_experiments()]
    candidates = evaluations_of(content_digest(uris["candidate"]), everywhere)
    for run_id in [done.run_id, *(run.info.run_id for run in candidates)]:
        client.delete_run(run_id)
        store._hard_delete_run(run_id)
    (folder / "stores").mkdir()


def _gate(uris: dict[str, str], policy: dict[str, Any], folder: Path) -> tuple[float, int, str]:
    """Seconds, samples and verdict of the first gate that a copy of the store sees."""
    import mlflow

    from mlflow_degrade import GatePolicy
    from mlflow_degrade.registry.promotion import promote

    store = folder / "stores" / f"{uuid.uuid4().hex}.db"
    shutil.copy(folder / "mlflow.db", store)
    mlflow.set_tracking_uri(f"sqlite:///{store}")
    mlflow.MlflowClient().search_experiments()  # opens it
    start = time.perf_counter()
    done = promote(
        uris["candidate"], uris["baseline"], GatePolicy.from_mapping(policy), register_as=None
    )
    return time.perf_counter() - start, done.decision.aggregate.n, done.decision.verdict.value


if __name__ == "__main__":
    as_script(main)
