"""Writes answers as OpenAI's responses: one object, or the events of a stream."""

from __future__ import annotations

import itertools
import time
import uuid
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from rlm_dspy.service.answers import RunFacts, content_of, facts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.exceptions import HTTPException

    from rlm_dspy.service.requests import Ask
    from rlm_dspy.service.runs import Finished

_Status = Literal["in_progress", "completed", "incomplete", "failed"]


class _Content(BaseModel):
    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[str] = []


class _Item(BaseModel):
    """The reasoning, or the message."""

    id: str
    type: Literal["reasoning", "message"]
    status: _Status
    content: list[_Content]
    role: Literal["assistant"] | None = None
    summary: list[str] | None = None


class _CachedTokens(BaseModel):
    cached_tokens: int
    cache_write_tokens: int = 0


class _ReasoningTokens(BaseModel):
    reasoning_tokens: int = 0


class _Usage(BaseModel):
    input_tokens: int
    input_tokens_details: _CachedTokens
    output_tokens: int
    output_tokens_details: _ReasoningTokens = _ReasoningTokens()
    total_tokens: int


class _Error(BaseModel):
    code: str
    message: str


class _Incomplete(BaseModel):
    reason: str


class _Response(BaseModel):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    model: str
    status: _Status
    output: list[_Item]
    parallel_tool_calls: bool = False
    tool_choice: Literal["none"] = "none"
    tools: list[str] = []
    usage: _Usage | None = None
    error: _Error | None = None
    incomplete_details: _Incomplete | None = None
    rlm: RunFacts | None = None


class _Event(BaseModel):
    """An event of a stream, with the fields that its type has."""

    type: str
    sequence_number: int
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    response: _Response | None = None
    item: _Item | None = None
    part: _Content | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[str] | None = None


class ResponseWriter:
    """Writes an answer as a response with two items, the reasoning and the message.

    Args:
        model: The name of the served program.
        ask: The request.
    """

    def __init__(self, model: str, ask: Ask) -> None:
        name = uuid.uuid4().hex
        self._ask = ask
        self._response = _Response(
            id=f"resp_{name}", created_at=int(time.time()), model=model, status="in_progress", output=[]
        )
        self._reasoning = _Item(id=f"rs_{name}", type="reasoning", status="in_progress", content=[], summary=[])
        self._message = _Item(id=f"msg_{name}", type="message", status="in_progress", content=[], role="assistant")
        self._told: list[str] = []
        self._numbers = itertools.count()

    def whole(self, reasoning: str, run: Finished) -> BaseModel:
        """Return the response."""
        used, is_whole = run.usage, run.stop != "unanswered"
        known: dict[str, Any] = {
            "status": "completed" if is_whole else "incomplete",
            "incomplete_details": None if is_whole else _Incomplete(reason="max_output_tokens"),
            "output": [
                self._ended(self._reasoning, _Content(type="reasoning_text", text=reasoning)),
                self._ended(self._message, self._answer(run)),
            ],
            "usage": _Usage(
                input_tokens=used.input_tokens,
                input_tokens_details=_CachedTokens(cached_tokens=used.cached_input_tokens),
                output_tokens=used.output_tokens,
                total_tokens=used.input_tokens + used.output_tokens,
            ),
            "rlm": facts_of(run),
        }
        return self._response.model_copy(update=known)

    def begin(self) -> Iterator[str]:
        """Yield the response as it begins, and its reasoning."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)
        yield from self._begun(0, self._reasoning, _Content(type="reasoning_text", text=""))

    def reason(self, text: str) -> Iterator[str]:
        """Yield a piece of the reasoning."""
        self._told.append(text)
        yield self._in_item("response.reasoning_text.delta", 0, delta=text)

    def end(self, run: Finished) -> Iterator[str]:
        """Yield the end of the reasoning, the message and the whole response."""
        reasoning = _Content(type="reasoning_text", text="".join(self._told))
        yield self._in_item("response.reasoning_text.done", 0, text=reasoning.text)
        yield from self._over(0, self._reasoning, reasoning)
        answer = self._answer(run)
        yield from self._begun(1, self._message, _Content(type="output_text", text=""))
        yield self._in_item("response.output_text.delta", 1, delta=answer.text, logprobs=[])
        yield self._in_item("response.output_text.done", 1, text=answer.text, logprobs=[])
        yield from self._over(1, self._message, answer)
        response = self.whole(reasoning.text, run)
        ended = "response.incomplete" if run.stop == "unanswered" else "response.completed"
        yield self._event(ended, response=response)

    def fail(self, error: HTTPException) -> Iterator[str]:
        """Yield the response as failed."""
        told = _Error(code="server_error", message=error.detail)
        response = self._response.model_copy(update={"status": "failed", "error": told})
        yield self._event("response.failed", response=response)

    def _answer(self, run: Finished) -> _Content:
        return _Content(type="output_text", text=content_of(run, as_object=self._ask.as_object))

    def _begun(self, index: int, item: _Item, part: _Content) -> Iterator[str]:
        yield self._event("response.output_item.added", output_index=index, item=item)
        yield self._in_item("response.content_part.added", index, part=part)

    def _over(self, index: int, item: _Item, part: _Content) -> Iterator[str]:
        yield self._in_item("response.content_part.done", index, part=part)
        yield self._event("response.output_item.done", output_index=index, item=self._ended(item, part))

    @staticmethod
    def _ended(item: _Item, part: _Content) -> _Item:
        return item.model_copy(update={"status": "completed", "content": [part]})

    def _in_item(self, kind: str, index: int, **known: Any) -> str:
        item = (self._reasoning, self._message)[index]
        return self._event(kind, output_index=index, content_index=0, item_id=item.id, **known)

    def _event(self, kind: str, **known: Any) -> str:
        event = _Event(type=kind, sequence_number=next(self._numbers), **known)
        return f"event: {kind}\ndata: {event.model_dump_json(exclude_none=True)}\n\n"
