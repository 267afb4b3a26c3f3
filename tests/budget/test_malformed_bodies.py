"""Real HTTP servers that answer with malformed usage, errors and tool calls, asked through `dspy.LM`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from tests.playing import block
from tests.repl.test_deep_answers import NONSENSE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TEXT = block("SUBMIT(answer='paid for')")
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"choices": [{"message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}]},
    "responses": {
        "status": "completed",
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]}],
    },
}


@contextlib.contextmanager
def serving(body: Any, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Answer every request with this body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
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
    """DSPy's own client raises on most of these, after the reply was paid for. Nonsense counts as not reported."""
    with serving({**BODIES[kind], "id": "1", "model": "m", "usage": usage}) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False, model_type=kind, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            rlm = RLM("question -> answer")
            prediction = rlm(question="?") if how == "blocking" else asyncio.run(rlm.acall(question="?"))
    assert (prediction.answer, prediction.usage["calls"]) == ("paid for", 1)
    read = usage.get("prompt_tokens") if kind == "chat" and isinstance(usage, dict) else None
    assert prediction.usage["input_tokens"] == (read if type(read) is int and read < 10 else 0)


ERRORS: dict[str, dict[str, Any]] = {
    "MiniMax": {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "no balance"}},
    "SiliconFlow": {"code": 20012, "message": "no balance", "data": None},
    "FastAPI": {"detail": "no balance"},
    "SGLang": {"object": "error", "message": "no balance"},
    "Cloudflare": {"success": False, "errors": [{"code": 7, "message": "no balance"}], "result": None},
    "LM Studio": {"error": "no balance"},
}


@pytest.mark.parametrize("body", ERRORS.values(), ids=ERRORS)
def test_an_error_with_status_200_is_told_and_not_cached_as_a_reply(body: dict[str, Any]) -> None:
    with serving(body) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", num_retries=0)
        for _ in range(2):
            with (
                dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter),
                pytest.raises(dspy.LMError, match="no balance"),
            ):
                RLM("question -> answer")(question=f"? {base}")


NO_REPLIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("openai/m", {"model_type": "chat"}, "choices"),
    "responses": ("openai/m", {"model_type": "responses"}, "output"),
    "Anthropic": ("anthropic/m", {}, "content"),
    "Gemini": ("gemini/m", {}, "candidates"),
}


@pytest.mark.parametrize(("model", "options", "name"), NO_REPLIES.values(), ids=NO_REPLIES)
@pytest.mark.parametrize("body", [{}, {"status": "ok"}, [], None], ids=str)
def test_a_body_that_holds_no_reply_is_an_error_which_shows_it_and_no_empty_turn(
    body: Any, model: str, options: dict[str, Any], name: str, how: str
) -> None:
    """As of a server that is no model's, or of another API."""
    with serving(body) as base:
        lm = dspy.LM(model, api_base=base, api_key="none", cache=False, num_retries=0, **options)
        rlm = RLM("question -> answer", interpreter_factory=LocalPythonInterpreter)
        rlm.set_lm(lm)
        told = re.escape(f"the reply (HTTP 200) has no `{name}`: {json.dumps(body)!r}")
        with pytest.raises(dspy.LMError, match=told):
            rlm(question="?") if how == "blocking" else asyncio.run(rlm.acall(question="?"))


def test_a_redirect_is_an_error_that_says_where_to() -> None:
    with serving({"to": "v2"}, 307, {"Location": "/v2/chat/completions"}) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False)
        with (
            dspy.context(lm=lm),
            pytest.raises(dspy.LMError, match="HTTP 307, a redirect to /v2/chat/completions"),
        ):
            RLM("question -> answer", interpreter_factory=LocalPythonInterpreter)(question="?")


@pytest.mark.parametrize("error", [None, {}, {"code": 0, "message": ""}], ids=str)
def test_an_empty_error_beside_a_reply_does_not_throw_it_away(error: Any) -> None:
    with serving({**BODIES["chat"], "id": "1", "model": "m", "error": error}) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            assert RLM("question -> answer")(question="?").usage["calls"] == 1


@pytest.mark.parametrize("reason", ["error", "abort"])
def test_a_reply_that_its_provider_broke_off_is_not_run_to_its_end(reason: str) -> None:
    """OpenRouter's `error`, vLLM's `abort`: the last statement may be half of one."""
    half = "```python\nx = 1\nSUBMIT(answer='half')"
    choice = {"message": {"role": "assistant", "content": half}, "finish_reason": reason}
    with serving({"id": "1", "model": "m", "choices": [choice]}) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            prediction = RLM("question -> answer", max_iters=1)(question="?")
    assert prediction.trajectory[0]["code"] == "x = 1"
    assert "was broken off by its provider" in prediction.trajectory[0]["output"]
    assert "Write it again." in prediction.trajectory[0]["output"]


