"""A hub on the loopback interface that lists repositories, sends files from any byte on, dies and hangs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = "somebody/Tiny-GGUF"
COMMIT = "c" * 40


@dataclass
class Hub:
    """A hub with one repository.

    Attributes:
        files: The contents by name.
        url: Of the hub.
        errors: The status and error code to answer with, by a piece of the path.
        sums: The listed SHA-256, where it is not that of the content.
        dies_at: The bytes after which the next download breaks off.
        hangs_at: The bytes after which a download stops and stays open.
        silent: Whether nothing is answered.
        hung: Set when a download has stopped.
        ranges: The first byte of each download, by file, in order.
    """

    files: dict[str, bytes]
    url: str = ""
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    dies_at: int | None = None
    hangs_at: int | None = None
    silent: bool = False
    hung: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    ranges: list[tuple[str, int]] = field(default_factory=list)

    def listing(self) -> bytes:
        """Return what `GET /api/models/...` answers."""
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": "b" * 40,
                "lfs": {
                    "sha256": self.sums.get(name, hashlib.sha256(data).hexdigest()),
                    "size": len(data),
                    "pointerSize": 100,
                },
            }
            for name, data in self.files.items()
        ]
        return json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        if self.hub.silent:
            self.hub.over.wait(60)
            return
        path = unquote(urlsplit(self.path).path)
        refused = next((answer for piece, answer in self.hub.errors.items() if piece in path), None)
        if refused:
            self._head(refused[0], 0, {"X-Error-Code": refused[1]})
        elif path.startswith("/api/models/"):
            self._head(200, len(self.hub.listing()), {"Content-Type": "application/json"})
            self.wfile.write(self.hub.listing())
        else:
            self._file(path, with_body=with_body)

    def _file(self, path: str, *, with_body: bool) -> None:
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if (data := self.hub.files.get(name)) is None:
            self._head(404, 0, {"X-Error-Code": "EntryNotFound"})
            return
        first = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].partition("-")[0])
        told = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if "Range" in self.headers:
            told["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._head(206 if first else 200, len(data) - first, told)
        if with_body:
            self.hub.ranges.append((name, first))
            self._send(data[first:])

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            if self.hub.dies_at is not None:
                self.wfile.write(data[: self.hub.dies_at])
                self.hub.dies_at = None
                return
            if self.hub.hangs_at is not None:
                self.wfile.write(data[: self.hub.hangs_at])
                self.wfile.flush()
                self.hub.hung.set()
                self.hub.over.wait(120)
                return
            self.wfile.write(data)


@contextlib.contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve a hub."""
    hub = Hub(files)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        hub.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.over.set()
            http.shutdown()
