"""A small HTTP proxy before a real server: it counts, slows down, and says when a request comes."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_BLOCK = 1 << 20
# Those of one connection, not of the request that goes over it.
_HOP = {"connection", "keep-alive", "transfer-encoding", "host"}


@dataclass
class Relay:
    """What went through the proxy, and what happens on the way.

    Attributes
    ----------
    upstream : str
        The server's address.
    delay : float
        Seconds before each request is passed on.
    requests : list of str
        ``METHOD /path`` of each request, without its query.
    before, after : callable or None
        Called with the number of the request (from 1), before it is passed on, and after its
        answer arrived but before the client gets it.
    """

    upstream: str
    delay: float = 0.0
    requests: list[str] = field(default_factory=list)
    before: Callable[[int], None] | None = None
    after: Callable[[int], None] | None = None
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, line: str) -> int:
        with self._lock:
            self.requests.append(line)
            return len(self.requests)

    def downloads(self) -> list[str]:
        """Paths of the artifacts that were downloaded, each as often as it was."""
        routes = ("/get-artifact", "/mlflow-artifacts/artifacts/", "/artifacts/files")
        return [r for r in self.requests if r.startswith("GET ") and any(p in r for p in routes)]


@contextmanager
def relayed(upstream: str) -> Iterator[Relay]:
    """A proxy for a server at `upstream` while the context lasts; its address is ``url``."""
    relay = Relay(upstream)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.relay = relay
    relay.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield relay
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    relay: Relay


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None: ...

    def handle(self) -> None:
        target = urlsplit(self.server.relay.upstream)
        self._up = http.client.HTTPConnection(target.hostname or "", target.port, timeout=600)
        with suppress(ConnectionError):  # the client was killed
            super().handle()
        self._up.close()

    def _pass_on(self) -> None:
        relay = self.server.relay
        number = relay.enter(f"{self.command} {urlsplit(self.path).path}")
        length = int(self.headers.get("Content-Length") or 0)
        if relay.before is not None:
            relay.before(number)
        if relay.delay:
            time.sleep(relay.delay)
        body = self._body(length)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        try:
            self._up.request(self.command, self.path, body=body or None, headers=headers)
            answer = self._up.getresponse()
        except (OSError, http.client.HTTPException):
            self._up.close()
            self.send_error(502, "the server behind the proxy does not answer")
            return
        if relay.after is not None:
            relay.after(number)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {*_HOP, "date", "server"}:
                self.send_header(name, value)
        known = answer.getheader("Content-Length") is not None
        if not known:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while block := answer.read(_BLOCK):
            self.wfile.write(block if known else b"%x\r\n%s\r\n" % (len(block), block))
        if not known:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass_on
