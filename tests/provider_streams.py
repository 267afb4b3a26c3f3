"""The events in which providers stream a reply, made of the whole reply: a quirk of one is also in the other."""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Body = dict[str, Any]
Events = list[bytes]

PIECE_CHARS = 7
SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


def pieces(text: str) -> Iterator[str]:
    """Cut a text as a model streams it."""
    return (text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS))


def event(data: Body, name: str = "") -> bytes:
    """Return one server-sent event."""
    title = f"event: {name}\n" if name else ""
    return f"{title}data: {json.dumps(data)}\n\n".encode()


def chat(reply: Body) -> Events:
    """Stream a reply of OpenAI's chat completions: the usage comes last, in an event without choices."""
    head = {**{name: reply.get(name) for name in ("id", "created", "model")}, "object": "chat.completion.chunk"}
    events: Events = []

    def say(delta: Body, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        events.append(event({**head, "choices": [choice]}))

    for choice in reply["choices"]:
        say({"role": "assistant", "content": ""})
        message = choice["message"]
        for name in ("reasoning_content", "reasoning", "content"):
            if isinstance(message.get(name), list):  # Mistral's parts
                for part in message[name]:
                    say({name: [part] if part["type"] == "thinking" else part["text"]})
                continue
            for piece in pieces(message.get(name) or ""):
                say({name: piece})
        for index, call in enumerate(message.get("tool_calls") or []):
            say({"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": ""}}]})
            for piece in pieces(call["function"]["arguments"]):
                say({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        say({}, choice["finish_reason"])
    if "usage" in reply:
        events.append(event({**head, "choices": [], "usage": reply["usage"]}))
    return [*events, DONE]


def responses(reply: Body) -> Events:
    """Stream a reply of OpenAI's Responses API."""
    started = {**reply, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    told: list[Body] = [{"type": "response.created", "response": started}]
    for at, item in enumerate(reply["output"]):
        is_message = item["type"] == "message"
        parts = item["content"] if is_message else item["summary"]
        kind = "output_text" if is_message else "reasoning_summary_text"
        where = {"output_index": at, "item_id": item["id"], "content_index" if is_message else "summary_index": 0}
        empty = {**item, "content": []} if is_message else {**item, "summary": []}
        told.append({"type": "response.output_item.added", "output_index": at, "item": empty})
        part_kind = "content_part" if is_message else "reasoning_summary_part"
        for part in parts:
            told.append({"type": f"response.{part_kind}.added", **where, "part": {**part, "text": ""}})
            told += [{"type": f"response.{kind}.delta", **where, "delta": piece} for piece in pieces(part["text"])]
            told.append({"type": f"response.{kind}.done", **where, "text": part["text"]})
            told.append({"type": f"response.{part_kind}.done", **where, "part": part})
        told.append({"type": "response.output_item.done", "output_index": at, "item": item})
    told.append({"type": f"response.{reply['status']}", "response": reply})
    return [event({**each, "sequence_number": at}, str(each["type"])) for at, each in enumerate(told)]


def anthropic(reply: Body) -> Events:
    """Stream a reply of Anthropic's Messages API: the usage comes in two events."""
    opening = {**reply, "content": [], "stop_reason": None, "usage": {**reply["usage"], "output_tokens": 1}}
    told: list[Body] = [{"type": "message_start", "message": opening}, {"type": "ping"}]
    for index, block in enumerate(reply["content"]):
        kind = block["type"]
        empty = {**block, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
        told.append({"type": "content_block_start", "index": index, "content_block": empty})
        deltas = [{"type": f"{kind}_delta", kind: piece} for piece in pieces(block[kind])]
        if kind == "thinking":
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        told += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        told.append({"type": "content_block_stop", "index": index})
    ending = {"stop_reason": reply["stop_reason"], "stop_sequence": None}
    told += [{"type": "message_delta", "delta": ending, "usage": reply["usage"]}, {"type": "message_stop"}]
    return [event(each, each["type"]) for each in told]


def gemini(reply: Body) -> Events:
    """Stream a reply of Gemini's streamGenerateContent: each event is a reply with a part of the text."""
    events: Events = []
    for candidate in reply["candidates"]:
        for part in candidate["content"]["parts"]:
            for piece in pieces(part["text"]):
                content = {"role": "model", "parts": [{**part, "text": piece}]}
                told = {**reply, "candidates": [{"index": 0, "content": content}]}
                events.append(event({name: value for name, value in told.items() if name != "usageMetadata"}))
        ended = {"index": 0, "content": {"role": "model", "parts": [{"text": ""}]}}
        events.append(event({**reply, "candidates": [{**ended, "finishReason": candidate["finishReason"]}]}))
    return events


def ollama(reply: Body) -> Events:
    """Stream a reply of Ollama's /api/chat: lines of JSON."""
    head = {name: reply[name] for name in ("model", "created_at")}
    told = [
        {**head, "message": {"role": "assistant", "content": "", name: piece}, "done": False}
        for name in ("thinking", "content")
        for piece in pieces(reply["message"].get(name) or "")
    ]
    told.append({**reply, "message": {"role": "assistant", "content": ""}})
    return [json.dumps(each).encode() + b"\n" for each in told]


def bedrock(reply: Body) -> Events:
    """Stream a reply of Bedrock's ConverseStream, in the binary event streams of AWS."""
    events = [_aws("messageStart", {"role": "assistant"})]
    for at, part in enumerate(reply["output"]["message"]["content"]):
        thought = (part.get("reasoningContent") or {}).get("reasoningText")
        for piece in pieces(thought["text"] if thought else part["text"]):
            delta = {"reasoningContent": {"text": piece}} if thought else {"text": piece}
            events.append(_aws("contentBlockDelta", {"contentBlockIndex": at, "delta": delta}))
        if thought:
            signature = {"reasoningContent": {"signature": thought["signature"]}}
            events.append(_aws("contentBlockDelta", {"contentBlockIndex": at, "delta": signature}))
        events.append(_aws("contentBlockStop", {"contentBlockIndex": at}))
    events.append(_aws("messageStop", {"stopReason": reply["stopReason"]}))
    return [*events, _aws("metadata", {"usage": reply["usage"], "metrics": reply["metrics"]})]


def _aws(kind: str, data: Body) -> bytes:
    """Return a message of `application/vnd.amazon.eventstream`: lengths, headers, payload and their checksums."""
    headers = b""
    for name, value in (
        (":event-type", kind),
        (":content-type", "application/json"),
        (":message-type", "event"),
    ):
        headers += struct.pack("!B", len(name)) + name.encode()
        headers += struct.pack("!BH", 7, len(value)) + value.encode()  # 7: a string
    payload = json.dumps(data).encode()
    lengths = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = lengths + struct.pack("!I", zlib.crc32(lengths)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


_WIRES: tuple[tuple[str, str, Callable[[Body], Events]], ...] = (
    # a field that only such a reply has, its content type, and what streams it
    ("choices", SSE, chat),
    ("output_text", SSE, responses),
    ("candidates", SSE, gemini),
    ("prompt_eval_count", "application/x-ndjson", ollama),
    ("stopReason", "application/vnd.amazon.eventstream", bedrock),
    ("stop_reason", SSE, anthropic),
    ("parallel_tool_calls", SSE, responses),
)


def events_of(reply: Body) -> tuple[str, Events]:
    """Return the content type and the events of a whole reply in any wire format; none for anything else."""
    return next(((kind, write(reply)) for field, kind, write in _WIRES if field in reply), (SSE, []))


def wants_stream(path: str, body: Body) -> bool:
    """Whether a request asks for a stream: by a field, for Gemini and Bedrock by path, for Ollama by default."""
    by_path = "streamGenerateContent" in path or path.endswith("/converse-stream")
    return by_path or bool(body.get("stream", path.endswith("/api/chat")))
