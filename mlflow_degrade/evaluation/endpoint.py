"""A server with OpenAI's completions, asked so that no answer is lost, doubled or of another model.

Requests have places, and answers are put there. What a network does (a connection that breaks, a
busy server, half an answer) is asked again; what a server refuses is said. Answers are handed on in
groups, and of a group only once the server has said again, after its last answer, who it is.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import requests

from ..core.errors import HIDDEN, EngineError, InputError, UnknownNameError

Protocol = Literal["completions", "mlflow"]
"""Where completions are asked for: ``/v1/completions``, or ``/invocations`` of a served model."""

KEY = "OPENAI_API_KEY"
"""Variable with the key that is sent; it is never written anywhere."""

# Answers between two looks at who is answering.
_GROUP = 128
_LONGEST_WAIT = 10.0
_BUSY = (408, 425, 429)
_OWNERS = {"llamacpp": "llama.cpp", "me": "llama-cpp-python", "tensorrt_llm": "TensorRT-LLM"}
# The log-probability of a token may be apart by so much, in nats, in two answers of one model.
_SAME = 0.02


@dataclass(frozen=True)
class Identity:
    """What a server says of itself; equal as long as the same model answers."""

    engine: str  # E.g. ``"vllm"``; ``"unknown"`` where nobody says.
    version: str  # Empty where neither the server nor the user says.
    model: str  # The name that is asked for.
    root: str = ""  # Where the weights lie on the server.
    context: int | None = None  # Most tokens of a text.
    digest: str | None = None  # Of the weights, by the server's word.

    def __str__(self) -> str:
        stated = [self.engine, self.version, f"model {self.model!r}"]
        stated += [f"from {self.root}"] if self.root and self.root != self.model else []
        return " ".join(part for part in [*stated, self.digest or ""] if part)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for logging."""
        return asdict(self)


class RefusedError(EngineError):
    """A request that the server will not answer, however often it is asked."""

    def __init__(self, status: int, text: str, where: str) -> None:
        super().__init__(f"{where} answers {status}: {_short(text)}")
        self.status = status


