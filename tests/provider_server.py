"""A server that speaks as providers do: their wire formats, and the quirks of their replies.

`ProviderServer.say` makes the replies; `PROVIDERS` says how a client reaches each provider and how its replies
look. A request for a stream gets the events of the same reply (`provider_streams`). Every quirk names its source
(`provider_quirks`).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dspy

from tests.provider_streams import Events, events_of, wants_stream

Body = dict[str, Any]
Json = Any


@dataclass(frozen=True)
class Said:
    """What the model says in one reply.

    Attributes:
        text: Its words.
        thinking: What it thought before.
        read: Tokens of the prompt.
        written: Tokens of the reply.
        finish: Why it ended: `stop` or `length`.
    """

    text: str
    thinking: str = ""
    read: int = 100
    written: int = 20
    finish: str = "stop"


@dataclass
class ProviderServer:
    """A server for one test.

    Attributes:
        say: Makes what is said of the texts of a request's messages.
        answer: Writes it as status and body in a wire format.
        stream: What it makes of the events of a streamed reply; the second argument is the number of the request.
        requests: Path and body of what has arrived.
    """

    say: Callable[[list[str]], Said]
    answer: Callable[[Said, Body], tuple[int, Json]]
    stream: Callable[[Events, int], Events] = lambda events, _number: events
    requests: list[tuple[str, Body]] = field(default_factory=list)
    base: str = ""

    def reply(self, path: str, body: Body) -> tuple[int, Json]:
        """Return status and body for a request."""
        self.requests.append((path, body))
        return self.answer(self.say(texts_of(body)), body)


def texts_of(body: Body) -> list[str]:
    """Return the texts of a request in any wire format, in their order."""
    texts: list[str] = []

    def walk(value: Json) -> None:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            for key in ("content", "text", "parts"):
                walk(value.get(key))

    for key in (
        "system",
        "systemInstruction",
        "system_instruction",
        "instructions",
        "messages",
        "contents",
        "input",
    ):
        walk(body.get(key))
    return texts


@contextlib.contextmanager
def serving(server: ProviderServer) -> Iterator[ProviderServer]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply = server.reply(self.path, body)
            if wants_stream(self.path, body) and isinstance(reply, dict):
                kind, events = events_of(reply)
                if events:
                    self.stream(kind, server.stream(events, len(server.requests) - 1))
                    return
            sent = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def stream(self, kind: str, events: Events) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in events:
                self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Say nothing: a client may hang up."""

    http = Server(("127.0.0.1", 0), Handler)
    server.base = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def chat(said: Said, _body: Body) -> Body:
    """Return a reply of OpenAI's chat completions."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "service_tier": "default",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": said.text}, "finish_reason": said.finish}
        ],
        "usage": {
            "prompt_tokens": said.read,
            "completion_tokens": said.written,
            "total_tokens": said.read + said.written,
        },
    }


def responses(said: Said, _body: Body) -> Body:
    """Return a reply of OpenAI's Responses API."""
    cut = said.finish == "length"
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": said.thinking}]}
    message = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "incomplete" if cut else "completed",
        "content": [{"type": "output_text", "text": said.text, "annotations": []}],
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "model": "gpt-5-mini",
        "output": ([thought] if said.thinking else []) + [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": said.read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said.written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.read + said.written,
        },
    }


def anthropic(said: Said, _body: Body) -> Body:
    """Return a reply of Anthropic's Messages API."""
    thought = {"type": "thinking", "thinking": said.thinking, "signature": "sig"}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": ([thought] if said.thinking else []) + [{"type": "text", "text": said.text}],
        "stop_reason": "max_tokens" if said.finish == "length" else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": said.read,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": said.written,
        },
    }


def gemini(said: Said, _body: Body) -> Body:
    """Return a reply of Gemini's generateContent."""
    parts: list[Json] = [{"text": said.thinking, "thought": True}] if said.thinking else []
    return {
        "candidates": [
            {
                "index": 0,
                "content": {"role": "model", "parts": [*parts, {"text": said.text}]},
                "finishReason": "MAX_TOKENS" if said.finish == "length" else "STOP",
            }
        ],
        "usageMetadata": {
            "promptTokenCount": said.read,
            "candidatesTokenCount": said.written,
            "totalTokenCount": said.read + said.written,
        },
        "modelVersion": "gemini-2.5-flash",
    }


