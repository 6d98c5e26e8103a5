"""Artifacts as local files, from a client and from inside the tracking server itself.

A server that asks itself over HTTP for its artifacts would need its own credentials, and could wait
for itself for ever. Inside it, ``mlflow-artifacts:`` locations are looked up where they are stored.
"""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ..errors import RegistryError

# Set by `mlflow server` for its worker processes.
_SERVER_BACKEND = "_MLFLOW_SERVER_FILE_STORE"


def inside_server() -> bool:
    """Whether this process is a worker of ``mlflow server``."""
    return _SERVER_BACKEND in os.environ


def tracking_backend(tracking_uri: str | None = None) -> Any:
    """Something with ``get_run`` and ``get_experiment``: the server's own store, or a client."""
    if inside_server():
        handlers: Any = import_module("mlflow.server.handlers")
        return handlers._get_tracking_store()
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri)


def fetch(
    location: str,
    path: str,
    scratch: Path,
    *,
    tracking_uri: str | None = None,
    copy: bool = False,
) -> Path | None:
    """A folder of artifacts as a local folder.

    Parameters
    ----------
    location : str
        Where a run or a model version keeps its artifacts.
    path : str
        Folder below it; empty for all of it.
    scratch : Path
        Directory to put copies into; made if absent.
    tracking_uri : str, optional
        For locations that are relative to a tracking server.
    copy : bool
        Copy even what lies on this machine already.

    Returns
    -------
    Path or None
        None where there is nothing.

    Raises
    ------
    RegistryError
        The location cannot be read, or is another server's.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    try:
        repository, prefix = _repository(location, tracking_uri)
        path = "/".join(part for part in (prefix, path) if part)
        if not repository.list_artifacts(path or None):
            return None
        if isinstance(repository, LocalArtifactRepository):
            found = Path(repository.artifact_dir) / path
            if not copy:
                return found
            return Path(shutil.copytree(found, scratch / "artifacts", symlinks=True))
        scratch.mkdir(parents=True, exist_ok=True)
        return Path(repository.download_artifacts(path, dst_path=str(scratch)))
    except (MlflowException, OSError) as error:
        raise RegistryError(f"{location} cannot be read: {error}") from error


def delete_artifact(location: str, path: str) -> None:
    """Delete a file of a run's artifacts, if it is there; for clients."""
    folder, _, name = path.rpartition("/")
    repository, _ = _repository(location, None)
    if any(Path(item.path).name == name for item in repository.list_artifacts(folder)):
        repository.delete_artifacts(path)


def _repository(location: str, tracking_uri: str | None) -> tuple[Any, str]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if not inside_server():
        return get_artifact_repository(location, tracking_uri=tracking_uri), ""
    parts = urlparse(location)
    if parts.scheme in ("http", "https") or (parts.scheme == "mlflow-artifacts" and parts.netloc):
        # Whoever loads the model asks that host, not us: it may give them other bytes.
        raise RegistryError(
            f"{location} names a host: the server cannot tell what that host gives to others. Log "
            "the model to the artifact store of this server."
        )
    if parts.scheme != "mlflow-artifacts":
        return get_artifact_repository(location), ""
    # MLflow's own way of finding what it serves; it knows about workspaces, too.
    handlers: Any = import_module("mlflow.server.handlers")
    if not handlers._is_servable_proxied_run_artifact_root(location):
        raise RegistryError(
            f"{location} is served by a server, and this one serves no artifacts: start it without "
            "--no-serve-artifacts, or with an artifact root it can read."
        )
    path = handlers._get_proxied_run_artifact_destination_path(location)
    scoped = handlers._get_workspace_scoped_repo_path_if_enabled(path)
    return handlers._get_artifact_repo_mlflow_artifacts(), str(scoped)
