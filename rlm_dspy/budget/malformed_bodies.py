"""Patches DSPy 3.4 to accept malformed usage and tool calls, where DSPy raises and loses a paid answer.

It also makes errors of bodies with status 200, which DSPy takes for empty replies.

`RequestUsage` collects what one request reports.
"""

from __future__ import annotations

import functools
import json
from dataclasses import fields
from http import HTTPStatus
from typing import Any

from dspy.lm15 import AnthropicLM, GeminiLM, OpenAIChatLM, OpenAILM, ProviderError

from rlm_dspy._dspy_compat import HttpResponse, UsageTracker, WireUsage
from rlm_dspy.budget.lm_info import count_of

_CONTENT = ("choices", "output", "content", "candidates", "data", "embeddings", "results", "text")
"""Fields that hold what was asked for, of any kind of request."""
_HOLDS_REPLY = (
    (OpenAIChatLM, ("choices",)),
    (OpenAILM, ("output",)),
    (AnthropicLM, ("content",)),
    (GeminiLM, ("candidates", "promptFeedback")),
)
"""DSPy's clients, and the fields of a body of which a reply has one."""
_SHOWN_CHARS = 200
_ERRORS = ("error", "errors", "base_resp", "message", "detail", "msg")


@functools.cache
def accept_malformed_bodies() -> None:
    """Patch DSPy's clients to accept any usage (invalid token counts are ignored) and tool call, and see errors.

    It applies to the whole process from the first model call of a run on, and does not change replies that DSPy
    accepts.
    """
    read_json, check = HttpResponse.json, WireUsage.__post_init__
    names = [field.name for field in fields(WireUsage)]

    def json_of(self: HttpResponse) -> Any:
        body = read_json(self)
        if b"NaN" in self.body or b"Infinity" in self.body:
            body = json.loads(self.body, parse_constant=lambda _: None)
        return _as_expected(body) if isinstance(body, dict) else body

    def post_init(self: WireUsage) -> None:
        """Clean what a body names otherwise (Gemini), and what comes in the events of a stream."""
        for name in names:
            if (count := getattr(self, name)) is not None:
                object.__setattr__(self, name, count_of(count))
        check(self)

    HttpResponse.json, WireUsage.__post_init__ = json_of, post_init
    for client, names_of_reply in _HOLDS_REPLY:
        _refuse_others(client, names_of_reply)


def _refuse_others(client: Any, names: tuple[str, ...]) -> None:
    """Let a client raise an error for a body without the fields of a reply, which it takes for an empty one."""
    parse = client.parse_response

    @functools.wraps(parse)
    def parse_reply(self: Any, request: Any, response: HttpResponse) -> Any:
        if words := _why_no_reply(response, names):
            raise ProviderError(words, provider=response.provider, status=response.status)
        return parse(self, request, response)

    client.parse_response = parse_reply


def _why_no_reply(response: HttpResponse, names: tuple[str, ...]) -> str:
    """Return what is wrong with a response that holds no reply; empty if it may hold one."""
    if response.status >= HTTPStatus.MULTIPLE_CHOICES:
        to = f" to {place}" if (place := response.header("location")) else ""
        words = f"the server answers with HTTP {response.status}, a redirect{to} that is not followed"
        return f"{words}: {_start_of(response)!r}"
    body = response.json()
    if isinstance(body, dict) and (isinstance(body.get("error"), dict) or any(name in body for name in names)):
        return ""
    words = f"the reply (HTTP {response.status}) has no `{names[0]}`"
    return f"{words}: {_start_of(response)!r}. Is api_base that of another API?"


def _start_of(response: HttpResponse) -> str:
    return " ".join(response.text()[: 10 * _SHOWN_CHARS].split())[:_SHOWN_CHARS]


