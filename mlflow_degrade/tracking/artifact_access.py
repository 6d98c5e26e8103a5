"""Artifacts as local files, from a client and from inside the tracking server itself.

A server that asks itself over HTTP for its artifacts would need its own credentials, and could wait
for itself for ever. Inside it, ``mlflow-artifacts:`` locations are looked up where they are stored.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ..core.errors import RegistryError, TrackingError

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
    names: Collection[str] | None = None,
) -> Path | None:
    """A folder of artifacts as a local folder, by one request for each file and each listing."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    try:
        repository, prefix = _repository(location, tracking_uri)
        path = "/".join(part for part in (prefix, path) if part)
        if names is None:
            if not repository.list_artifacts(path or None):
                return None
        elif isinstance(repository.list_artifacts, _Listings):
            repository.list_artifacts.tell(path, names)
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


def upload(folder: Path, location: str) -> None:
    """Log all files of a folder to where a run keeps its artifacts."""
    from mlflow.exceptions import MlflowException

    try:
        _repository(location, None)[0].log_artifacts(str(folder))
    except (MlflowException, OSError) as error:  # those of requests are OSErrors
        raise TrackingError(
            f"the artifact store at {location} did not take the files: {error}. Nothing was "
            "registered; when it has room and answers, do the same again."
        ) from error


def read_json(location: str, path: str) -> Any:
    """One artifact that holds JSON."""
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        found = fetch(location, folder, Path(scratch), names=[name])
        try:
            return json.loads((found or Path(scratch)).joinpath(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RegistryError(f"{location}/{path} cannot be read: {error}") from error


def list_names(location: str, path: str) -> list[str]:
    """Names of what lies in a folder of artifacts."""
    repository, _ = _repository(location, None)
    return [item.path.rpartition("/")[2] for item in repository.list_artifacts(path)]


class _Listings:
    """A repository's ``list_artifacts`` that asks once."""

    # MLflow lists a folder to find out that it is one, again to see what is in it, and each file
    # that it is asked for to find out that it is none.

    def __init__(self, ask: Callable[[str | None], list[Any]]) -> None:
        self._ask = ask
        self._known: dict[str, list[Any]] = {}

    def __call__(self, path: str | None = None) -> list[Any]:
        key = path or ""
        if key not in self._known:
            self._known[key] = self._ask(path)
        return self._known[key]

    def tell(self, folder: str, names: Collection[str]) -> None:
        """What files there are in a folder."""
        from mlflow.entities import FileInfo

        files = [f"{folder}/{name}" if folder else name for name in names]
        make: Any = FileInfo
        self._known[folder] = [make(file, False, None) for file in files]
        self._known.update((file, []) for file in files)


def _repository(location: str, tracking_uri: str | None) -> tuple[Any, str]:
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils import uri as uris

    if not inside_server():
        tracking_uri = tracking_uri or mlflow.get_tracking_uri()
        with_profile: Any = uris.add_databricks_profile_info_to_artifact_uri
        location = with_profile(location, tracking_uri)
        found: Any = get_artifact_repository(location, tracking_uri=tracking_uri)
        found.list_artifacts = _Listings(found.list_artifacts)
        return found, ""
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
