"""Workers of Ray: here and in a cluster, also when they are killed, or not there."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from engine_models import ModelDir

from mlflow_degrade.cli import run
from mlflow_degrade.core.errors import InputError, MissingExtraError
from mlflow_degrade.engine import decoder
from mlflow_degrade.engine.decoder import OnnxDecoder, Score
from mlflow_degrade.evaluation import ray_workers, shards
from mlflow_degrade.evaluation.ray_workers import share_out
from mlflow_degrade.evaluation.shards import ShardedDecoder, Sharding

pytestmark = pytest.mark.usefixtures("own_cache")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_cluster_that_is_not_there_is_named_with_the_limit_and_the_remedy() -> None:
    address = f"127.0.0.1:{_free_port()}"
    with pytest.raises(InputError) as refused:
        ray_workers._require_head(address, 5)
    for part in (address, "at most 5 s", "ray start --head", "Nothing was evaluated"):
        assert part in str(refused.value)
    for strange in ("head", "head:", ":6379", "head:port"):
        with pytest.raises(InputError, match="neither 'local' nor HOST:PORT"):
            ray_workers._require_head(strange, 5)


def test_what_listens_but_is_no_head_is_refused() -> None:
    def answer(listening: socket.socket, said: bytes) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(100)
            connection.sendall(said)
            with suppress(ConnectionError):
                connection.recv(100)  # until the other side leaves

    for said, why in (
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no head of Ray"),
        (b"", "timed out"),
    ):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            other = threading.Thread(target=answer, args=(listening, said))
            other.start()
            address = f"127.0.0.1:{listening.getsockname()[1]}"
            with pytest.raises(InputError, match=f"no Ray cluster at {address}.*{why}"):
                ray_workers._require_head(address, 1)
            other.join()


def test_cores_are_shared_out() -> None:
    assert share_out([2], None) == (2, 1)
    assert share_out([16], 4) == (4, 4)
    assert share_out([8, 6], 3) == (3, 4)
    with pytest.raises(InputError, match="3 is more than the 2 processor"):
        share_out([2], 3)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r"mlflow-degrade\[ray\]"),
        ray_workers.ray_workers("local", device="cpu"),
    ):
        pass


def test_no_worker_is_refused() -> None:
    with (
        pytest.raises(InputError, match="at least one worker"),
        ray_workers.ray_workers("local", 0, device="cpu"),
    ):
        pass


def test_evaluate_says_so_before_anything_is_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray", reason='pip install "mlflow-degrade[ray]" brings Ray')
    monkeypatch.chdir(tmp_path)
    address = f"127.0.0.1:{_free_port()}"
    asked = ["evaluate", "--model", "onnx", "--model-args", "pretrained=nowhere"]
    asked += ["--tasks", "starter", "--device", "cpu"]
    for more, says in (
        (["--ray", address], f"no Ray cluster at {address}"),
        (["--ray", "ray://there:1"], "give HOST:PORT of the cluster's head"),
        (["--ray-workers", "2"], "--ray-workers goes with --ray"),
        (["--ray", "local", "--model", "hf"], "evaluate with --model onnx"),
    ):
        assert run([*asked, *more]) == 3
        assert says in capfd.readouterr().err
    assert not own_cache.exists()


Requests = list[tuple[list[int], list[int]]]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Enough of them for many small shards."""
    pytest.importorskip("ray", reason='pip install "mlflow-degrade[ray]" brings Ray')
    monkeypatch.setattr(shards, "_MOST", 200)
    monkeypatch.setattr(decoder, "_ON_CPU", (64, 24))
    draw = random.Random(5).randrange
    return [([draw(5, 400) for _ in range(draw(4, 40))], [draw(5, 400)]) for _ in range(200)]


def _whole(folder: Path, asked: Requests) -> list[Score]:
    return OnnxDecoder(folder, device="cpu", threads=1).score(asked)


def _dealt(folder: Path, workers: Any) -> ShardedDecoder:
    sharding = Sharding(workers, {"model": "tiny"}, progress=False)
    return ShardedDecoder(folder, sharding, device="cpu", batch_size="auto")


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_and_doubles_nothing(
    model_dir: ModelDir, requests: Requests, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_dir("fp32")
    told: list[int] = []
    handler = signal.getsignal(signal.SIGTERM)
    with ray_workers.ray_workers("local", 2, device="cpu") as workers:
        assert signal.getsignal(signal.SIGTERM) is handler
        model, killed = _dealt(folder, workers), 0

        def tell(finished: list[tuple[int, Score]]) -> None:
            nonlocal killed
            told.extend(index for index, _ in finished)
            if len(told) > 20 and not killed:
                killed = workers.pids[0]
                os.kill(killed, signal.SIGKILL)

        found = model.score(requests, tell)
        assert killed
        assert len(set(workers.pids)) >= 2
        assert found == _whole(folder, requests)
        assert sorted(told) == list(range(len(requests)))

        # What is kept is not asked again.
        told.clear()
        asked: list[int] = []
        call = workers._calls

        def count(name: str, given: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
            asked.append(len(given))
            return call(name, given)

        monkeypatch.setattr(workers, "_calls", count)
        assert model.score(requests, tell) == found
        assert asked == [0]
        model.discard()
        assert not list((own_cache / "shards").rglob("*"))


@pytest.fixture
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A head on this machine, and the environment in which it takes commands."""
    ray = pytest.importorskip("ray", reason='pip install "mlflow-degrade[ray]" brings Ray')
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    address = f"{ray.util.get_node_ip_address()}:{(port := _free_port())}"
    command = (
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        f"--port={port}", "--num-cpus=2", "--include-dashboard=false",
    )  # fmt: skip
    head = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 180
        while True:
            try:
                ray_workers._require_head(address, 5)
                break
            except InputError:
                assert head.poll() is None, "ray start ended"
                assert time.monotonic() < end
                time.sleep(1)
        yield address, environment
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


_IN_A_CLUSTER = """
import sys
from mlflow_degrade.core.cache import digest_model
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.evaluation import ray_workers, shards

folder, address = sys.argv[1:]
asked = [([5 + i % 300, 9 + i % 7, 11, 12][: 2 + i % 3], [7 + i % 90]) for i in range(400)]
with ray_workers.ray_workers(address, 2, device="cpu", wait=180) as workers:
    sharding = shards.Sharding(workers, {"model": "tiny"}, progress=False)
    model = shards.ShardedDecoder(folder, sharding, device="cpu", batch_size="auto")
    assert model._dealt.place.digest == digest_model(model.folder)
    found = model.score(asked, lambda finished: None)
assert found == OnnxDecoder(folder, device="cpu", threads=1).score(asked)
print("equal")
"""


@pytest.mark.slow
def test_a_cluster_answers_as_one_process_and_checks_the_files(
    model_dir: ModelDir, cluster: tuple[str, dict[str, str]]
) -> None:
    address, environment = cluster
    command = [sys.executable, "-c", _IN_A_CLUSTER, str(model_dir("fp32")), address]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"
