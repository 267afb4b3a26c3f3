"""Accepts requests to the embedded server from programs on this machine, and rejects those of web pages.

A page may send simple requests to any port, and by a name that it has resolved to this machine read the answers.
So requests are refused that name another host, come from another origin, or have a body that is not JSON.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 (compared with, not bound to)
_LOOPBACK = frozenset({"localhost"})
_MOST_BYTES = 64 << 20
_PIECE = 1 << 16
_IDLE_SECONDS = 60
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


def refusal(method: str, headers: Mapping[str, str], names: frozenset[str]) -> tuple[int, str] | None:
    """Return the status and reason to reject a request with; None to accept it.

    Args:
        method: Of HTTP.
        headers: Their names in any case.
        names: The names of this host: with `localhost` its loopback addresses count, with `0.0.0.0` or `::` all.
    """
    sent = {name.lower(): value for name, value in headers.items()}
    host = _host(f"//{sent.get('host', '')}")
    if not _is_own(host, names):
        return (
            403,
            f"The request names the host {host!r}: use localhost or the address that the server listens on.",
        )
    origin = sent.get("origin")
    if sent.get("sec-fetch-site") == "cross-site" or (origin and not _is_own(_host(origin), names)):
        return 403, "The request comes from a page of another site."
    if method == "POST" and sent.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "Send the body as application/json."
    return None


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_own(host: str, names: frozenset[str]) -> bool:
    """Return whether this host is meant. An address cannot have been resolved to another."""
    if host in names:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return bool(names & _ANY) or ("localhost" in names and address.is_loopback)


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
        own = {host.lower()}
        self.names = frozenset(own | {"localhost"} if host in _ANY or _is_own(host, _LOOPBACK) else own)
        self.inner, self.key = "", ""

    @property
    def address(self) -> str:
        """The URL that it listens on."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def open(self, inner: str, key: str) -> None:
        """Start to forward requests to the server at the URL `inner`, which requires `key`."""
        self.inner, self.key = urlsplit(inner).netloc, key
        threading.Thread(target=self.serve_forever, name="embedded-gate", daemon=True).start()


class _Request(BaseHTTPRequestHandler):
    server: Gate
    timeout = _IDLE_SECONDS
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._pass_on("GET")

    def do_POST(self) -> None:
        self._pass_on("POST")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _pass_on(self, method: str) -> None:
        length = self.headers.get("Content-Length", "0")
        refused = refusal(method, dict(self.headers), self.server.names)
        whole = "Transfer-Encoding" not in self.headers and length.isdigit() and int(length) <= _MOST_BYTES
        if refused is None and not whole:
            refused = 411, "Send the length of the body, of 64 MiB at most."
        if refused is not None:
            self.close_connection = True  # its body is not read
            self._refuse(*refused)
            return
        body = self.rfile.read(int(length))
        with suppress(ConnectionError):
            self._answer(method, body)

    def _refuse(self, status: int, reason: str) -> None:
        body = json.dumps({"error": {"message": reason, "type": "invalid_request_error", "code": status}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, method: str, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.server.inner)
        try:
            headers = {"Authorization": f"Bearer {self.server.key}", "Content-Type": "application/json"}
            connection.request(method, self.path, body if method == "POST" else None, headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP and not name.lower().startswith("access-control-"):
                    self.send_header(name, value)
            self._send_body(answer)
        finally:
            connection.close()

    def _send_body(self, answer: http.client.HTTPResponse) -> None:
        """Send the body on as it comes: in chunks if its length is not known."""
        chunked = answer.length is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := answer.read1(_PIECE):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
