"""The LM through which a run asks its models: it drops their thinking and repeats requests one by one."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import math
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMError,
    LMProviderError,
    is_retryable_lm_error,
)

from rlm_dspy.errors import LimitExceeded, ReplyCut
from rlm_dspy.lms import finish_reasons, longest_reply, text_of
from rlm_dspy.metering import Refused
from rlm_dspy.patience import given_up
from rlm_dspy.refusals import as_window_error, window_errors
from rlm_dspy.replies import split_thinking
from rlm_dspy.server_usage import accept_any_usage
from rlm_dspy.trajectory import mended

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LONGEST_PAUSE_SECONDS = 60
_OK = 200
_CUT = frozenset(
    {"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length", "token_limit"}
    | {"model_context_window_exceeded", "content_filter"}
)
"""Why a reply may end before its end, as providers name it, in lower case."""
_fields: ContextVar[Collection[str]] = ContextVar("_fields", default=())


@contextlib.contextmanager
def answering(fields: Collection[str]) -> Iterator[None]:
    """Name the fields of the answers in this scope: tags with their names are no thinking."""
    token = _fields.set(fields)
    try:
        yield
    finally:
        _fields.reset(token)


def attempt_by_attempt(lm: Any) -> Any:
    """Return an LM that stands for this one, and shares all that it holds.

    It sends texts without halves of surrogate pairs, which DSPy refuses. It returns answers without the thinking
    before them, and raises `ReplyCut` for one that was cut short; history, callbacks and DSPy's cache have all.

    DSPy repeats a failed request up to `num_retries` times inside one call of the LM, and tells of none but the
    last. What is returned here repeats after the same errors and pauses (dspy 3.4), but by calling itself: each
    request is held, entered and traced on its own, and refused when the limits allow no more. It repeats after a
    reply that is no JSON, too. An LM whose `forward` or `aforward` is not `dspy.LM`'s asks and repeats in its own
    way.
    """
    if not isinstance(lm, dspy.BaseLM) or isinstance(lm, _Reading):
        return lm
    accept_any_usage()
    return _standing_for(lm, _AttemptByAttempt if _can_be_split(lm) else _Reading)


def _can_be_split(lm: dspy.BaseLM) -> bool:
    """Whether DSPy would repeat an LM's requests inside one call."""
    if not isinstance(lm, dspy.LM) or not lm.num_retries or "forward" in vars(lm) or "aforward" in vars(lm):
        return False
    return type(lm).forward is dspy.LM.forward and type(lm).aforward is dspy.LM.aforward


def _standing_for(lm: dspy.BaseLM, way: type[_Reading]) -> dspy.BaseLM:
    again: dspy.BaseLM = object.__new__(_shown(type(lm), way))  # type: ignore[arg-type]
    again.__dict__ = lm.__dict__
    return again


@functools.cache
def _shown(kind: type[dspy.BaseLM], way: type[_Reading]) -> type[dspy.BaseLM]:
    told_as = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "stands_for": kind}
    return type(kind.__name__, (way, kind), told_as)


