"""A small server with OpenAI's completions: a real model answers, and it can have troubles."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class TinyServer:
    """Answers by a Hugging Face model in float32; what it does wrong is set from outside.

    Attributes
    ----------
    troubles : deque of str
        Of the next requests: ``drop``, ``cut`` (half an answer), ``500``, ``429``, ``slow``,
        ``duplicate`` (a choice twice), ``lost`` (a choice missing), ``misnumbered`` (one said to
        be the next prompt's), or ``400``.
    answered : Counter
        How often each prompt was scored.
    """

    def __init__(self, folder: Path, name: str = "tiny") -> None:
        self.troubles: deque[str] = deque()
        self.answered: Counter[tuple[int, ...]] = Counter()
        self.seen_keys: set[str] = set()
        self.most_at_once = self._now = 0
        self.takes_ids, self.gives_likelihoods = True, True
        self.decimals: int | None = None
        self.shifted = self.puts_begin = False
        self.constant = 0.0  # Added to log-probabilities, as to numbers that are none.
        self.neighbours = 0.0  # Added to log-probabilities while others are computed.
        self.owner, self.version = "vllm", "0.0.test"
        self.swap_after: tuple[int, Path, str] | None = None
        self._lock = threading.Lock()
        self.load(folder, name)

    def load(self, folder: Path, name: str | None = None) -> None:
        """Serve this model from now on."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.folder, self.name = folder, name or self.name
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    # -- answers --------------------------------------------------------------------------

    def models(self) -> dict[str, Any]:
        about = {"id": self.name, "owned_by": self.owner, "root": self.name, "max_model_len": 256}
        return {"object": "list", "data": [about]}

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        if body.get("model") not in (None, self.name):
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
        prompt = body["prompt"]
        single = isinstance(prompt, str) or isinstance(prompt[0], int)
        prompts = [prompt] if single else prompt
        if not self.takes_ids and not all(isinstance(p, str) for p in prompts):
            return 500, {"error": {"message": "Input should be a valid string"}}
        choices = [self._choice(index, given, body) for index, given in enumerate(prompts)]
        read = [choice.pop("read") for choice in choices]
        usage = {"prompt_tokens": sum(read)}
        return 200, {"model": self.name, "choices": choices, "usage": usage}

    def _choice(self, index: int, given: str | list[int], body: dict[str, Any]) -> dict[str, Any]:
        import torch

        ids = self.tokenizer(given)["input_ids"] if isinstance(given, str) else list(given)
        begin = [self.tokenizer.bos_token_id] if self.puts_begin and isinstance(given, str) else []
        whole = begin + ids
        new: list[int] = []
        with torch.no_grad(), self._lock:
            for _ in range(body["max_tokens"]):
                logits = self.model(torch.tensor([whole + new])).logits[0, -1]
                new.append(int(logits.argmax()))
            table = torch.log_softmax(
                self.model(torch.tensor([whole + new])).logits[0].double(), -1
            )
        text = self.tokenizer.decode(new)
        for stop in body.get("stop") or ():
            text = text.split(stop)[0]
        choice = {"index": index, "text": text, "read": len(whole), "finish_reason": "length"}
        top = body.get("logprobs")
        if top is None or not self.gives_likelihoods:
            return {**choice, "logprobs": None}
        moved = int(self.shifted and bool(body.get("echo")))
        first = len(begin) if body.get("echo") else len(whole)
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
        for place in range(first, len(whole) + len(new)):
            token = (whole + new)[place]
            columns["tokens"].append(self._name(token))
            row = table[place - 1 + moved] if place else None
            likely = None if row is None else torch.topk(row, max(top, 1)).indices.tolist()
            columns["token_logprobs"].append(None if row is None else self._value(row[token]))
            columns["top_logprobs"].append(
                likely and {self._name(i): self._value(row[i]) for i in [*likely, token]}
            )
        if body.get("echo") and columns["tokens"]:
            columns["token_logprobs"][0] = columns["top_logprobs"][0] = None
            self.answered[tuple(ids)] += 1
        return {**choice, "logprobs": columns}

    def _name(self, token: int) -> str:
        text: str = self.tokenizer.decode([token])
        return f"token_id:{token}" if "\N{REPLACEMENT CHARACTER}" in text else text

    def _value(self, number: Any) -> float:
        value = float(number) + self.constant
        if self.neighbours and self._now > 1:
            value -= self.neighbours
        return value if self.decimals is None else round(value, self.decimals)

    # -- the server -----------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve; gives the address that ends in /v1."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/v1/models":
                    self._send(200, outer.models())
                elif self.path == "/version":
                    self._send(200, {"version": outer.version})
                else:
                    self._send(404, {"detail": "Not Found"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen_keys.add(str(self.headers.get("Authorization")))
                with outer._lock:
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                    trouble = outer.troubles.popleft() if outer.troubles else ""
                try:
                    self._answer(body, trouble)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with outer._lock:
                        outer._now -= 1

            def _answer(self, body: dict[str, Any], trouble: str) -> None:
                if outer.neighbours:
                    time.sleep(0.02)
                if trouble == "drop":
                    self.close_connection = True
                    self.connection.close()
                    return
                if trouble in ("500", "503", "429", "400"):
                    self._send(int(trouble), {"error": {"message": f"told to say {trouble}"}})
                    return
                if trouble == "slow":
                    time.sleep(1.5)
                status, found = outer.complete(body)
                if outer.swap_after is not None:
                    left, folder, name = outer.swap_after
                    outer.swap_after = (left - 1, folder, name)
                    if left <= 1:
                        outer.swap_after = None
                        outer.load(folder, name)
                if trouble == "duplicate" and status == 200:
                    found["choices"].append(found["choices"][0])
                if trouble == "misnumbered" and status == 200:
                    found["choices"][0]["index"] += 1
                if trouble == "lost" and status == 200:
                    found["choices"].pop()
                self._send(status, found, cut=trouble == "cut")

            def _send(self, status: int, found: dict[str, Any], cut: bool = False) -> None:
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                self.close_connection = cut or self.close_connection

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            server.server_close()


@contextmanager
def scoring_server(model_uri: str) -> Iterator[str]:
    """MLflow's scoring server around a logged model, as ``mlflow models serve`` runs it."""
    import mlflow
    import uvicorn
    from mlflow.pyfunc.scoring_server import init

    app = init(mlflow.pyfunc.load_model(model_uri))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
