"""What MLflow keeps for a whole process: addresses, experiment, active runs, environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def mlflow_state_kept() -> Iterator[None]:
    """Put MLflow's global state back at the end, whatever was set meanwhile.

    Setting an address again that was in force by default does not do: what was set by a call
    stands above the environment from then on. Never imports MLflow, which takes seconds.
    """
    environment = _environment()
    before = _read() if "mlflow" in sys.modules else (None, None, None, [])
    try:
        yield
    finally:
        if "mlflow" in sys.modules and _read() != before:
            _write(*before)
        for name in _environment().keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(("MLFLOW_", "_MLFLOW_"))}


def _read() -> tuple[str | None, str | None, str | None, list[object]]:
    from mlflow.tracking import fluent
    from mlflow.tracking._model_registry import utils as registry
    from mlflow.tracking._tracking_service import utils as tracking

    runs = list(fluent._active_run_stack.get())
    return tracking._tracking_uri, registry._registry_uri, fluent._active_experiment_id, runs


def _write(
    tracking_uri: str | None, registry_uri: str | None, experiment: str | None, runs: list[object]
) -> None:
    import mlflow
    from mlflow.tracking import fluent
    from mlflow.tracking._model_registry import utils as registry

    mlflow.set_tracking_uri(tracking_uri)  # type: ignore[arg-type]
    # Its setter takes no None, which is what it is before it is called.
    registry._registry_uri = registry_uri
    fluent._active_experiment_id = experiment
    # Not ended: the server that has them may be gone.
    fluent._active_run_stack.set(runs)
