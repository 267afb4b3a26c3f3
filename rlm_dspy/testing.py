"""Provides `ScriptedLM`, a fake LM that plays back replies, for tests of programs that contain an RLM.

`rlm_dspy.interpreters.ScriptedInterpreter` is the fake interpreter.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from dspy.lm15 import Message, Request, Response, TextPart, Usage

from rlm_dspy.budget.metered_lm import role
from rlm_dspy.loop.function_lm import PythonLM

_ROLES = {"act", "query", "extract", "fold", "run", ""}
"""The roles that are not sub-calls of a signature or module."""


class CutReply(str):
    """The text of a reply that `max_tokens` truncates; its finish reason is `length`."""

    __slots__ = ()


Messages = list[dict[str, str]]
Reply = str | None | BaseException | Callable[[Messages], str]
"""A reply's text; None or `""` for an empty one; an exception to raise; or a function of the messages."""
Replies = Iterable[Reply] | Callable[[Messages], Reply]
"""The replies in order, or one function of the messages that answers every call."""
Script = list[Reply] | Callable[[Messages], Reply]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads in which functions make awaited replies."""
    return ThreadPoolExecutor(256, thread_name_prefix="scripted-lm")


@dataclass
class ScriptedEngine:
    """Plays back replies in order, from any number of threads.

    Attributes:
        replies: The remaining replies, for calls in a role without its own script.
        by_role: The remaining replies of each role: `act`, `child.act`, `query`, `extract`, `fold`, the name
            of a sub, or `subs` for all other subs.
        calls: The messages of each call so far, as dicts with `role` and `content`; `<image>` in a content stands
            for a picture, and so on.
        roles: Who made each of them: `act`, `child.act`, `query`, `extract`, `fold`, a sub's name or `ad_hoc`;
            empty outside of a run.
        seconds: How long each reply takes.
        most_at_once: The largest number of concurrent calls.
    """

    replies: Script
    by_role: dict[str, Script] = field(default_factory=dict)
    seconds: float = 0.0
    calls: list[Messages] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
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

    async def complete_async(self, request: Request) -> Response:
        """Return the next reply without blocking the event loop."""
        messages = self._enter(request)
        try:
            await asyncio.sleep(self.seconds)
            if not callable(self._script(role())):
                return self._answer(request, messages)
            answer = functools.partial(contextvars.copy_context().run, self._answer, request, messages)
            return await asyncio.get_running_loop().run_in_executor(_threads(), answer)  # a function may wait
        finally:
            self._leave()

    def _enter(self, request: Request) -> Messages:
        system = (
            request.system if isinstance(request.system, str) else "".join(p.text for p in request.system or [])
        )
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": message.role, "content": _content(message)} for message in request.messages]
        with self._lock:
            self.calls.append(messages)
            self.roles.append(role())
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
        asks = role()
        script = self._script(asks)
        if callable(script):
            return script(messages)
        with self._lock:
            if not script:
                whose = f", made as {asks!r}" if asks else ""
                raise IndexError(f"The script has no reply left for call {len(self.calls)}{whose}; add one.")
            return script.pop(0)

    def _script(self, asks: str) -> Script:
        """Return the replies for a role: its own, else those of its kind, else the common ones."""
        name = asks.removeprefix("child.")
        kinds = () if name in _ROLES else ("subs",)
        return next((self.by_role[key] for key in (asks, name, *kinds) if key in self.by_role), self.replies)


def _content(message: Message) -> str:
    """Return the texts of a message; `<image>` stands for a picture in it, and so on."""
    parts = (part.text if isinstance(part, TextPart) else f"<{part.type}>" for part in message.parts)
    return "\n".join(parts)


def _script(replies: Replies) -> Script:
    if isinstance(replies, str):
        raise TypeError(f"ScriptedLM takes a list of replies, not a str; pass [{replies[:40]!r}].")
    if isinstance(replies, Mapping):
        raise TypeError(
            "ScriptedLM takes a list of replies, not a dict; pass the replies of a role by its name: act=[...]."
        )
    return replies if callable(replies) else list(replies)


class ScriptedLM(PythonLM):
    r"""A `dspy.LM` that plays back replies. It caches nothing; copies share the script.

    Args:
        replies: The replies in order, or one function of the messages that answers every call. They serve every
            role without its own replies.
        act: The replies of turns.
        child: The replies for turns of child RLMs; by default those of `act`.
        query: The replies to `llm_query`.
        subs: The replies to all other sub-calls, or a dict of them by the name of the sub.
        extract: The replies to the extraction, which reads an answer from the trajectory.
        fold: The replies to the summary of older turns.
        seconds: How long each reply takes.

    Raises:
        TypeError: If replies are a str; a list has one or more.

    Examples:
        >>> import dspy
        >>> from rlm_dspy import RLM
        >>> lm = ScriptedLM(["```python\nSUBMIT(answer=6 * 7)\n```"])
        >>> with dspy.context(lm=lm):
        ...     RLM("question -> answer: int")(question="?").answer
        42
        >>> len(lm.script.calls)
        1
        >>> lm = ScriptedLM(act=["```python\nSUBMIT(answer=llm_query('Which?'))\n```"], query=["Polly"])
        >>> with dspy.context(lm=lm):
        ...     RLM("question -> answer")(question="?").answer
        'Polly'
    """

    def __init__(
        self,
        replies: Replies = (),
        *,
        act: Replies | None = None,
        child: Replies | None = None,
        query: Replies | None = None,
        subs: Replies | Mapping[str, Replies] | None = None,
        extract: Replies | None = None,
        fold: Replies | None = None,
        seconds: float = 0.0,
    ) -> None:
        by_name = subs if isinstance(subs, Mapping) else {"subs": subs}
        given = {"act": act, "child.act": child, "query": query, "extract": extract, "fold": fold, **by_name}
        by_role = {role: _script(replies) for role, replies in given.items() if replies is not None}
        self.script = ScriptedEngine(_script(replies), by_role, seconds)
        super().__init__("scripted/lm", self.script.complete, self.script.complete_async)
