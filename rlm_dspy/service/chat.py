"""Writes answers as OpenAI's chat completions: one object, or the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from rlm_dspy.service.answers import RunFacts, content_of, error_body, facts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.exceptions import HTTPException

    from rlm_dspy.service.requests import Ask
    from rlm_dspy.service.runs import Finished


class _TokenDetails(BaseModel):
    cached_tokens: int


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _TokenDetails


class _Message(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(BaseModel):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: Literal["stop", "length"] | None = None


class _Completion(BaseModel):
    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[_Choice]
    usage: _Usage | None = None
    rlm: RunFacts | None = None


class ChatWriter:
    """Writes an answer as a chat completion.

    Args:
        model: The name of the served program.
        ask: The request.
    """

    def __init__(self, model: str, ask: Ask) -> None:
        self._ask = ask
        self._model, self._id, self._created = model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, reasoning: str, run: Finished) -> BaseModel:
        """Return the completion."""
        content = content_of(run, as_object=self._ask.as_object)
        choice = _Choice(
            message=_Message(content=content, reasoning_content=reasoning), finish_reason=_reason(run)
        )
        return self._completion("chat.completion", [choice], _usage(run), facts_of(run))

    def begin(self) -> Iterator[str]:
        """Yield the role."""
        yield self._chunk(_Message(content=""))

    def reason(self, text: str) -> Iterator[str]:
        """Yield a piece of the reasoning."""
        yield self._chunk(_Message(reasoning_content=text))

    def end(self, run: Finished) -> Iterator[str]:
        """Yield the content, the reason of the end and, if it is asked for, the usage."""
        yield self._chunk(_Message(content=content_of(run, as_object=self._ask.as_object)))
        last = _Choice(delta=_Message(), finish_reason=_reason(run))
        yield _event(self._completion("chat.completion.chunk", [last], rlm=facts_of(run)))
        if self._ask.include_usage:
            yield _event(self._completion("chat.completion.chunk", [], _usage(run)))
        yield "data: [DONE]\n\n"

    def fail(self, error: HTTPException) -> Iterator[str]:
        """Yield the error, which the client raises."""
        yield f"data: {json.dumps(error_body(error))}\n\n"

    def _chunk(self, delta: _Message) -> str:
        return _event(self._completion("chat.completion.chunk", [_Choice(delta=delta)]))

    def _completion(
        self,
        kind: Literal["chat.completion", "chat.completion.chunk"],
        choices: list[_Choice],
        usage: _Usage | None = None,
        rlm: RunFacts | None = None,
    ) -> _Completion:
        return _Completion(
            id=self._id,
            object=kind,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            rlm=rlm,
        )


def _event(completion: _Completion) -> str:
    return f"data: {completion.model_dump_json(exclude_none=True)}\n\n"


def _reason(run: Finished) -> Literal["stop", "length"]:
    return "length" if run.stop == "unanswered" else "stop"


def _usage(run: Finished) -> _Usage:
    used = run.usage
    return _Usage(
        prompt_tokens=used.input_tokens,
        completion_tokens=used.output_tokens,
        total_tokens=used.input_tokens + used.output_tokens,
        prompt_tokens_details=_TokenDetails(cached_tokens=used.cached_input_tokens),
    )