class Endpoint:
    """A server and how it is asked."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        protocol: Protocol = "completions",
        engine: str | None = None,
        version: str | None = None,
        concurrency: int = 8,
        timeout: float = 300.0,
        patience: float = 120.0,
        group: int = _GROUP,
    ) -> None:
        if protocol not in get_args(Protocol):
            raise UnknownNameError("protocol", protocol, get_args(Protocol))
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"base_url {base_url!r} is no address of a server: write e.g. "
                "base_url=http://localhost:8000/v1."
            )
        for name, value, least in (
            ("concurrency", concurrency, 1), ("timeout", timeout, 0.1), ("patience", patience, 0)
        ):  # fmt: skip
            if not value >= least:
                raise InputError(f"{name} is {value}, the least is {least}.")
        self.protocol, self.concurrency = protocol, concurrency
        self.base = base_url.rstrip("/").removesuffix("/completions").removesuffix("/invocations")
        # Where a server's own pages are: beside v1, not in it.
        self.root = self.base.removesuffix("/v1")
        self._asked_model, self._stated = model, (engine, version)
        self._timeout, self._patience, self._group = timeout, patience, group
        self._local, self._lock = threading.local(), threading.Lock()
        self._stop = threading.Event()
        self.requests = 0  # Answered ones.
        self.retries = 0
        self._canary: tuple[dict[str, Any], list[float]] | None = None
        self.identity = self._identify()

    # -- who answers ----------------------------------------------------------------------

    def confirm(self, *, canary: bool = True) -> None:
        """Stop where another model answers than at the beginning."""
        now = self._identify()
        if now != self.identity:
            raise EngineError(
                f"the server at {self.root} is another one than before: {now}, and it was "
                f"{self.identity}. Nothing was logged; evaluate again, and let one model answer."
            )
        if not canary or self._canary is None:
            return
        body, before = self._canary
        after = self._likelihoods(body)
        apart = max((abs(a - b) for a, b in zip(after, before, strict=False)), default=0.0)
        if len(after) != len(before) or apart > _SAME:
            raise EngineError(
                f"the model at {self.root} gives the same text other log-probabilities than "
                f"before, by up to {apart:.2g} nats (limit {_SAME:g}): it still says that it is "
                f"{self.identity}, but its weights or settings were changed. Nothing was logged; "
                "evaluate again, and let one model answer."
            )

    def remember(self, body: dict[str, Any]) -> list[float]:
        """Know the model by what it answers to this from now on."""
        self._canary = body, self._likelihoods(body)
        return self._canary[1]

    def _likelihoods(self, body: dict[str, Any]) -> list[float]:
        [choice] = self.ask_one(body)
        stated = (choice.get("logprobs") or {}).get("token_logprobs") or []
        return [float(value) for value in stated if value is not None]

    def _identify(self) -> Identity:
        engine, version = self._stated
        if self.protocol == "mlflow":
            return self._served(engine, version)
        listed = self._page(f"{self.base}/models", needed=True)
        models = listed.get("data") if isinstance(listed, Mapping) else None
        if not isinstance(models, list) or not models:
            raise EngineError(
                f"{self.base}/models names no model ({_short(str(listed))}): base_url is the "
                "address that ends before /completions, e.g. http://localhost:8000/v1."
            )
        by_name = {str(each.get("id")): each for each in models if isinstance(each, Mapping)}
        known = hasattr(self, "identity")
        name = self.identity.model if known else self._asked_model or next(iter(by_name), "")
        if known and name not in by_name:
            name = next(iter(by_name))  # another one, which is said
        if name not in by_name:
            raise UnknownNameError(f"model of {self.root}", name, by_name)
        if not known and self._asked_model is None and len(by_name) > 1:
            raise InputError(
                f"{self.root} serves {len(by_name)} models ({', '.join(sorted(by_name)[:8])}): "
                "name one with model=."
            )
        about = by_name[name]
        owner = str(about.get("owned_by") or "")
        found, its_version = self._version(owner)
        context = about.get("max_model_len") or _of(about.get("meta"), "n_ctx_train")
        return Identity(
            engine=engine or found,
            version=its_version or version or "",
            model=name,
            root=str(about.get("root") or ""),
            context=int(context) if context else None,
        )

    def _version(self, owner: str) -> tuple[str, str]:
        """Engine and version, by the page that each engine has of its own."""
        if owner == "sglang":
            stated = self._page(f"{self.root}/get_server_info")
            return owner, str(_of(stated, "version") or "")
        if owner == "llamacpp":
            stated = self._page(f"{self.root}/props")
            return _OWNERS[owner], str(_of(stated, "build_info") or "")
        stated = self._page(f"{self.root}/version")
        return _OWNERS.get(owner, owner) or "unknown", str(_of(stated, "version") or "")

    def _served(self, engine: str | None, version: str | None) -> Identity:
        """Of a model behind ``mlflow models serve``, which names itself in its answers."""
        stated = self._page(f"{self.root}/version", needed=True, json=False)
        body = {"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 0}
        answer = self._patiently(lambda: self._post(body))
        name, _, digest = str(answer.get("model") or "").partition("@")
        return Identity(
            engine=engine or "mlflow",
            version=version or str(stated).strip().strip('"'),
            model=name or self._asked_model or "unknown",
            digest=digest or None,
        )

    def _page(self, url: str, *, needed: bool = False, json: bool = True) -> Any:
        """What a page says; None where there is no such page."""

        def read() -> Any:
            answer = self._session.get(url, timeout=min(self._timeout, 60.0))
            if answer.status_code >= 500 or answer.status_code in _BUSY:
                raise AgainError(f"{url} answers {answer.status_code}", busy=answer)
            if answer.status_code >= 400:
                raise RefusedError(answer.status_code, answer.text, url)
            return answer.json() if json else answer.text

        try:
            return self._patiently(read) if needed else read()
        except RefusedError as error:
            if not needed:
                return None
            raise EngineError(f"{error} {self._remedy(error.status)}") from error
        except (AgainError, requests.RequestException, ValueError):
            if needed:
                raise
            return None

    # -- asking ---------------------------------------------------------------------------

    def ask(
        self,
        bodies: Sequence[dict[str, Any]],
        keep: Callable[[int, list[dict[str, Any]]], None],
        *,
        advance: Callable[[int], None] = lambda _count: None,
        concurrency: int | None = None,
    ) -> None:
        """Hand the choices of each body to `keep`, with the body's place, once."""
        for start in range(0, len(bodies), self._group):
            part = bodies[start : start + self._group]
            answers = self._together(part, concurrency or self.concurrency, advance)
            self.confirm()
            for place in sorted(answers):
                keep(start + place, answers[place])

    def ask_one(self, body: dict[str, Any], *, once: bool = False) -> list[dict[str, Any]]:
        """The choices of one body, by their index."""
        return self._choices(body, once=once)

    def _together(
        self, bodies: Sequence[dict[str, Any]], concurrency: int, advance: Callable[[int], None]
    ) -> dict[int, list[dict[str, Any]]]:
        places: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(bodies)):
            places.put(place)
        found: queue.SimpleQueue[tuple[int, list[dict[str, Any]] | BaseException]]
        found = queue.SimpleQueue()
        self._stop.clear()

        def work() -> None:
            while not self._stop.is_set():
                try:
                    place = places.get_nowait()
                except queue.Empty:
                    return
                try:
                    found.put((place, self._choices(bodies[place])))
                except BaseException as error:  # noqa: BLE001 - raised where answers are waited for
                    found.put((place, error))
                    return

        # Threads of a pool would be waited for when the program is told to stop.
        for _ in range(min(concurrency, len(bodies))):
            threading.Thread(target=work, daemon=True).start()
        answers: dict[int, list[dict[str, Any]]] = {}
        try:
            while len(answers) < len(bodies):
                place, answer = found.get()
                if isinstance(answer, BaseException):
                    raise answer
                answers[place] = answer
                advance(len(answer))
        finally:
            self._stop.set()
        return answers

    def _choices(self, body: dict[str, Any], *, once: bool = False) -> list[dict[str, Any]]:
        prompt = body["prompt"]
        many = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
        count = len(prompt) if many else 1

        def read() -> list[dict[str, Any]]:
            answer = self._post(body)
            choices = _in_order(answer, count)
            if count == 1:
                choices[0]["usage"] = answer.get("usage")
            return choices

        choices: list[dict[str, Any]]
        try:
            choices = self._patiently(read, internal=not once)
        except RefusedError as error:
            if once:
                raise
            self.confirm(canary=False)  # a model that is no longer there is refused as well
            raise EngineError(f"{error} {self._remedy(error.status)}") from error
        with self._lock:
            self.requests += 1
        return choices

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """One try."""
        if self.protocol == "mlflow":
            where, sent = f"{self.base}/invocations", body
        else:
            where, sent = f"{self.base}/completions", {"model": self.identity.model, **body}
        answer = self._session.post(where, json=sent, timeout=self._timeout)
        if answer.status_code in _BUSY or answer.status_code >= 500:
            raise AgainError(f"{where} answers {answer.status_code}: {_short(answer.text)}", answer)
        if answer.status_code >= 400:
            raise RefusedError(answer.status_code, answer.text, where)
        try:
            found = answer.json()
        except ValueError as error:
            raise AgainError(f"{where} answers no JSON: {_short(answer.text)}") from error
        if not isinstance(found, dict) or not isinstance(found.get("choices"), list):
            raise AgainError(f"{where} answers without choices: {_short(answer.text)}")
        named = str(found.get("model") or "")
        known = self.identity if hasattr(self, "identity") else None
        if known and known.digest and named != f"{known.model}@{known.digest}":
            raise EngineError(
                f"the answer is of {named}, and at the beginning {known} answered: nothing was "
                "logged; evaluate again, and let one model answer."
            )
        return found

    def _patiently(self, read: Callable[[], Any], *, internal: bool = True) -> Any:
        """What comes after as many tries as the patience allows."""
        begin, tries = time.monotonic(), 0
        while True:
            try:
                return read()
            except (AgainError, requests.RequestException) as error:
                if not internal and getattr(error, "status", None) == 500:
                    raise
                waited = time.monotonic() - begin
                if waited >= self._patience or self._stopped():
                    raise EngineError(
                        f"{self.root} did not answer in {waited:.0f} s and {tries + 1} tries "
                        f"({_reason(error)}): start the server, or look at what it says; answers "
                        "so far are kept, and the same command goes on where it stopped."
                    ) from error
                self._wait(error, tries, self._patience - waited)
                tries += 1
                with self._lock:
                    self.retries += 1
                # Who comes back after a break may be another.
                if isinstance(error, requests.RequestException):
                    self._if_back()

    def _if_back(self) -> None:
        """Compare what a server says that can be reached again."""
        if not hasattr(self, "identity") or getattr(self._local, "looking", False):
            return
        page = f"{self.base}/models" if self.protocol == "completions" else f"{self.root}/version"
        try:
            there = self._session.get(page, timeout=min(self._timeout, 10.0)).ok
        except requests.RequestException:
            return
        self._local.looking = True
        try:
            if there:
                self.confirm(canary=False)
        finally:
            self._local.looking = False

    def _stopped(self) -> bool:
        return threading.current_thread() is not threading.main_thread() and self._stop.is_set()

    def _wait(self, error: Exception, tries: int, left: float) -> None:
        stated = getattr(error, "after", None)
        pause = min(_LONGEST_WAIT, 0.1 * 2**tries) * random.uniform(0.75, 1.25)
        pause = min(max(pause, stated or 0.0), max(left, 0.05))
        if threading.current_thread() is threading.main_thread():
            time.sleep(pause)
        else:
            self._stop.wait(pause)

    @property
    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.auth = _bearer  # otherwise a .netrc would have its say
            self._local.session = session
        found: requests.Session = self._local.session
        return found

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            known = "is not accepted" if os.environ.get(KEY) else "is not set"
            return f"The key in the variable {KEY} {known}."
        if status == 404:
            return (
                "Nothing is there: base_url ends in /v1 for engines, and is the server's address "
                "alone with protocol=mlflow."
            )
        return "It is not asked again, as the answer would be the same."


class AgainError(Exception):
    """A try that may be worth another."""

    def __init__(self, text: str, busy: requests.Response | None = None) -> None:
        super().__init__(text)
        stated = "" if busy is None else busy.headers.get("Retry-After", "")
        self.after = min(float(stated), 60.0) if stated.isdecimal() else None
        self.status = None if busy is None else busy.status_code


def _bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
    key = os.environ.get(KEY)
    if key:
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _in_order(answer: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The choices of an answer, one for each prompt, by their index."""
    choices = answer["choices"]
    places = [choice.get("index", 0) for choice in choices if isinstance(choice, dict)]
    if sorted(places) != list(range(count)):
        raise AgainError(f"{count} prompts were sent, and the answer has the choices {places}")
    return [choice for _, choice in sorted(zip(places, choices, strict=True), key=lambda p: p[0])]


def _of(stated: Any, name: str) -> Any:
    return stated.get(name) if isinstance(stated, Mapping) else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(str(error))}".removeprefix("AgainError: ")


def _short(text: str) -> str:
    key = os.environ.get(KEY)
    text = " ".join(text.split())
    text = text.replace(key, HIDDEN) if key else text
    return text if len(text) <= 300 else f"{text[:299]}…"
