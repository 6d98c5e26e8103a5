"""A dead tracking server is found out within seconds."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from mlflow_degrade.core.errors import TrackingUnreachableError
from mlflow_degrade.tracking.connection import require_tracking_server


def test_sqlite_is_fine(store: str) -> None:
    assert require_tracking_server() == store


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(TrackingUnreachableError, match="MLFLOW_TRACKING_URI"):
        require_tracking_server(f"http://127.0.0.1:{port}")
    assert time.monotonic() - start < 5


def test_server_accepts_but_never_answers() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        start = time.monotonic()
        with pytest.raises(TrackingUnreachableError, match="does not answer"):
            require_tracking_server(f"http://127.0.0.1:{mute.getsockname()[1]}", timeout=1)
        assert time.monotonic() - start < 10


def test_unusable_database(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is not a database, but a text of some length\n" * 100)
    with pytest.raises(TrackingUnreachableError, match="cannot be used"):
        require_tracking_server(f"sqlite:///{tmp_path}/no.db")
