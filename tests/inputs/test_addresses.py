"""Pages of the web: fetched within bounds, and never from a local network that the user did not allow."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import httpx
import pytest

from rlm_dspy import Text
from rlm_dspy.errors import UnreachableAddress, UnreadableDocument
from rlm_dspy.inputs import addresses
from rlm_dspy.inputs.isolated import page
from rlm_dspy.inputs.isolated.job import Refused
from tests.commands import ask
from tests.inputs.sample_documents import SAMPLES, html

if TYPE_CHECKING:
    from collections.abc import Iterator

LATIN = "caf\u00e9 \u201cquoted\u201d"


class Pages(BaseHTTPRequestHandler):
    """Serves pages by path, and notes what was asked for."""

    asked: ClassVar[list[tuple[str, str, str]]] = []
    pages: ClassVar[dict[str, tuple[str, bytes]]] = {
        "/paper": ("application/octet-stream", SAMPLES["paper.pdf"]()),
        "/report": ("text/plain", SAMPLES["report.docx"]()),
        "/page": ("text/html; charset=utf-8", html("<p>Founded by <b>Ada</b></p>")),
        "/latin.html": ("text/html; charset=windows-1252", html(f"<p>{LATIN}</p>").decode().encode("cp1252")),
        "/latin.txt": ("text/plain; charset=windows-1252", LATIN.encode("cp1252")),
        "/undefined": ("text/plain; charset=undefined", LATIN.encode()),
        "/idna": ("text/plain; charset=idna", LATIN.encode()),
        "/bom": ("text/plain; charset=UTF8", LATIN.encode("utf-8-sig")),
        "/data": ("application/json", b'{"founded by": "Ada"}'),
        "/picture": ("image/png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    }

    def do_GET(self) -> None:
        """Answer by the path."""
        self.asked.append((self.path, self.headers["Host"], self.headers.get("Authorization", "")))
        name, _, argument = self.path.partition("?")
        with contextlib.suppress(OSError):  # the client is gone
            getattr(self, f"_{name[1:]}", self._page)(argument)

    def _page(self, argument: str) -> None:
        if self.path not in self.pages:
            self.send_error(404)
            return
        kind, body = self.pages[self.path]
        self._send(kind, body)

    def _send(self, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _to(self, argument: str) -> None:
        self.send_response(302)
        self.send_header("Location", argument)
        self.end_headers()

    def _round(self, argument: str) -> None:
        self._to(f"/round?{int(argument or 0) + 1}")

    def _zipped(self, argument: str) -> None:
        self._send("text/plain", gzip.compress(b"a" * int(argument)), Content_Encoding="gzip")

    def _drip(self, argument: str) -> None:
        for _ in range(100):
            self.wfile.write(b"H")
            time.sleep(0.1)

    def _endless(self, argument: str) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"a" * 65_536)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base's name)
        """Print nothing."""


@pytest.fixture
def served() -> Iterator[str]:
    """Yield the address of a server on this machine."""
    Pages.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/paper", "--- page 2 of 3 ---\nFounded by Ada"),
        ("/report", "--- page 2 of 2 ---\nFounded by Ada"),
        ("/page", "Founded by **Ada**"),
        ("/latin.html", LATIN),
        ("/latin.txt", LATIN),
        ("/undefined", LATIN),
        ("/idna", LATIN),
        ("/bom", LATIN),
        ("/data", '{"founded by": "Ada"}'),
        ("/to?/paper", "--- page 1 of 3 ---"),
        ("/zipped?10", "aaaaaaaaaa"),
    ],
)
def test_an_address_becomes_text_by_what_it_serves(path: str, text: str, served: str) -> None:
    """By the first bytes, else the type and charset of the server."""
    opened = Text.open(served + path, allow_local=True)
    assert text in str(opened)
    assert (opened.name, opened.path) == (served + path, None)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/gone", r"/gone cannot be fetched: the server answered 404 Not Found\.$"),
        ("/round", r"/round cannot be fetched: it is redirected more than 5 times\.$"),
        ("/to?ftp://example.org/", r"cannot be fetched: Text.open takes http and https addresses\.$"),
        ("/to?file:///etc/passwd", r"cannot be fetched: Text.open takes http and https addresses\.$"),
        ("/drip", r"/drip did not arrive within \d+ seconds\. Download it and open the file\.$"),
        ("/endless", r"/endless is larger than \d+ MB\. Download it and open the file\.$"),
        ("/zipped?3000000", r"is larger than \d+ MB\. Download it and open the file\.$"),
    ],
)
def test_what_cannot_be_fetched_says_why(
    path: str, problem: str, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bounds, here of 2 MB, and of 2 seconds for what would take more than any."""
    if path == "/drip":
        monkeypatch.setattr(addresses, "_SECONDS", 2)
    monkeypatch.setattr(addresses, "_MAX_BYTES", 2 << 20)
    with pytest.raises(UnreachableAddress, match=problem):
        Text.open(served + path, allow_local=True)


