"""Clients that want to harm the server get an error, or nothing, and the server goes on."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from rlm_dspy import RLM
from rlm_dspy.errors import UsageError
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.service import gate, serve, server
from rlm_dspy.service.gate import is_local, names_of
from rlm_dspy.testing import ScriptedLM
from tests.service.serving import code, served, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "program", "messages": [{"role": "user", "content": "Who?"}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve a program; after the tests it still answers, and no run is left."""
    program = RLM("question -> answer", interpreter_factory=LocalPythonInterpreter)
    with served(program, ScriptedLM(lambda _: code("SUBMIT(answer='yes')")), max_runs=2) as url:
        yield url
        found = httpx.post(f"{url}{CHAT}", json=ASK, timeout=60)
        assert found.json()["choices"][0]["message"]["content"] == "yes"
        assert "rlm_runs_in_progress 0.0" in httpx.get(f"{url}/metrics").text


def connected(url: str) -> socket.socket:
    """Return a connection to the server."""
    address = urlsplit(url)
    return socket.create_connection((str(address.hostname), address.port or 0), timeout=60)


def status_of(url: str, request: bytes) -> int:
    """Send bytes, and return the status of the answer; 0 if the connection is closed without one."""
    with connected(url) as connection:
        connection.sendall(request)
        head = connection.recv(4096)
    return int(head.split()[1]) if head else 0


def head(url: str, **headers: Any) -> bytes:
    """Return the head of a request."""
    lines = {"Host": urlsplit(url).netloc, "Content-Type": "application/json", **headers}
    told = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {CHAT} HTTP/1.1\r\n{told}\r\n".encode()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_of_the_web_are_refused(url: str, headers: dict[str, str]) -> None:
    """DNS rebinding: the name that the page's browser sends is not ours."""
    assert httpx.post(f"{url}{CHAT}", json=ASK, headers=headers).status_code in (400, 403)
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code in (400, 403)


def test_a_simple_request_of_a_page_is_refused(url: str) -> None:
    """Such a request needs no permission of the server; and no header allows a page to read an answer."""
    sent = httpx.post(f"{url}{CHAT}", content=json.dumps(ASK), headers={"Content-Type": "text/plain"})
    assert sent.status_code == 415
    assert not [name for name in sent.headers if name.startswith("access-control-")]
    assert httpx.options(f"{url}{CHAT}").status_code == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Length": 65 << 20}, 411),
        ({"Content_Length": "9" * 30}, 400),
        ({"Content_Length": -1}, 400),
        ({"Transfer_Encoding": "chunked"}, 411),
    ],
)
def test_a_body_without_a_bound_is_refused_before_it_is_read(
    url: str, headers: dict[str, Any], status: int
) -> None:
    """Nothing of it has to be sent for that."""
    assert status_of(url, head(url, **headers)) == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "program", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "program", "messages": [], "limits": {"max_cost": 1e999}}',
        b'{"model": "program", "messages": [], "limits": {"max_iters": ' + b"9" * 1_000_000 + b"}}",
        json.dumps({**ASK, "inputs": {"question": ["x"] * 200_000}}).encode(),
        json.dumps({**ASK, "x" * 1_000_000: 1}).encode(),
    ],
    ids=range(13),
)
def test_broken_deep_and_huge_json_is_refused(url: str, body: bytes) -> None:
    """The answer says why, and quotes little of it."""
    sent = httpx.post(f"{url}{CHAT}", content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert (sent.status_code, sent.json()["error"]["type"]) == (400, "invalid_request_error")
    assert len(sent.text) < 2_000


def test_deep_inputs_are_refused_by_their_parser(url: str) -> None:
    """Before they reach a program."""
    deep: Any = "x"
    for _ in range(150):
        deep = [deep]
    sent = httpx.post(f"{url}{CHAT}", json={**ASK, "inputs": {"question": deep}}, timeout=60)
    assert sent.status_code == 400


def test_a_body_that_comes_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is closed, and no run was started."""
    monkeypatch.setattr(gate, "_BODY_SECONDS", 0.2)
    with served(RLM("question -> answer")) as url:
        assert status_of(url, head(url, Content_Length=1000) + b"{") == 408
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_head_that_comes_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the first request of a connection and of later ones."""
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.5)
    with served(RLM("question -> answer")) as url:
        assert status_of(url, head(url)[:20]) == 0
        with connected(url) as connection:
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\nGET".encode())
            received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.endswith(b'{"status":"ok"}')


def test_the_bodies_that_are_read_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By memory; when their clients have gone, others are read."""
    monkeypatch.setattr(gate, "_ALL_BODIES_BYTES", 1000)
    with served(RLM("question -> answer"), ScriptedLM([code("SUBMIT(answer='yes')")])) as url:
        with connected(url) as slow:
            slow.sendall(head(url, Content_Length=2000) + b" " * 900)
            wait_for(lambda: httpx.post(f"{url}{CHAT}", json={**ASK, "user": "x" * 200}).status_code == 503)
        wait_for(lambda: httpx.post(f"{url}{CHAT}", json=ASK, timeout=60).status_code == 200)


@pytest.mark.parametrize("sent", ["a part of the head", "the head", "a part of the body"])
def test_a_client_that_leaves_early_starts_nothing(url: str, sent: str) -> None:
    """A hundred times."""
    body = json.dumps(ASK).encode()
    whole = head(url, Content_Length=len(body))
    data = {"a part of the head": whole[:20], "the head": whole, "a part of the body": whole + body[:9]}[sent]
    before = _runs(url)
    for _ in range(100):
        with connected(url) as connection:
            connection.sendall(data)
    assert httpx.get(f"{url}/health").status_code == 200
    assert _runs(url) == before


def _runs(url: str) -> list[str]:
    return [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith("rlm_runs_total")]


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/%00", "/v1//models"])
def test_a_path_names_no_file(url: str, path: str) -> None:
    """There are no files to serve."""
    request = f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode()
    assert status_of(url, request) == 404


def test_nonsense_is_answered_as_bad_requests(url: str) -> None:
    """Not HTTP, a head without end, a wrong method."""
    assert status_of(url, b"\x16\x03\x01\x02\x00\x01\x00" * 10 + b"\r\n\r\n") == 400
    assert status_of(url, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000) == 400
    assert httpx.delete(f"{url}{CHAT}").status_code == 405


def test_an_address_that_others_can_reach_needs_a_key() -> None:
    """Before anything listens."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "server.example"):
        with pytest.raises(UsageError, match="set a key for the clients, or listen on 127"):
            serve(RLM("question -> answer"), port=0, host=host)
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9")] == [True] * 4


def test_the_names_of_a_server_are_its_address_and_those_that_are_given() -> None:
    """`localhost` stands for the loopback addresses, `0.0.0.0` for all; a name must be given."""
    assert names_of("127.0.0.1") == {"127.0.0.1", "localhost"}
    assert names_of("192.0.2.1", ["Server.example"]) == {"192.0.2.1", "server.example"}
    assert names_of("::") == {"::", "0.0.0.0", "localhost"}
