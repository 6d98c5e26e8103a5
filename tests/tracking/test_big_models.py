"""A model of five gigabytes: reading it takes the server long, and the client waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import enforcement_cases as cases
import mlflow
import pytest
from gate_cases import log_constant, log_evaluated, make_samples
from http_relay import relayed
from mlflow import MlflowClient

from mlflow_degrade import Verdict, promote
from mlflow_degrade.core import cache
from mlflow_degrade.registry.references import logged_content
from mlflow_degrade.tracking.connection import patience
from mlflow_degrade.tracking.evaluations import log_evaluation

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_five_gigabytes_are_promoted_by_a_gated_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    # The client reads where the server does: five gigabytes of nothing are not copied.
    direct = ("--no-serve-artifacts", "--default-artifact-root", str(tmp_path / "files"))
    with (
        cases.running_server(tmp_path, f"gated+{database}", database, *direct) as url,
        cases.pointed_at(tmp_path, url, url),
    ):
        champion, _ = log_evaluated(tmp_path, "champion", 10)
        with mlflow.start_run() as run:
            uri = log_constant(tmp_path, "large")
            where = MlflowClient().get_logged_model(uri.removeprefix("models:/")).artifact_location
            with (Path(where.removeprefix("file://")) / "weights.bin").open("wb") as stream:
                stream.truncate(5 * 1_000**3)
            content = logged_content(uri)
            assert content.size > 5 * 1_000**3
            samples = make_samples(12, model="large", digest=content.digest)
            log_evaluation(samples, {"model": content.digest, "suite": "suite"})
        # Far less than it takes to read them; what else is asked is answered at once.
        monkeypatch.setenv(_TIMEOUT, "2")
        start = time.perf_counter()
        with relayed(url) as relay:
            mlflow.set_tracking_uri(relay.url)
            mlflow.set_registry_uri(relay.url)
            arrived: dict[int, float] = {}
            answered: dict[int, float] = {}
            relay.before = lambda number: arrived.update({number: time.perf_counter()})
            relay.after = lambda number: answered.update({number: time.perf_counter()})
            done = promote(
                f"runs:/{run.info.run_id}", f"runs:/{champion}", register_as="big", alias="champion"
            )
            longest = max(answered[n] - arrived[n] for n in answered)
            asked = sum("/alias" in line for line in relay.requests if line.startswith("POST"))
        spent = time.perf_counter() - start
        print(f"{content.size} bytes: gate {spent:.1f} s, longest answer {longest:.1f} s")
        assert longest > 2, "the model is too small to try anyone's patience"
        assert asked == 1, "the client asked again before it had its answer"
        mlflow.set_tracking_uri(url)
        mlflow.set_registry_uri(url)
        assert done.decision.verdict is Verdict.PASS
        assert os.environ[_TIMEOUT] == "2"
        assert str(MlflowClient().get_model_version_by_alias("big", "champion").version) == "1"


def test_the_client_waits_as_long_as_reading_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_TIMEOUT, raising=False)
    with patience(1_000):
        assert _TIMEOUT not in os.environ
    with patience(5 * 1_000**3):
        assert os.environ[_TIMEOUT] == "500"
    assert _TIMEOUT not in os.environ
    monkeypatch.setenv(_TIMEOUT, "900")
    with patience(5 * 1_000**3):
        assert os.environ[_TIMEOUT] == "900"


def test_a_large_file_is_read_again_only_when_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_LARGE", 10)
    monkeypatch.setattr(cache, "_SETTLED_NS", -1)
    read: list[Path] = []
    plain = cache._digest_bytes
    monkeypatch.setattr(cache, "_digest_bytes", lambda p: (read.append(p), plain(p))[1])
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(100))
    before = cache.digest_file(file)
    assert cache.digest_file(file) == before
    assert len(read) == 1
    stat = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"\1")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the size and the time are as before
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert cache.digest_file(file) != before
    assert len(read) == 2


def test_what_was_written_just_now_is_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write may fall into the same tick of the file system's clock."""
    monkeypatch.setattr(cache, "_LARGE", 10)
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(100))
    same = file.stat()
    before = cache.digest_file(file)
    file.write_bytes(bytes(99) + b"\1")

    class Clock(type(file)):  # type: ignore[misc]
        def stat(self, **_: bool) -> os.stat_result:
            return same

    assert cache.digest_file(Clock(file)) != before
