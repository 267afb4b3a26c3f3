"""An OpenAI-compatible server that remembers who asked it for what."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

USAGE = {"prompt_tokens": 1_000_000, "completion_tokens": 500_000, "total_tokens": 1_500_000}


@dataclass
class ModelServer:
    """What a test says and sees.

    Attributes:
        text: The reply to each request; without one, requests are refused with an error that quotes the key.
        base: The address.
        keys: The key of each request.
        bodies: The body of each request.
    """

    text: str = "```python\nSUBMIT(answer='42')\n```"
    base: str = ""
    keys: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def reply(self, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.keys.append(key)
        self.bodies.append(body)
        if not self.text:
            return 401, {"error": {"message": f"Incorrect API key: {key}", "code": "invalid_api_key"}}
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        made = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return 200, {**made, "choices": [choice], "usage": USAGE}


@contextlib.contextmanager
def serving(server: ModelServer) -> Iterator[ModelServer]:
    """Serve on a free port of this machine; the server lists one model with a window of 16,384 tokens."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "listed", "max_model_len": 16_384}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*server.reply(self.headers["Authorization"].removeprefix("Bearer "), body))

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.base = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
