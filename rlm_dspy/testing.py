"""Fakes for tests of programs that hold an RLM: an LM that plays back replies, without network or cost.

For the other side of a run see `rlm_dspy.interpreters.ScriptedInterpreter`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage, response_to_events


class CutReply(str):
    """A reply's text that ends where `max_tokens` cut it: the provider gives the finish reason `length`."""

    __slots__ = ()


Messages = list[dict[str, str]]
Reply = str | None | BaseException | Callable[[Messages], str]
"""A reply's text; None or `""` for an empty one; an exception to raise; or what makes the text of the messages."""

_threads = ThreadPoolExecutor(256, thread_name_prefix="scripted-lm")
"""Where functions make replies that are awaited."""


@dataclass
class ScriptedEngine:
    """Plays back replies in order, from any number of threads.

    Attributes:
        replies: What is still to come; a callable given alone answers every call.
        calls: The messages of each call so far, as dicts with `role` and `content`.
        seconds: How long each reply takes.
        most_at_once: The largest number of calls that were under way together.
    """

    replies: list[Reply] | Callable[[Messages], Reply]
    seconds: float = 0.0
    calls: list[Messages] = field(default_factory=list)
    most_at_once: int = 0
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def complete(self, request: Request) -> Response:
        """Return the next reply; usage counts words."""
        messages = self._enter(request)
        try:
            time.sleep(self.seconds)
            return self._answer(request, messages)
        finally:
            self._leave()

    def stream(self, request: Request) -> Any:
        """Return the next reply as the events of a stream, all at once."""
        return response_to_events(self.complete(request))

    async def complete_async(self, request: Request) -> Response:
        """Return the next reply without holding up the event loop."""
        messages = self._enter(request)
        try:
            await asyncio.sleep(self.seconds)
            if not callable(self.replies):
                return self._answer(request, messages)
            answer = functools.partial(contextvars.copy_context().run, self._answer, request, messages)
            return await asyncio.get_running_loop().run_in_executor(_threads, answer)  # a function may wait
        finally:
            self._leave()

    def _enter(self, request: Request) -> Messages:
        system = (
            request.system if isinstance(request.system, str) else "".join(p.text for p in request.system or [])
        )
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": message.role, "content": message.text or ""} for message in request.messages]
        with self._lock:
            self.calls.append(messages)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        return messages

    def _leave(self) -> None:
        with self._lock:
            self._under_way -= 1

    def _answer(self, request: Request, messages: Messages) -> Response:
        reply = self._next(messages)
        if callable(reply):
            reply = reply(messages)
        if isinstance(reply, BaseException):
            raise reply
        text = reply if reply is not None else ""
        words_in = sum(len(message["content"].split()) for message in messages)
        words_out = len(text.split())
        usage = Usage(input_tokens=words_in, output_tokens=words_out, total_tokens=words_in + words_out)
        message = Message.assistant([TextPart(text)])
        reason: Literal["length", "stop"] = "length" if isinstance(text, CutReply) else "stop"
        return Response(id=None, model=request.model, message=message, finish_reason=reason, usage=usage)

    def _next(self, messages: Messages) -> Reply:
        if callable(self.replies):
            return self.replies(messages)
        with self._lock:
            if not self.replies:
                raise IndexError(f"The script is over: call {len(self.calls)} has no reply.")
            return self.replies.pop(0)


class _AsyncEngine:
    """The same script for `acall`."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine

    async def complete(self, request: Request) -> Response:
        return await self.engine.complete_async(request)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """Yield the next reply as the events of a stream, all at once."""
        for event in response_to_events(await self.complete(request)):
            yield event


class ScriptedLM(dspy.LM):
    r"""A `dspy.LM` that plays back replies. Nothing is cached; copies share the script.

    Args:
        replies: The replies in order, or one function of the messages that answers every call.
        seconds: How long each reply takes.

    Example:
        >>> from rlm_dspy import RLM
        >>> lm = ScriptedLM(["```python\nSUBMIT(answer=6 * 7)\n```"])
        >>> with dspy.context(lm=lm):
        ...     RLM("question -> answer: int")(question="?").answer
        42
        >>> len(lm.script.calls)
        1
    """

    def __init__(self, replies: Iterable[Reply] | Callable[[Messages], Reply], *, seconds: float = 0.0) -> None:
        self.script = ScriptedEngine(replies if callable(replies) else list(replies), seconds)
        super().__init__(
            "scripted/lm",
            engine=self.script,
            async_engine=_AsyncEngine(self.script),
            cache=False,
            num_retries=0,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedLM:
        """Stay the same object, as programs that hold it are copied."""
        return self
