"""A package index and a hub on the loopback interface, for a model of a few bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import zipfile
from dataclasses import dataclass, field, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote

from rlm_dspy.embedded.model_catalog import CatalogueModel, Piece

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECES = tuple(f"piece {number}, ".encode() * 400 for number in range(1, 13))
BYTES = b"".join(PIECES)
MARK = "RLM_DSPY_TEST_MARK"
RUNS = f"import os, pathlib; pathlib.Path(os.environ['{MARK}']).touch()"
"""Code that every wheel has where a program would run it: in its package, and in a `.pth` file."""

MODEL = CatalogueModel(
    name="tiny",
    model="Tiny-Instruct",
    file="tiny.gguf",
    size=len(BYTES),
    sha256=hashlib.sha256(BYTES).hexdigest(),
    license="MIT",
    hub=Piece("somebody/Tiny-GGUF", "tiny.gguf"),
    wheels=tuple(Piece(f"tiny-part{n}==1.0", f"tiny_part{n}/data/part{n:02}.bin") for n in range(1, 13)),
)
ANOTHER = replace(MODEL, sha256="0" * 64)
"""The same model, with a checksum that its bytes do not have."""


def write_index(folder: Path) -> None:
    """Write an index of the model's wheels, as a folder that a web server lists."""
    for number, piece in enumerate(PIECES, start=1):
        files = {
            f"tiny_part{number}/__init__.py": RUNS.encode(),
            f"tiny_part{number}.pth": RUNS.encode(),
            f"tiny_part{number}/data/part{number:02}.bin": piece,
        }
        _write_wheel(folder / f"tiny-part{number}", f"tiny_part{number}", files)


def _write_wheel(folder: Path, package: str, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    about = f"{package}-1.0.dist-info"
    files = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, f"{about}/RECORD": record.encode()}.items():
            archive.writestr(name, data)


@dataclass
class Server:
    """An index and a hub that are being served.

    Attributes:
        url: Of the server; the index is below `/simple/`.
        held: A piece of a path; a download of such a file sends half of it and waits for `go_on`.
        reached: Set when the held file was asked for.
        go_on: Set it to let the held download end.
        sent: The paths of the wheels and models that were sent, in order.
    """

    url: str = ""
    held: str | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    sent: list[str] = field(default_factory=list)

    def environment(self, *, hub: bool = False) -> dict[str, str]:
        """Return the environment of a user whose index is this one, and whose hub is this one or none."""
        index = f"{self.url}/simple/"
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_RETRIES": "0", "PIP_FIND_LINKS": ""}
        uv = {"UV_NO_CONFIG": "1", "UV_DEFAULT_INDEX": index, "UV_HTTP_RETRIES": "0"}
        return {**pip, **uv, "HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0" if hub else "1"}


@contextlib.contextmanager
def serving(folder: Path, hub_bytes: bytes = BYTES) -> Iterator[Server]:
    """Serve the index in a folder, and a hub with a file of the model."""
    server = Server()

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(self.path)
            on_hub = path.endswith(f"/resolve/main/{MODEL.file}")
            if not (on_hub or path.endswith(".whl")):
                super().do_GET() if with_body else super().do_HEAD()
                return
            data = hub_bytes if on_hub else (folder / path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if with_body:
                server.sent.append(path)
                self._send(data, held=server.held is not None and server.held in path)

        def _send(self, data: bytes, *, held: bool) -> None:
            middle = len(data) // 2
            self.wfile.write(data[:middle])
            self.wfile.flush()
            if held:
                server.reached.set()
                server.go_on.wait(60)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data[middle:])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.go_on.set()
            http.shutdown()