class _Reading(dspy.BaseLM):
    stands_for: type[dspy.BaseLM]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _sendable(args, kwargs)
        with _noted() as entries, window_errors():
            outputs = self._ask(*args, **kwargs)
        return self._read(outputs, entries)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _sendable(args, kwargs)
        with _noted() as entries, window_errors():
            outputs = await self._aask(*args, **kwargs)
        return self._read(outputs, entries)

    def _ask(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    async def _aask(self, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(*args, **kwargs)

    def update_history(self, entry: dict[str, Any]) -> None:
        """Note what DSPy tells of a request, and keep it if the caller keeps a history."""
        noted = _entries.get()
        if noted is not None:
            noted.entries.append(entry)
        if noted is None or noted.is_kept:
            super().update_history(entry)

    def _read(self, outputs: Any, noted: _Noted) -> Any:
        """Return outputs without the thinking in their texts.

        Raises:
            ReplyCut: If one of them was cut short.
        """
        if not isinstance(outputs, list):  # the response of an explicit request
            return outputs
        outputs = [{**o, "text": _answer(o.get("text"))} if isinstance(o, dict) else _answer(o) for o in outputs]
        for entry in noted.entries:
            if reason := next((reason for reason in finish_reasons(entry["response"]) if reason in _CUT), None):
                raise _cut(self, reason, entry, outputs)
        return outputs

    def _plain(self) -> dspy.BaseLM:
        plain: dspy.BaseLM = object.__new__(self.stands_for)
        plain.__dict__ = self.__dict__
        return plain

    def __copy__(self) -> dspy.BaseLM:
        copied: dspy.BaseLM = attempt_by_attempt(copy.copy(self._plain()))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be copied and pickled as the LM that this one stands for."""
        return _same, (self._plain(),)

    def dump_state(self) -> dict[str, Any]:
        """Be saved as the LM that this one stands for."""
        state: dict[str, Any] = self._plain().dump_state()
        return state


def _sendable(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a request without halves of surrogate pairs, which DSPy refuses.

    The list of messages stays the same object, by which DSPy knows that an adapter made it.
    """
    messages = kwargs.get("messages")
    if isinstance(messages, list):
        messages[:] = mended(messages)
    return mended(args), mended(kwargs)


def _cut(lm: dspy.BaseLM, reason: str, entry: dict[str, Any], outputs: list[Any]) -> ReplyCut:
    """Return the error of an answer that was cut short."""
    text = text_of(outputs)
    if reason == "content_filter":
        return ReplyCut("was cut by the provider's content filter", text)
    tokens = entry["usage"].get("completion_tokens") or longest_reply(lm)
    return ReplyCut(f"was cut after {tokens:,} tokens" if tokens else "was cut", text)


def _answer(text: Any) -> Any:
    return split_thinking(text, fields=_fields.get())[1] if isinstance(text, str) else text


@dataclass
class _Noted:
    """What DSPy tells of the requests of one call, and whether they are kept in the caller's history."""

    is_kept: bool
    entries: list[dict[str, Any]] = field(default_factory=list)


_entries: ContextVar[_Noted | None] = ContextVar("_entries", default=None)


@contextlib.contextmanager
def _noted() -> Iterator[_Noted]:
    """Give what DSPy tells of the requests in this scope, also if no history is kept."""
    outer = _entries.get()
    noted = _Noted(is_kept=not dspy.settings.disable_history and (outer is None or outer.is_kept))
    token = _entries.set(noted)
    try:
        with contextlib.nullcontext() if noted.is_kept else dspy.context(disable_history=False):
            yield noted
    finally:
        _entries.reset(token)


class _AttemptByAttempt(_Reading):
    @property
    def num_retries(self) -> int:
        """How often DSPy itself repeats a request: never."""
        return 0

    @num_retries.setter
    def num_retries(self, number: int) -> None:
        self.__dict__["num_retries"] = number

    def _ask(self, *args: Any, **kwargs: Any) -> Any:
        if not self._told_apart(kwargs):
            return self._unsplit()(*args, **kwargs)
        attempt, last = 0, None
        while True:
            try:
                return super()._ask(*args, **kwargs)
            except LMError as error:
                last = error
                _wait(self._pause(error, attempt))
            except Refused as refused:
                raise _after(refused, last) from last
            attempt += 1

    async def _aask(self, *args: Any, **kwargs: Any) -> Any:
        if not self._told_apart(kwargs):
            return await self._unsplit().acall(*args, **kwargs)
        attempt, last = 0, None
        while True:
            try:
                return await super()._aask(*args, **kwargs)
            except LMError as error:
                last = error
                await asyncio.sleep(self._pause(error, attempt))
            except Refused as refused:
                raise _after(refused, last) from last
            attempt += 1

    def _unsplit(self) -> dspy.BaseLM:
        return _standing_for(self._plain(), _Reading)

    def _told_apart(self, options: dict[str, Any]) -> bool:
        """Whether a request can be repeated whole: not with parts of it shown or paid for already."""
        return dspy.settings.send_stream is None and (options.get("n") or self.kwargs.get("n") or 1) == 1

    def _pause(self, error: LMError, attempt: int) -> float:
        """Return the seconds to wait before the next attempt; raise the error if there is none."""
        again = is_retryable_lm_error(error) or _is_garbled(error)
        too_long = isinstance(as_window_error(error), ContextWindowExceededError)  # also one that came as a 500
        if attempt >= self.__dict__["num_retries"] or too_long or not again:
            raise error
        told = getattr(error, "retry_after", None)
        if isinstance(told, int | float) and math.isfinite(told):
            return max(0.0, told)
        return float(min(2**attempt, _LONGEST_PAUSE_SECONDS))


def _is_garbled(error: LMError) -> bool:
    """Whether a provider has answered, but in what is no JSON: a run must not end of it, nor an item be lost."""
    return type(error) is LMProviderError and getattr(error, "status", None) == _OK


def _same(lm: dspy.BaseLM) -> dspy.BaseLM:
    return lm


def _wait(seconds: float) -> None:
    late = given_up.get()
    if late is None:
        time.sleep(seconds)
    else:
        late.wait(seconds)


def _after(refused: Refused, last: Exception | None) -> Refused:
    """Return a refusal that tells of the attempt before it, if there was one."""
    if last is not None:
        refused.why = LimitExceeded(f"{refused.why} It would have been repeated after {last}", refused.why.limit)
    return refused