def test_a_server_that_is_gone_and_a_name_that_is_none_say_so() -> None:
    """The first with the reason of the system."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UnreachableAddress, match=r"cannot be fetched: .*refused"):
        Text.open(f"http://127.0.0.1:{port}/", allow_local=True)
    with pytest.raises(UnreachableAddress, match=r"there is no host nothing\.invalid, or no network"):
        Text.open("http://nothing.invalid/")


def test_a_picture_at_an_address_is_told_as_such(served: str) -> None:
    """As one in a file."""
    with pytest.raises(UnreadableDocument, match=r"/picture is a PNG image\. .* Pass a picture as dspy\.Image\."):
        Text.open(f"{served}/picture", allow_local=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "0.0.0.0",
        "10.1.2.3",
        "169.254.169.254",
        "2130706433",
        "[::ffff:10.0.0.1]",
    ],
)
def test_a_local_network_is_refused(host: str, served: str) -> None:
    """However it is written; nothing is asked of it."""
    with pytest.raises(Refused) as refused, httpx.Client(trust_env=False) as client:
        page.follow(client, f"http://{host}:{served.rpartition(':')[2]}/page", allow_local=False)
    assert refused.value.args[0] == "local"
    assert Pages.asked == []


def test_a_refusal_names_the_way_to_allow_it(served: str) -> None:
    """For those who trust the address."""
    with pytest.raises(
        UnreachableAddress, match=r"leads to a local network \(127\.0\.0\.1\)\. .*allow_local=True"
    ):
        Text.open(f"{served}/page")
    assert Pages.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),
        ("::ffff:93.184.215.14", True),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("168.63.129.16", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("fe80::1", False),
        ("fd00:ec2::254", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
        ("fec0::1", False),
        ("::127.0.0.1", False),
        ("64:ff9b:1::7f00:1", False),
    ],
)
def test_an_address_is_public_only_if_all_that_is_written_in_it_is(address: str, public: bool) -> None:
    """Also in those of IPv6 that carry one of IPv4."""
    assert page._is_public(ipaddress.ip_address(address)) is public


def test_a_redirect_into_a_local_network_is_refused(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is checked: here the first address is taken for a public one."""
    monkeypatch.setattr(page, "_is_public", lambda address: str(address) == "127.0.0.1")
    with pytest.raises(Refused) as refused, httpx.Client(trust_env=False) as client:
        page.follow(client, f"{served}/to?http://10.0.0.1/", allow_local=False)
    assert refused.value.args == ("local", "10.0.0.1")


def test_a_name_is_looked_up_once_and_its_checked_address_is_connected_to(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers differently the second time leads nowhere; the server still hears the name."""
    answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]])
    ask_system = socket.getaddrinfo

    def look_up(host: str, *rest: object, **more: object) -> object:
        return next(answers) if host == "changes.example" else ask_system(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(page, "_is_public", lambda address: True)
    port = served.rpartition(":")[2]
    with httpx.Client(trust_env=False) as client:
        response = page.follow(client, f"http://changes.example:{port}/page", allow_local=False)
        assert b"Ada" in response.read()
    assert [host for _, host, _ in Pages.asked] == [f"changes.example:{port}"]


def test_credentials_are_sent_to_their_host_and_shown_nowhere(served: str) -> None:
    """Neither in errors nor in the name."""
    address = served.replace("//", "//ada:secret@")
    assert "secret" not in Text.open(f"{address}/page", allow_local=True).name
    assert Pages.asked[0][2].startswith("Basic ")
    with pytest.raises(UnreachableAddress) as raised:
        Text.open(f"{address}/gone", allow_local=True)
    assert "secret" not in str(raised.value)


def test_the_command_line_takes_documents_and_addresses(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also both at once; what is refused is told in one line."""
    monkeypatch.chdir(tmp_path)
    Path("paper.pdf").write_bytes(SAMPLES["paper.pdf"]())
    code = "```python\nSUBMIT(answer=str(context.count('Founded by')))\n```"
    result = ask("How many?", "paper.pdf", f"{served}/page", "--allow-local", replies=[code])
    assert (result.exit_code, result.stdout) == (0, "2\n")
    result = ask("How many?", replies=[code], stdin=SAMPLES["report.docx"]())
    assert (result.exit_code, result.stdout) == (0, "1\n")
    result = ask("How many?", f"{served}/page")
    assert result.exit_code == 2
    assert "leads to a local network" in result.stderr
    assert "--allow-local" in result.stderr
    Path("paper.pdf").write_bytes(b"%PDF-1.7")
    result = ask("How many?", "paper.pdf")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
