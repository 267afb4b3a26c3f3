"""The model of `chaos.py`: an OpenAI-compatible server that answers as a plan says, and fails as it says."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from chaos_faults import SECONDS, plan

_STATUS = {
    "429": (429, {"message": "Rate limit reached.", "type": "rate_limit", "code": "rate_limit_exceeded"}),
    "500": (500, {"message": "The server had an error.", "type": "server_error"}),
    "503": (503, {"message": "Overloaded.", "type": "server_error"}),
    "401": (401, {"message": "Incorrect API key.", "type": "invalid_request_error", "code": "invalid_api_key"}),
    "window": (
        400,
        {
            "message": "This model's maximum context length is 4096 tokens.",
            "type": "BadRequestError",
        },
    ),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChaosServer

    def do_POST(self) -> None:
        """Answer a chat completion of `/SEED/NUMBER/...`, or fail as its plan says."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seed, number = map(int, self.path.split("/")[1:3])
        fault = plan(seed, number).model.get(self.server.count(seed, number), "")
        try:
            self._answer(fault, self._text(seed, number, body))
        except OSError:
            self.close_connection = True  # whoever asked has gone

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _text(self, seed: int, number: int, body: dict[str, Any]) -> str:
        if body["user"] == "child.act":
            return "```python\nSUBMIT(a='of a child')\n```"
        if body["user"] != "act":
            asked = json.dumps(body["messages"][-1])
            names = [name for name in ("account", "score", "answer", "a") if f"[[ ## {name} ## ]]" in asked]
            written = "\n\n".join(f"[[ ## {name} ## ]]\n7" for name in names)
            return f"{written}\n\n[[ ## completed ## ]]" if names else "an answer"
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        cells = plan(seed, number).cells
        code = cells[turn] if turn < len(cells) else "SUBMIT(answer=str(len(context)))"
        return f"Next.\n```python\n{code}\n```" if code else "I think."

    def _answer(self, fault: str, text: str) -> None:
        if fault in _STATUS:
            status, error = _STATUS[fault]
            return self._send(json.dumps({"error": error}).encode(), status)
        if fault == "timeout":
            time.sleep(2 * SECONDS)
            self.close_connection = True
            return None
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return None
        text = {"empty": "", "no block": "I do not know.", "cut": text[: len(text) // 2]}.get(fault, text)
        content: Any = {"null": None, "wrong type": [1, 2]}.get(fault, text)
        reason = "length" if fault == "cut" else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        if fault == "wrong type":
            usage = {"prompt_tokens": "many", "completion_tokens": -3, "total_tokens": None}  # type: ignore[dict-item]
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "chaos", "usage": usage}
        raw = json.dumps({**answer, "choices": [choice]}, ensure_ascii=False).encode()
        raw = {"garbage": b'{"id": "x", "choices": [{"mess', "latin": b"\xff\xfe" + raw}.get(fault, raw)
        return self._send(raw[: len(raw) // 2] if fault == "half" else raw, 200, len(raw))

    def _send(self, raw: bytes, status: int, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(raw)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = True


class ChaosServer(ThreadingHTTPServer):
    """Serves until its scope ends.

    Attributes:
        url: Where a run asks: `{url}/SEED/NUMBER/v1`.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._requests: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def count(self, seed: int, number: int) -> int:
        """Return the number of a request among those of its run."""
        with self._lock:
            self._requests[seed, number] += 1
            return self._requests[seed, number] - 1

    def handle_error(self, *_: object) -> None:
        """Say nothing of connections that broke."""

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