def _as_expected(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body in the form that DSPy reads."""
    if "usage" in body:
        body["usage"] = _without_odd_parts(body["usage"])
    if words := _error_in(body):
        body["error"] = {"message": words}  # DSPy would take it for an empty reply
    elif body.get("choices") and not _error_words(body.get("error")):
        body.pop("error", None)  # an empty error beside a reply
    if isinstance(choices := body.get("choices"), list):
        body["choices"] = [_choice(choice) for choice in _one_message(choices)]
    elif isinstance(items := body.get("output"), list):
        body["output"] = [_item(item) for item in items]
    return body


def _error_in(body: dict[str, Any]) -> str:
    """Return the words of a reply with status 200 that is an error in another form than `{"error": {...}}`.

    LM Studio sends `error` as text; others `message`, `detail`, `errors` or MiniMax's `base_resp` alone.
    """
    if any(body.get(name) for name in _CONTENT) or isinstance(body.get("choices"), list):
        return ""
    if isinstance(body.get("error"), dict):
        return ""
    return next((words for name in _ERRORS if (words := _error_words(body.get(name)))), "")


def _error_words(value: Any) -> str:
    """Return what an error says; empty if it says nothing."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("message") or value.get("status_msg") or value.get("msg") or value.get("code")
    return "" if value is None or value in (0, "0", "success") else str(value)


def _one_message(choices: list[Any]) -> list[Any]:
    """Return the first choice that says something, of a chat completion: DSPy never asks for several."""
    if len(choices) <= 1:
        return choices
    messages = [choice.get("message") if isinstance(choice, dict) else None for choice in choices]
    if not all(isinstance(message, dict) for message in messages):
        return choices
    says = [bool(message.get("content") or message.get("tool_calls")) for message in messages if message]
    return [choices[says.index(True) if True in says else 0]]


def _choice(choice: Any) -> Any:
    """Return a choice whose message has tool calls with names, and text as its content."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return choice
    calls, content = message.get("tool_calls") or message.get("function_call"), message.get("content")
    if calls:
        listed = calls if isinstance(calls, list) else [calls]
        message = {**message, "tool_calls": [_tool_call(number, call) for number, call in enumerate(listed)]}
    if content is not None and not isinstance(content, str):
        message = {**message, "content": _content(content)}
    return {**choice, "message": message}


def _content(content: Any) -> Any:
    """Return the content of a chat message as text or parts: gateways send a part alone, or of another API."""
    if isinstance(content, list):
        return [_part(part) for part in content]
    part = _part(content)
    return [part] if isinstance(part, dict) and part.get("type") == "text" else json.dumps(content)


def _part(part: Any) -> Any:
    """Return a part of content; one of text in the form of chat completions."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") in ("text", "output_text") else part
    text = text.get("value") if isinstance(text, dict) and text is not part else text
    return {"type": "text", "text": text} if isinstance(text, str) else part


def _tool_call(number: int, call: Any) -> dict[str, Any]:
    """Return a tool call of a chat message in OpenAI's form; its parts may be missing, or have another place."""
    call = call if isinstance(call, dict) else {"arguments": call}
    inner = next((call[kind] for kind in ("function", "custom") if isinstance(call.get(kind), dict)), call)
    function = {name: _named(inner)[name] for name in ("name", "arguments")}
    return {**call, "id": str(call.get("id") or number), "type": "function", "function": function}


def _item(item: Any) -> Any:
    """Return an item of a Responses body, with a name if it is a tool call, and parts if it is a message."""
    if isinstance(item, dict) and isinstance(text := item.get("content"), str):
        return {**item, "content": [{"type": "output_text", "text": text}]}
    is_call = isinstance(item, dict) and item.get("type") in ("function_call", "custom_tool_call")
    return {**_named(item), "type": "function_call"} if is_call else item


def _named(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with a name and arguments; those of a custom tool are text, which is its input."""
    arguments = call.get("arguments")
    if arguments is None and isinstance(text := call.get("input"), str):
        arguments = json.dumps({"code": text})
    return {**call, "name": call.get("name") or "python", "arguments": arguments}


def _without_odd_parts(usage: Any) -> dict[str, Any]:
    """Return a usage with numeric tokens, and details in the form that DSPy expects."""
    if not isinstance(usage, dict):
        return {}
    parts = {name: part for name, part in usage.items() if isinstance(part, dict) or not name.endswith("_details")}
    for name, part in parts.items():
        if name.endswith("_tokens"):
            parts[name] = count_of(part)
        elif name.endswith("_tokens_details"):
            parts[name] = _without_odd_parts(part)
    return parts


class RequestUsage(UsageTracker):
    """Collects the usage of one request, and forwards it to the caller's tracker.

    Args:
        callers: The caller's tracker, or None.
    """

    def __init__(self, callers: UsageTracker | None = None) -> None:
        super().__init__()
        # An LM that calls another: each counts its own.
        self.callers: UsageTracker | None = callers.callers if isinstance(callers, RequestUsage) else callers
        self.is_reported = False

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Add the usage that DSPy reports, without details that cannot be summed."""
        self.is_reported = True
        usage_entry = {
            name: value
            for name, value in self._flatten_usage_entry(usage_entry).items()
            if not name.endswith(("_tokens", "_details")) or isinstance(value, dict) == name.endswith("_details")
        }
        super().add_usage("", usage_entry)
        if self.callers is not None:
            self.callers.add_usage(lm, usage_entry)
