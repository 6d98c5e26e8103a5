"""Find out within seconds whether the tracking server answers, before anything expensive runs."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

from ..core.errors import TrackingUnreachableError

# MLflow itself retries for about four minutes before it gives up.
_TIMEOUT_SECONDS = 5.0
# Bytes a second that a server reads at least, from a distant store, on a busy machine.
_SLOWEST = 10e6


def require_tracking_server(
    uri: str | None = None,
    timeout: float = _TIMEOUT_SECONDS,
    *,
    try_it: bool = True,
    create: bool = True,
) -> str:
    """Check that the tracking store can be used; who only reads makes no new one."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    uri = uri or mlflow.get_tracking_uri()
    parts = urlparse(uri)
    if not create:
        _require_file(uri)
    remedy = "Start it, or set MLFLOW_TRACKING_URI (sqlite:///mlflow.db needs no server)."
    if parts.scheme in ("http", "https") and parts.hostname:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            # A plain connection first: it fails at once where an HTTP client would retry.
            with socket.create_connection((parts.hostname, port), timeout=timeout):
                pass
        except OSError as error:
            raise TrackingUnreachableError(
                f"no MLflow server answers at {uri} within {timeout:g} s ({error}). {remedy}"
            ) from error
        if _require_answer(uri, timeout, remedy) and not try_it:
            return uri
    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        raise TrackingUnreachableError(
            f"the tracking store at {uri} cannot be used: {error}. {remedy}"
        ) from error
    return uri


def _require_file(uri: str) -> None:
    """Opening a database of SQLite that is not there makes an empty one, and MLflow its tables."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError:
        return  # no database
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return
    if not os.path.exists(str(url.database)):
        raise TrackingUnreachableError(
            f"there is no MLflow store at {uri}, so there is nothing to read: go to the folder "
            f"with the file {os.path.basename(str(url.database))}, or set MLFLOW_TRACKING_URI."
        )


@contextmanager
def patience(size: int) -> Iterator[None]:
    """Wait for a server's answer at least as long as it may take to read so many bytes."""
    # A gated registry reads all files of a version before it answers, and MLflow's client hangs up
    # after two minutes, asks again, and has them read again.
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    from mlflow import environment_variables

    timeout: Any = environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT
    before, needed = os.environ.get(name), math.ceil(size / _SLOWEST)
    if needed > timeout.get():
        os.environ[name] = str(needed)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _require_answer(uri: str, timeout: float, remedy: str) -> bool:
    """Return if the server answers, and whether it did so as MLflow does."""
    import requests
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.server_info import ServerInfoRequestError, fetch_server_info

    try:
        # MLflow's client asks this anyway before it reads artifacts, and remembers the answer.
        found = fetch_server_info(get_default_host_creds(uri))  # type: ignore[no-untyped-call]
        return found.status_code == 200
    except ServerInfoRequestError:
        pass  # too slow, or no MLflow
    try:
        # Any HTTP answer will do; permissions are the next call's business.
        requests.get(uri.rstrip("/") + "/health", timeout=timeout)
        return False
    except requests.RequestException as error:
        raise TrackingUnreachableError(
            f"the MLflow server at {uri} accepts connections but does not answer within "
            f"{timeout:g} s ({type(error).__name__}). {remedy}"
        ) from error
