"""A server with a window: it counts the tokens of a request, and refuses those that do not fit."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import dspy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_dspy.testing import Messages

CHARS_PER_TOKEN = 3


@dataclass
class Request:
    """A request that arrived.

    Attributes:
        messages: Its chat.
        read: Its tokens.
        max_tokens: The longest reply that it allows; 0 if it sets none.
        refused: Whether it was refused.
    """

    messages: Messages
    read: int
    max_tokens: int
    refused: bool = False


@dataclass
class WindowServer:
    """An OpenAI-compatible server.

    Attributes:
        reply: Makes the reply's text of the messages.
        window: Its tokens.
        refuse: Makes status and body of a refusal.
        counts_reply: Whether the longest reply that a request allows is a part of the request.
        chars_per_token: How dense it takes texts to be.
        requests: What has arrived.
    """

    reply: Callable[[Messages], str]
    window: int
    refuse: Callable[[Request, int], tuple[int, str]]
    counts_reply: bool = False
    chars_per_token: float = CHARS_PER_TOKEN
    requests: list[Request] = field(default_factory=list)
    base: str = ""

    def answer(self, body: dict[str, Any]) -> tuple[int, str]:
        """Return status and body."""
        messages = [{"role": each["role"], "content": _text(each["content"])} for each in body["messages"]]
        read = int(sum(len(each["content"]) for each in messages) / self.chars_per_token)
        request = Request(messages, read, body.get("max_tokens") or body.get("max_completion_tokens") or 0)
        self.requests.append(request)
        if read + (request.max_tokens if self.counts_reply else 0) > self.window:
            request.refused = True
            return self.refuse(request, self.window)
        text = self.reply(messages)
        usage = {"prompt_tokens": read, "completion_tokens": len(text) // 3, "total_tokens": read + len(text) // 3}
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, json.dumps(
            {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
        )

    def lm(self, **options: Any) -> dspy.LM:
        """Return the client that a user makes for it."""
        return dspy.LM("openai/m", **{"api_base": self.base, "api_key": "k", "cache": False, **options})


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@contextlib.contextmanager
def serving(server: WindowServer) -> Iterator[WindowServer]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, text = server.answer(body)
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if text[:1] in "{[" else "text/plain")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    server.base = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