CALLS = {
    "with the backslashes of a pattern": (
        [("python", r'{"code": "import re\nprint(re.findall(\"\d+\", question))"}')],
        'import re\nprint(re.findall("\\d+", question))',
    ),
    "beside one that cannot be read": (
        [("python", '{"code": "print(question)"}'), ("web.search", '{"q-1": "a"}')],
        "print(question)",
    ),
    "and an answer without its output": (
        [("python", '{"code": "print(question)"}'), ("SUBMIT", '{"answer": "made up"}')],
        "print(question)",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_the_code_of_native_tool_calls_is_read(case: str) -> None:
    calls, code = CALLS[case]
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": str(n), "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(calls)
        ],
    }
    with serving({"id": "1", "choices": [{"message": message, "finish_reason": "tool_calls"}]}) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            prediction = RLM("question -> answer", max_iters=1)(question="?")
    assert prediction.trajectory[0]["code"] == code
    assert ("SUBMIT was not run" in prediction.trajectory[0]["output"]) == ("SUBMIT" in dict(calls))


CODE = {"arguments": '{"code": "print(question)"}'}
ODD_CALLS: dict[str, dict[str, Any]] = {
    "no name": {"tool_calls": [{"id": "1", "type": "function", "function": CODE}]},
    "name null": {"tool_calls": [{"id": "1", "type": "function", "function": {"name": None, **CODE}}]},
    "no function": {"tool_calls": [{"id": "1", "name": "python", **CODE}]},
    "no list": {"tool_calls": {"name": "python", **CODE}},
    "code alone": {"tool_calls": ["print(question)"]},
    "custom tool": {"tool_calls": [{"type": "custom", "custom": {"name": "python", "input": "print(question)"}}]},
    "function_call": {"function_call": {"name": "python", **CODE}},
    "an object as content": {"content": {"code": "print(question)"}},
    "parts of the Responses API": {"content": [{"type": "output_text", "text": block("print(question)")}]},
    "parts that are texts": {"content": ["I look.\n", block("print(question)")]},
    "a part alone": {"content": {"type": "text", "text": block("print(question)")}},
    "a text with a value": {"content": [{"type": "text", "text": {"value": block("print(question)")}}]},
}
BARE = {"call_id": "1", **CODE}
ODD_ITEMS: dict[str, dict[str, Any]] = {
    "no name": {"type": "function_call", **BARE},
    "custom tool": {"type": "custom_tool_call", "call_id": "1", "name": "python", "input": "print(question)"},
    "content without parts": {"type": "message", "role": "assistant", "content": block("print(question)")},
}
ODD_BODIES: dict[str, dict[str, Any]] = {
    **{
        f"chat, {case}": {"choices": [{"message": {"role": "assistant", "content": None, **message}}]}
        for case, message in ODD_CALLS.items()
    },
    **{f"responses, {case}": {"status": "completed", "output": [item]} for case, item in ODD_ITEMS.items()},
}


@pytest.mark.parametrize("case", ODD_BODIES)
def test_the_code_of_a_malformed_tool_call_or_content_is_run(case: str) -> None:
    """DSPy raises on a call without a name, after it was paid for, and takes the others for empty replies."""
    with serving({"id": "1", "model": "m", **ODD_BODIES[case]}) as base:
        kind = case.partition(",")[0]
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False, model_type=kind, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            prediction = RLM("question -> answer", max_iters=1)(question="?")
    assert prediction.trajectory[0]["code"] == "print(question)"


def test_a_native_tool_call_runs_behind_the_code_of_its_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "python", "arguments": '{"code": "print(x)"}'}}
    message = {"role": "assistant", "content": block("x = 1"), "tool_calls": [call]}
    with serving({"id": "1", "choices": [{"message": message, "finish_reason": "tool_calls"}]}) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            prediction = RLM("question -> answer", max_iters=1)(question="?")
    assert prediction.trajectory[0]["code"] == "x = 1\nprint(x)"


@pytest.mark.parametrize("count", ["many", -1, 1.5, [1], {"n": 1}, True, 10**30], ids=str)
def test_no_answer_of_gemini_is_lost_to_its_usage(count: Any) -> None:
    """It names its usage otherwise, so what DSPy makes of it is cleaned."""
    candidate = {"content": {"role": "model", "parts": [{"text": TEXT}]}, "finishReason": "STOP"}
    body = {"candidates": [candidate], "usageMetadata": {"promptTokenCount": count, "candidatesTokenCount": 7}}
    with serving(body) as base:
        lm = dspy.LM("gemini/gemini-2.5-flash", api_base=f"{base}beta", api_key="k", cache=False, num_retries=0)
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            prediction = RLM("question -> answer")(question="?")
    read = 1 if count == 1.5 else 0
    usage = prediction.usage
    assert (prediction.answer, usage["input_tokens"], usage["output_tokens"]) == ("paid for", read, 7)
