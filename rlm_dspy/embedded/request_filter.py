"""Accepts requests to the embedded server from programs on this machine, and rejects those of web pages.

A page may send simple requests to any port, and by DNS rebinding read the answers.
So requests that name another host, come from another origin, or have a body that is not JSON are rejected.
"""

from __future__ import annotations

import http.client
import ipaddress
import threading
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANY = "0.0.0.0"  # noqa: S104 (compared with, not bound to)
_LOOPBACK = frozenset({"localhost"})
_MOST_BYTES = 64 << 20
_PIECE = 1 << 16
_IDLE_SECONDS = 60
_OF_THE_CONNECTION = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


def refusal(method: str, headers: Mapping[str, str], names: frozenset[str]) -> tuple[int, str] | None:
    """Return the status and reason to reject a request with; None to accept it.

    Args:
        method: The HTTP method.
        headers: The headers, with names in any case.
        names: The names of this host; `localhost` includes the loopback addresses, `0.0.0.0` all.
    """
    sent = {name.lower(): value for name, value in headers.items()}
    if not _is_own(f"//{sent.get('host', '')}", names):
        return 403, "The request names another host: use localhost or the address that the server listens on."
    origin = sent.get("origin")
    if sent.get("sec-fetch-site") == "cross-site" or (origin and not _is_own(origin, names)):
        return 403, "The request comes from a page of another site."
    if method == "POST" and sent.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "Send the body as application/json."
    length = sent.get("content-length", "0")
    if "transfer-encoding" in sent or not length.isdigit() or int(length) > _MOST_BYTES:
        return 411, "Send the length of the body, of 64 MiB at most."
    return None


def _is_own(url: str, names: frozenset[str]) -> bool:
    """Return whether a URL names this host. An IP address cannot be rebound."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
        if host in names:
            return True
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return _ANY in names or ("localhost" in names and address.is_loopback)


class Gate(ThreadingHTTPServer):
    """Forwards the requests that it accepts to a server on its own port with a key.

    Args:
        host: The address to listen on.
        port: 0 picks a free one.

    Raises:
        OSError: If it cannot listen there.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        super().__init__((host, port), _Request)
        own = frozenset({host.lower()})
        self.names = own | _LOOPBACK if host == _ANY or _is_own(f"//{host}", _LOOPBACK) else own
        self.inner, self.key = "", ""

    @property
    def address(self) -> str:
        """The URL that it listens on."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def open(self, inner: str, key: str) -> None:
        """Start to forward requests to the server at the URL `inner`, which requires `key`."""
        self.inner, self.key = urlsplit(inner).netloc, key
        threading.Thread(target=self.serve_forever, name="embedded-gate", daemon=True).start()


class _Request(BaseHTTPRequestHandler):
    """Answers one request as in HTTP/1.0: the end of the connection ends the body, also of a stream."""

    server: Gate
    timeout = _IDLE_SECONDS
    error_content_type = "application/json"
    error_message_format = (
        '{"error": {"message": "%(explain)s", "type": "invalid_request_error", "code": %(code)d}}'
    )

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_POST(self) -> None:
        self._pass_on(self.headers.get("Content-Length", "0"))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _pass_on(self, length: str | None) -> None:
        if refused := refusal(self.command, dict(self.headers), self.server.names):
            status, reason = refused
            self.send_error(status, explain=reason)
            return
        body = None if length is None else self.rfile.read(int(length))
        with suppress(ConnectionError), closing(http.client.HTTPConnection(self.server.inner)) as connection:
            headers = {"Authorization": f"Bearer {self.server.key}", "Content-Type": "application/json"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OF_THE_CONNECTION and not name.lower().startswith("access-control-"):
                    self.send_header(name, value)
            self.end_headers()
            while piece := answer.read1(_PIECE):
                self.wfile.write(piece)
