"""What the embedded server lets in: programs that ask for it, and no web page."""

from __future__ import annotations

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from rlm_dspy.embedded.request_filter import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "key-of-the-server-within"
JSON = {"Content-Type": "application/json"}


class Within(BaseHTTPRequestHandler):
    """Answers as the server within does: only to its key, and to any page."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b'{"models": []}')

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if not json.loads(sent).get("stream"):
            self._answer(sent)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (b"data: 1\n\n", b"data: 2\n\n"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, body: bytes) -> None:
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {KEY}" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    within = ThreadingHTTPServer(("127.0.0.1", 0), Within)
    threading.Thread(target=within.serve_forever, daemon=True).start()
    with Gate("127.0.0.1", 0) as gate:
        gate.open(f"http://127.0.0.1:{within.server_address[1]}", KEY)
        yield urlsplit(gate.address).port or 0
        gate.shutdown()
    within.shutdown()
    within.server_close()


def ask(port: int, method: str, body: str | None, headers: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["", "localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:80", "127.0.0.2"])
def test_a_program_that_names_this_host_is_answered(port: int, host: str) -> None:
    """By name, by address, with any port."""
    named = {"Host": host} if host else {}
    assert ask(port, "GET", None, named)[:2] == (200, '{"models": []}')
    assert ask(port, "POST", '{"a": 1}', {**JSON, **named})[:2] == (200, '{"a": 1}')


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "[", "x@y"]
)
def test_a_name_that_was_resolved_to_this_host_is_refused(port: int, host: str) -> None:
    """So a page whose own name now leads here reads nothing."""
    for method, body in (("GET", None), ("POST", "{}")):
        status, answer, _ = ask(port, method, body, {**JSON, "Host": host})
        assert (status, "Use localhost" in answer or "use localhost" in answer) == (403, True)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_a_page_may_send_unasked_is_refused(port: int, kind: str) -> None:
    """A browser sends these to anybody."""
    assert ask(port, "POST", '{"a": 1}', {"Content-Type": kind})[0] == 415


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "file://"},
    ],
)
def test_a_page_of_another_site_is_refused(port: int, headers: dict[str, str]) -> None:
    """Whatever it asks for; a page of this host is not."""
    assert ask(port, "GET", None, headers)[0] == 403
    assert ask(port, "POST", "{}", {**JSON, **headers})[0] == 403
    assert (
        ask(port, "GET", None, {"Origin": f"http://localhost:{port}", "Sec-Fetch-Site": "same-origin"})[0] == 200
    )


def test_no_answer_may_be_read_by_other_sites(port: int) -> None:
    """Nor is a browser told that it may ask."""
    assert not [name for name in ask(port, "GET", None, {})[2] if name.lower().startswith("access-control")]
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    status, _, headers = ask(port, "OPTIONS", None, asked)
    assert status >= 400
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_a_stream_is_passed_on(port: int) -> None:
    """In pieces, to its end."""
    assert ask(port, "POST", '{"stream": true}', JSON)[:2] == (200, "data: 1\n\ndata: 2\n\n")


def test_a_body_without_a_length_is_refused(port: int) -> None:
    """It could hide another request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", "/")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()
