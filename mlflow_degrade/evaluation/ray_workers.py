"""Workers of an evaluation as Ray actors, on this machine or in a cluster that is there."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from ..core import errors
from ..core.errors import DegradeError, EngineError, InputError, MissingExtraError
from ..engine.providers import cpu_count, on_gpu, resolve_device
from ..engine.session import DecoderInputs
from .shards import Answering, Place, Unit, worker_facts

LOCAL = "local"
WAIT = 60.0
"""Seconds within which a cluster answers and a first worker is there."""
_TRIES = 3  # of one shard, before the fault is taken for the shard's
_HEAD = "start one with 'ray start --head --port=6379', or use --ray local"


class Worker(Answering):
    """What an actor does; errors of this package cross over as type and text."""

    def call(self, name: str, *given: Any) -> Any:
        """The answer of a method, or the error that it raised."""
        try:
            return getattr(self, name)(*given)
        except DegradeError as error:
            return _Raised(type(error).__name__, str(error))


class _Raised:
    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text

    def error(self) -> DegradeError:
        """The error again; those that are made of parts as the one above them."""
        kind = getattr(errors, self.kind, EngineError)
        if kind.__init__ is not DegradeError.__init__:
            kind = EngineError
        error: DegradeError = kind(self.text)
        return error


class RayWorkers:
    """Actors, each with sessions of its own; one that dies is replaced, and its shard redone."""

    def __init__(self, address: str, *, threads: int, count: int, wait: float = WAIT) -> None:
        import ray

        self._ray, self._wait, self._address = ray, wait, address
        self.threads, self.count = threads, count
        # On other machines the same path may hold something else.
        self.shared_files = address == LOCAL
        self._expected = worker_facts(threads)
        self.pids: list[int] = []  # of all workers so far, on whatever machine
        self._busy: dict[Any, tuple[Any, int | None]] = {}  # call → actor and unit, if any
        self._idle: list[Any] = []
        self._died = 0  # since one answered
        for _ in range(count):
            self._start()
        self._first()

    def _start(self) -> None:
        """One more worker, which says first of all what and where it is."""
        actor = self._ray.remote(Worker).options(num_cpus=self.threads, max_restarts=0).remote()
        self._busy[actor.call.remote("facts", self.threads)] = actor, None

    def _first(self) -> None:
        end = time.monotonic() + self._wait
        while not self._idle:
            if not self._finished(max(0.0, end - time.monotonic())):
                raise InputError(
                    f"no worker with {self.threads} processor(s) came up at {self._address} within "
                    f"{self._wait:g} s: its machines are busy (ray status tells); wait, or lower "
                    "--ray-workers."
                )

    def _finished(self, seconds: float | None) -> list[tuple[int, Any]]:
        """Units with their answers, after at most so long; −1 stands for a worker that is ready."""
        ray = self._ray
        done, _ = ray.wait(list(self._busy), num_returns=1, timeout=seconds)
        found: list[tuple[int, Any]] = []
        for call in done:
            actor, unit = self._busy.pop(call)
            try:
                answer = ray.get(call)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                self._replace(actor, error)
                found.append((-1 if unit is None else unit, error))
                continue
            if isinstance(answer, _Raised):
                raise answer.error()
            if isinstance(answer, dict):
                self._check(answer)
            self._died = 0
            self._idle.append(actor)
            found.append((-1 if unit is None else unit, answer))
        return found

    def _replace(self, actor: Any, error: Exception) -> None:
        with suppress(Exception):
            self._ray.kill(actor)
        self._died += 1
        if self._died >= _TRIES * self.count:
            raise EngineError(
                f"{self._died} workers died one after the other, at last by {_first_line(error)}: "
                "mlflow-degrade has to be installed where they run, and the model has to fit into "
                "memory once per worker; take fewer with --ray-workers."
            ) from error
        self._start()

    def _check(self, facts: dict[str, Any]) -> None:
        said = "; ".join(
            f"{name} {facts[name]!s} there and {here!s} here"
            for name, here in self._expected.items()
            if facts[name] != here
        )
        self.pids.append(facts["pid"])
        if said:
            raise InputError(
                f"the worker on {facts['host']} would not compute what this machine does ({said}): "
                "use machines of one kind with the same versions, and start the command on one of "
                "them."
            )

    def inputs(self, place: Place) -> DecoderInputs:
        """What a decoder takes."""
        ((_, found),) = self._calls("inputs", [(place,)])
        inputs: DecoderInputs = found
        return inputs

    def answers(self, place: Place, units: Sequence[Unit]) -> Iterator[tuple[int, pa.Table]]:
        """Each unit's answers once, in whatever order they come."""
        yield from self._calls("answer", [(place, unit) for unit in units])

    def _calls(self, name: str, given: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        waiting, tries, left = deque(range(len(given))), Counter[int](), len(given)
        try:
            while left:
                while waiting and self._idle:
                    actor, unit = self._idle.pop(), waiting.popleft()
                    self._busy[actor.call.remote(name, *given[unit])] = actor, unit
                works = any(unit is not None for _, unit in self._busy.values())
                answered = self._finished(None if works else self._wait)
                if not answered and not works:
                    raise EngineError(
                        f"no worker is left, and none came back within {self._wait:g} s: what is "
                        "answered is kept; start the same command again when the cluster is back."
                    )
                for unit, answer in answered:
                    if unit < 0:
                        continue
                    if isinstance(answer, self._ray.exceptions.RayError):
                        tries[unit] += 1
                        if tries[unit] >= _TRIES:
                            raise EngineError(_no_worker(tries[unit], answer))
                        waiting.appendleft(unit)
                        continue
                    left -= 1
                    yield unit, answer
        finally:
            # Who is still at work answers nobody, and is ready when that is done.
            self._busy = {call: (actor, None) for call, (actor, _) in self._busy.items()}


def _no_worker(times: int, error: Exception) -> str:
    return (
        f"workers died {times} times over one shard ({_first_line(error)}): most often "
        "memory ran out, as each worker holds the model; take fewer with --ray-workers. What is "
        "answered is kept, and the same command goes on with it."
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@contextmanager
def ray_workers(
    address: str, workers: int | None = None, *, device: str = "auto", wait: float = WAIT
) -> Iterator[RayWorkers]:
    """Workers on this machine (``"local"``) or of a cluster, as long as the block lasts."""
    if workers is not None and workers < 1:
        raise InputError(f"--ray-workers is {workers}: at least one worker has to answer.")
    if on_gpu(resolve_device(device)):
        raise InputError(
            "--ray deals an evaluation out to processors, and the device is a GPU: add --device "
            "cpu, or leave --ray out."
        )
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    # Ray puts a handler of its own in the place of the one that ends the run in MLflow.
    handler, main = signal.getsignal(signal.SIGTERM), threading.current_thread()
    try:
        _connect(ray, address, wait)
    finally:
        if main is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)
    try:
        machines = _processors(ray) if address != LOCAL else [cpu_count()]
        count, threads = share_out(machines, workers)
        yield RayWorkers(address, threads=threads, count=count, wait=wait)
    finally:
        ray.shutdown()


def share_out(machines: Sequence[int], workers: int | None) -> tuple[int, int]:
    """How many workers there are, with how many threads each, on machines with so many cores.

    Examples
    --------
    >>> share_out([2], None), share_out([16], 4), share_out([8, 6], 3)
    ((2, 1), (4, 4), (3, 4))
    """
    most = sum(machines)
    count = most if workers is None else workers
    if count > most:
        raise InputError(
            f"--ray-workers {count} is more than the {most} processor(s) that are there: each "
            "worker needs one."
        )
    threads = max(t for t in range(1, max(machines) + 1) if sum(c // t for c in machines) >= count)
    return count, threads


def _processors(ray: Any) -> list[int]:
    cores = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
    return [count for count in cores if count]


def _connect(ray: Any, address: str, wait: float) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    # Ray would report the use of it to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:
        try:
            ray.init(
                address=LOCAL,
                num_cpus=cpu_count(),
                include_dashboard=False,
                object_store_memory=128 << 20,
                **quiet,
            )
        except Exception as error:  # Ray raises plain exceptions here
            raise EngineError(
                f"Ray does not start on this machine ({_first_line(error)}): it gives up after "
                "30 s, so try again when the machine is less busy, or leave --ray out. Nothing was "
                "evaluated."
            ) from error
        return
    if "://" in address:
        raise InputError(
            f"--ray {address}: give HOST:PORT of the cluster's head, as in 10.0.0.1:6379, and "
            "start the command on a machine of the cluster."
        )
    _require_head(address, wait, ray.util.get_node_ip_address())
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"the Ray cluster at {address} does not take this command ({_first_line(error)}): "
            "start it on a machine of the cluster, with the cluster's version of Ray, and with "
            "RAY_AUTH_MODE=token where the head says that token authentication is enabled. "
            "Nothing was evaluated."
        ) from error


# What a client of HTTP/2, and so of gRPC, says first; a server answers with its settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4


def _require_head(address: str, wait: float, here: str = "") -> None:
    """Ask whether somebody is there who speaks as a head does: Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise InputError(
            f"--ray {address!r} is neither 'local' nor HOST:PORT such as 10.0.0.1:6379: {_HEAD}."
        )
    # Ray takes this machine's own address for the loopback.
    hosts = [host, *([here] if here and host in ("127.0.0.1", "localhost") else ())]
    reason = ""
    for name in hosts:
        try:
            with socket.create_connection((name, int(port)), timeout=wait) as head:
                head.sendall(_HELLO)
                said = head.recv(9)
        except (OSError, OverflowError) as error:
            reason = str(error)
            continue
        if said[3:4] == bytes((_SETTINGS,)):
            return
        reason = "what listens there is no head of Ray"
    raise _absent(address, wait, reason)


def _absent(address: str, wait: float, reason: str) -> InputError:
    first = reason.strip().splitlines()[0] if reason.strip() else "no answer"
    return InputError(
        f"there is no Ray cluster at {address} (waited at most {wait:g} s: {first}): {_HEAD}. "
        "Nothing was evaluated."
    )
