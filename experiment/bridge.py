"""Any LM of DSPy behind an OpenAI-compatible address on this machine, for libraries that speak nothing else.

    with Bridge(choose_model()) as bridge:
        client = openai.OpenAI(base_url=bridge.base_url(), api_key=bridge.key)

So a library is given any litellm model, LM Studio or the embedded model alike, and what it spends is counted in
one place. Calls to `bridge.base_url("name")` are counted apart: `bridge.usage("name")`.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections import defaultdict
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import dspy
from dspy import lm15

from rlm_dspy import Limits
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered

_PASSED_ON = ("temperature", "top_p", "max_tokens", "stop", "seed", "response_format")
_PATH = re.compile(r"/run/([^/]*)/v1/chat/completions")


class Bridge:
    """A server on 127.0.0.1 for the length of a `with` block. Each request is one call of the LM.

    Args:
        lm: Any LM of DSPy.
        others: LMs that answer instead when a request names them as its model.
        passed_on: Settings of a request that the LM is given; the others are the LM's own.
    """

    def __init__(
        self,
        lm: dspy.BaseLM,
        *,
        others: dict[str, dspy.BaseLM] | None = None,
        passed_on: tuple[str, ...] = _PASSED_ON,
    ) -> None:
        self.lm = lm
        self.others = others or {}
        self.key = secrets.token_urlsafe()
        self._passed_on = passed_on
        self._ledgers: dict[str, Ledger] = defaultdict(lambda: Ledger(Limits()))
        self._lock = threading.Lock()
        bridge = self

        class Handler(_Handler):
            owner = bridge

        self._server = _Server(("127.0.0.1", 0), Handler)

    def base_url(self, run: str = "run") -> str:
        """Return the address whose calls are counted under a name."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/run/{run}/v1"

    def usage(self, run: str = "run") -> dict[str, Any]:
        """Return what has been spent under a name: `calls`, `failures`, `input_tokens`, `cost` and the rest."""
        return self._ledger(run).totals().model_dump()

    def complete(self, run: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answer one chat completion, in OpenAI's format."""
        lm = self.others.get(str(body.get("model")), self.lm)
        if shape := body.get("response_format"):  # OpenAI has the schema in an object of its own
            body = {**body, "response_format": {"type": shape["type"], **(shape.get("json_schema") or {})}}
        settings = defaults_of(lm) | {name: body[name] for name in self._passed_on if body.get(name) is not None}
        if body.get("max_completion_tokens") and "max_tokens" in self._passed_on:
            settings["max_tokens"] = body["max_completion_tokens"]
        with metered(self._ledger(run), "model", raw=True):
            response = lm(request_of(str(lm.model), body["messages"], settings))
        usage = response.usage
        counts = {"prompt_tokens": usage.input_tokens or 0, "completion_tokens": usage.output_tokens or 0}
        message = {"role": "assistant", "content": response.text or ""}
        return {
            "id": "chatcmpl-bridge",
            "object": "chat.completion",
            "created": 0,
            "model": str(body.get("model")),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {**counts, "total_tokens": sum(counts.values())},
        }

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _ledger(self, run: str) -> Ledger:
        with self._lock:
            return self._ledgers[run]


def defaults_of(lm: dspy.BaseLM) -> dict[str, Any]:
    """Return the settings that an LM was made with: DSPy (3.4.1) adds them to no request that comes whole."""
    known = {setting.name for setting in fields(lm15.Config)}
    return {name: value for name, value in lm.kwargs.items() if name in known and value is not None}


def request_of(model: str, messages: list[dict[str, Any]], settings: dict[str, Any]) -> lm15.Request:
    """Return the request of DSPy's own kind for a chat of OpenAI's."""
    texts = [(message["role"], text_of(message)) for message in messages]
    system = "\n\n".join(text for role, text in texts if role == "system")
    makers = {"assistant": lm15.Message.assistant, "user": lm15.Message.user}
    turns = tuple(makers[role](text) for role, text in texts if role in makers)
    if isinstance(settings.get("stop"), str):
        settings = {**settings, "stop": (settings["stop"],)}
    return lm15.Request(model=model, messages=turns, system=system or None, config=lm15.Config(**settings))


def text_of(message: dict[str, Any]) -> str:
    """Return the text of a chat message, which may come in parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1_024


class _Handler(BaseHTTPRequestHandler):
    """Answers requests for the bridge that owns it."""

    owner: Bridge
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Answer a chat completion."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = _PATH.fullmatch(self.path)
        if self.headers.get("Authorization") != f"Bearer {self.owner.key}":
            self._send(401, {"error": {"message": "The key is that of the bridge."}})
        elif found is None:
            self._send(404, {"error": {"message": f"There is no {self.path} here."}})
        else:
            self._send(*self._completed(found[1], json.loads(body)))

    def _completed(self, run: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        try:
            return 200, self.owner.complete(run, body)
        except dspy.ContextWindowExceededError as error:
            return 400, {"error": {"message": str(error), "code": "context_length_exceeded"}}
        except dspy.LMInvalidRequestError as error:
            return 400, {"error": {"message": str(error)}}
        except dspy.LMRateLimitError as error:
            return 429, {"error": {"message": str(error)}}
        except Exception as error:  # noqa: BLE001  # whatever it is, the client is told and the server goes on
            return 500, {"error": {"message": f"{type(error).__name__}: {error}"}}

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
