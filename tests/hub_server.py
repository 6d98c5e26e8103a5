"""A small Hugging Face hub on this machine: data sets from memory, by the hub's own protocol."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_SHA = "1" * 40


@contextmanager
def hub_of(data_sets: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """Serve files by ``org/name`` and path; gives the address for ``HF_ENDPOINT``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self._answer(self.rfile.read(length).decode())

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: str = "") -> None:
            path = unquote(urlsplit(self.path).path)
            parts = path.removeprefix("/api").removeprefix("/datasets/").split("/")
            files = data_sets.get("/".join(parts[:2]))
            if files is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            what, rest = (parts[2] if len(parts) > 2 else "revision"), "/".join(parts[4:])
            if what == "resolve":
                if rest not in files:
                    return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                tag = hashlib.sha1(files[rest]).hexdigest()
                return self._send(200, files[rest], {"X-Repo-Commit": _SHA, "ETag": f'"{tag}"'})
            listed = [_entry(name, content) for name, content in files.items()]
            if what == "tree":
                below = [e for e in listed if str(e["path"]).startswith(rest)]
                return self._json(below)
            if what == "paths-info":
                asked = json.loads(body)["paths"] if body.startswith("{") else _paths(body)
                return self._json([e for e in listed if e["path"] in asked])
            name = "/".join(parts[:2])
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": name, "sha": _SHA, "siblings": siblings, "tags": []})

        def _json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _entry(name: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": digest}


def _paths(body: str) -> list[str]:
    """Of a form, in which a key may be given several times."""
    pairs = (pair.partition("=") for pair in body.split("&"))
    return [unquote(value.replace("+", " ")) for key, _, value in pairs if key == "paths"]
