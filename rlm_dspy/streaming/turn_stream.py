"""Emits the chunks of a turn's reply as `ChunkEvent`s while they arrive from the LM."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy._dspy_compat import is_chunk
from rlm_dspy.budget.broken_stream import RestartableStream
from rlm_dspy.events import ChunkEvent, chunks_are_heard, emit
from rlm_dspy.streaming.reply_reader import ReplyReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.streaming.run_stream import RunStream


class TurnStream(RestartableStream):
    """Replaces DSPy's stream during one request of a turn.

    Args:
        outer: The stream of the run; None if only listeners to events want the chunks.
        is_raw: Whether the chunks themselves are sent to `outer`, as DSPy does if it has no `StreamListener`.
    """

    def __init__(self, outer: RunStream | None, *, is_raw: bool) -> None:
        self._outer = outer
        self._is_raw = is_raw
        self._reader = ReplyReader()

    async def send(self, item: Any) -> None:
        """Emit the pieces that a chunk of the reply makes certain; pass on all other items."""
        if is_chunk(item):
            for delta in [choice.delta for choice in item.choices[:1]]:
                if thinking := getattr(delta, "reasoning_content", None):
                    emit(ChunkEvent(field="thinking", text=thinking))
                for field, text in self._reader.read(getattr(delta, "content", None) or ""):
                    emit(ChunkEvent(field=field, text=text))
        if self._outer is None:
            return
        if self._is_raw or not is_chunk(item):
            await self._outer.send(item)
        else:
            await self._outer.flush()

    def restart(self) -> None:
        """Read the repeated reply from its beginning."""
        self._reader = ReplyReader()
        emit(ChunkEvent(field="reasoning", text="", again=True))


@contextlib.contextmanager
def split_replies(*, awaited: bool) -> Iterator[None]:
    """Emit the reply of a turn that is requested in this scope as `ChunkEvent`s, if somebody listens.

    Args:
        awaited: Whether the request is awaited. DSPy streams other requests only to an existing stream.
    """
    outer = dspy.settings.send_stream
    if not chunks_are_heard() or not (awaited or outer):
        yield
        return
    emit(ChunkEvent(field="reasoning", text=""))  # this turn is streamed, even if DSPy's cache answers
    stream = TurnStream(outer, is_raw=not dspy.settings.stream_listeners)
    with dspy.context(
        send_stream=stream, stream_listeners=[], track_usage=True
    ):  # LiteLLM asks for usage only then
        yield
