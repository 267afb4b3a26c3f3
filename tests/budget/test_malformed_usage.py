"""Real HTTP servers that report nonsense as usage, asked through `dspy.LM`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from tests.playing import block
from tests.repl.test_deep_answers import NONSENSE

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = block("SUBMIT(answer='paid for')")
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"choices": [{"message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}]},
    "responses": {
        "status": "completed",
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]}],
    },
}


@contextlib.contextmanager
def serving(body: dict[str, Any]) -> Iterator[str]:
    """Answer every request with this body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("usage", [*NONSENSE, "free", [1]], ids=lambda usage: str(usage)[:50])
def test_no_answer_is_lost_to_the_usage_of_its_server(usage: Any, kind: str, how: str) -> None:
    """DSPy's own client raises on most of these, after the reply was paid for."""
    with serving({**BODIES[kind], "id": "1", "model": "m", "usage": usage}) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False, model_type=kind, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            rlm = RLM("question -> answer")
            prediction = rlm(question="?") if how == "blocking" else asyncio.run(rlm.acall(question="?"))
    assert (prediction.answer, prediction.usage["calls"]) == ("paid for", 1)
    assert prediction.usage["input_tokens"] >= 0


@pytest.mark.parametrize("count", ["many", -1, 1.5, [1], {"n": 1}, True, 10**30], ids=str)
def test_no_answer_of_gemini_is_lost_to_its_usage(count: Any) -> None:
    """It names its usage otherwise, so what DSPy makes of it is cleaned."""
    candidate = {"content": {"role": "model", "parts": [{"text": TEXT}]}, "finishReason": "STOP"}
    body = {"candidates": [candidate], "usageMetadata": {"promptTokenCount": count, "candidatesTokenCount": 7}}
    with serving(body) as base:
        lm = dspy.LM("gemini/gemini-2.5-flash", api_base=f"{base}beta", api_key="k", cache=False, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            prediction = RLM("question -> answer")(question="?")
    assert (prediction.answer, prediction.usage["output_tokens"]) == ("paid for", 7)
    assert prediction.usage["input_tokens"] >= 0