def ollama(said: Said, _body: Body) -> Body:
    """Return a reply of Ollama's /api/chat."""
    message = {"role": "assistant", "content": said.text}
    return {
        "model": "qwen3:8b",
        "created_at": "2026-01-01T00:00:00Z",
        "message": {**message, "thinking": said.thinking} if said.thinking else message,
        "done": True,
        "done_reason": said.finish,
        "prompt_eval_count": said.read,
        "eval_count": said.written,
    }


def bedrock(said: Said, _body: Body) -> Body:
    """Return a reply of Bedrock's Converse API."""
    thought = {"reasoningContent": {"reasoningText": {"text": said.thinking, "signature": "sig"}}}
    return {
        "output": {
            "message": {
                "role": "assistant",
                "content": ([thought] if said.thinking else []) + [{"text": said.text}],
            }
        },
        "stopReason": "max_tokens" if said.finish == "length" else "end_turn",
        "usage": {
            "inputTokens": said.read,
            "outputTokens": said.written,
            "totalTokens": said.read + said.written,
        },
        "metrics": {"latencyMs": 1},
    }


Wire = Callable[[Said, Body], Body]


@dataclass(frozen=True)
class Provider:
    """A provider as a client reaches it.

    Attributes:
        model: The name of the model, with its prefix.
        wire: How it writes its replies.
        path: What is behind the server's address in the client's `api_base`.
        options: What else the client is made with.
        thinking: The field of a message in which thinking stands apart, in the chat format.
    """

    model: str
    wire: Wire = chat
    path: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    thinking: str = ""

    def lm(self, base: str, **more: Any) -> dspy.LM:
        """Return the client that a user makes for it."""
        options = {"api_base": base + self.path, "api_key": "k", "cache": False, "num_retries": 0}
        return dspy.LM(self.model, **{**options, **self.options, **more})

    def write(self, said: Said, body: Body) -> Body:
        """Return a reply without a quirk."""
        reply = self.wire(said, body)
        if said.thinking and self.wire is chat and self.thinking:
            reply["choices"][0]["message"][self.thinking] = said.thinking
        return reply


PROVIDERS = {
    "LM Studio": Provider("lm_studio/qwen3-8b", path="/v1", thinking="reasoning_content"),
    "vLLM": Provider("hosted_vllm/qwen3-8b", path="/v1", thinking="reasoning_content"),
    "llama.cpp": Provider("openai/qwen3-8b", path="/v1", thinking="reasoning_content"),
    "Ollama": Provider("ollama_chat/qwen3:8b", path="/v1", thinking="reasoning"),
    "Ollama by litellm": Provider("ollama_chat/qwen3:8b", ollama, options={"engine": "litellm"}),
    "OpenAI": Provider("openai/gpt-4o-mini", path="/v1"),
    "OpenAI Responses": Provider(
        "openai/gpt-5-mini",
        responses,
        "/v1",
        {"model_type": "responses", "temperature": 1.0, "max_tokens": 16_000},
    ),
    "Azure": Provider("azure/gpt-4o-mini", options={"api_version": "2025-01-01-preview"}),
    "Anthropic": Provider("anthropic/claude-sonnet-4-5", anthropic),
    "Bedrock": Provider(
        "bedrock/converse/anthropic.claude-3-5-sonnet-20240620-v1:0",
        bedrock,
        options={
            "aws_access_key_id": "a",
            "aws_secret_access_key": "s",
            "aws_region_name": "us-east-1",
        },
    ),
    "Gemini": Provider("gemini/gemini-2.5-flash", gemini, "/v1beta"),
    "Groq": Provider("groq/qwen/qwen3-32b", path="/openai/v1", thinking="reasoning"),
    "Groq by litellm": Provider("groq/qwen/qwen3-32b", path="/openai/v1", options={"engine": "litellm"}),
    "DeepSeek": Provider("deepseek/deepseek-reasoner", path="/v1", thinking="reasoning_content"),
    "Mistral": Provider("mistral/mistral-small-latest", path="/v1"),
    "OpenRouter": Provider("openrouter/qwen/qwen3-8b", path="/api/v1", thinking="reasoning"),
}
