"""Sends what a run streams to `dspy.streamify`: from any thread, in order, one reply after the other."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy

from rlm_dspy._dspy_compat import ClosedStream, is_chunk
from rlm_dspy.budget.broken_stream import RestartableStream
from rlm_dspy.concurrency.wait_scope import running_loop
from rlm_dspy.events import here

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.concurrency.wait_scope import Loop

_WORDS = re.compile(r"\s*\S+\s*")


class ListenedField(NamedTuple):
    """A field that a listener receives, with the name of its predictor as DSPy reports it."""

    predict_name: str
    field: str


class WholeReplyAdapter(dspy.Adapter):
    """An adapter whose predictors have one output field, with the whole reply as its value."""


class RunStream(RestartableStream):
    """Replaces the stream of `dspy.streamify` in a run and the runs inside it.

    Replies that are written at the same time, by the items of a batch or by children, reach a listener one after
    the other: the chunks of the second wait until the first has ended. Every reply that began ends with
    a chunk that has `is_last_chunk`.

    Args:
        stream: The stream of `dspy.streamify`.
        loop: The event loop that reads it.
    """

    def __init__(self, stream: Any, loop: Loop) -> None:
        self._stream = stream
        self._loop = loop
        self._waiting: deque[Any] = deque()
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()
        """Guards the next two attributes. A thread that holds it does not wait for the stream."""
        self._queues: dict[ListenedField, dict[str, list[dspy.streaming.StreamResponse]]] = {}
        """The waiting chunks by field and by reply, in the order of the replies."""
        self._ended: set[tuple[ListenedField, str]] = set()
        self._readers: dict[str, dict[ListenedField, _Reader]] = {}
        """The readers of each reply, one for each field with a listener."""

    async def send(self, item: Any) -> None:
        """Send an item of DSPy. If a predictor has listeners, they read its chunks."""
        listeners = dspy.settings.stream_listeners
        if not (is_chunk(item) and listeners):
            self.put(item)
        elif (unit := here()) is not None:
            for listener in listeners:
                if id(listener.predict) == item.predict_id:
                    self._read(unit.id, listener, item)
        if running_loop() is self._loop:
            await self.flush()

    def restart(self) -> None:
        """End the reply of a sub-call that is requested again."""
        if (unit := here()) is not None:
            self.close_reply(unit.id)

    def put(self, item: Any) -> None:
        """Send an item from any thread. A thread waits until it is sent; the loop itself does not."""
        self._waiting.append(item)
        self._wake()

    def _wake(self) -> None:
        if self._loop.is_closed():  # nobody listens any more
            return
        if running_loop() is self._loop:
            self._begin_to_send()
        elif running_loop() is None:
            sending = self._send_waiting()
            try:
                asyncio.run_coroutine_threadsafe(sending, self._loop).result()
            except RuntimeError:  # the loop was closed meanwhile
                sending.close()
        else:  # DSPy blocks the loop of the run while its status messages are sent on another one
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._begin_to_send)

    def _begin_to_send(self) -> None:
        task = self._loop.create_task(self._send_waiting())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def flush(self) -> None:
        """Wait until all items so far are sent."""
        await self._send_waiting()

    async def _send_waiting(self) -> None:
        async with self._sending:
            while self._waiting:
                with contextlib.suppress(*ClosedStream):  # nobody listens any more
                    await self._stream.send(self._waiting.popleft())

    def emit(self, field: ListenedField, reply: str, text: str, *, is_last: bool = False) -> None:
        """Send a part of a reply to a listener, or keep it until the replies before it have ended."""
        response = dspy.streaming.StreamResponse(field.predict_name, field.field, text, is_last_chunk=is_last)
        with self._lock:
            self._queues.setdefault(field, {}).setdefault(reply, []).append(response)
            self._pass_on(field)
        self._wake()

    def end(self, field: ListenedField, reply: str) -> None:
        """End a reply after its last chunk, so that the chunks of the next reply are sent."""
        with self._lock:
            if reply not in self._queues.get(field, {}):
                return
            self._ended.add((field, reply))
            self._pass_on(field)
        self._wake()

    def _pass_on(self, field: ListenedField) -> None:
        queue = self._queues[field]
        while queue:
            reply = next(iter(queue))
            self._waiting += queue[reply]
            queue[reply] = []
            if (field, reply) not in self._ended:
                return
            del queue[reply]
            self._ended.discard((field, reply))

    def _read(self, reply: str, listener: dspy.streaming.StreamListener, chunk: Any) -> None:
        field = ListenedField(listener.predict_name, listener.signature_field_name)
        readers = self._readers.setdefault(reply, {})
        if field not in readers:
            if listener.stream_start and not listener.allow_reuse:
                return  # it receives one reply, as in DSPy
            listener.stream_start = listener.stream_end = True  # DSPy has nothing of its own to finish
            readers[field] = _Reader(listener)
        for text, is_last in readers[field].read(chunk):
            self.emit(field, reply, text, is_last=is_last)

    def has_read(self, reply: str, field: ListenedField) -> bool:
        """Return whether a reply contained the whole field."""
        reader = self._readers.get(reply, {}).get(field)
        return reader is not None and reader.is_whole

    def close_reply(self, reply: str) -> None:
        """End a reply of which no more chunks come."""
        for field, reader in self._readers.pop(reply, {}).items():
            for text, is_last in reader.finish():
                self.emit(field, reply, text, is_last=is_last)
            self.end(field, reply)


class _Reader:
    """Reads one reply for a listener, with a listener of its own.

    Args:
        listener: The listener of the caller.
    """

    def __init__(self, listener: dspy.streaming.StreamListener) -> None:
        self._listener = renewed(listener, listener.predict, allow_reuse=listener.allow_reuse)
        self._is_open = False
        self.is_whole = False

    def read(self, chunk: Any) -> Iterator[tuple[str, bool]]:
        """Yield the parts of the field in a chunk, and whether each is the last one.

        Nothing is yielded for an adapter whose replies DSPy's listeners cannot read.
        """
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        if isinstance(adapter, WholeReplyAdapter):
            if text := _content(chunk):
                self._is_open = True
                yield text, False
        elif type(adapter).__name__ in self._listener.adapter_identifiers:
            for part in _words(chunk):
                yield from self._parts_of(self._listener.receive(part))

    def finish(self) -> Iterator[tuple[str, bool]]:
        """Yield the rest of the field when the reply has ended."""
        yield from self._parts_of(self._listener.finalize())
        if self._is_open:
            yield "", True

    def _parts_of(self, response: dspy.streaming.StreamResponse | None) -> Iterator[tuple[str, bool]]:
        if response is not None:
            self._is_open, self.is_whole = not response.is_last_chunk, bool(response.is_last_chunk)
            yield response.chunk, bool(response.is_last_chunk)


def renewed(
    listener: dspy.streaming.StreamListener, predict: Any, *, allow_reuse: bool
) -> dspy.streaming.StreamListener:
    """Return a fresh copy of a listener, with the attributes that a subclass adds.

    Args:
        listener: The listener.
        predict: The predictor that the new one listens to.
        allow_reuse: Whether it receives more than one reply.
    """
    made = copy.copy(listener)
    field, name = listener.signature_field_name, listener.predict_name
    dspy.streaming.StreamListener.__init__(made, field, predict, name, allow_reuse)
    return made


def _words(chunk: Any) -> Iterator[Any]:
    """Yield a chunk word by word: DSPy's listener finds no field in a reply that arrives as one chunk."""
    if len(words := _WORDS.findall(_content(chunk))) < 2:  # noqa: PLR2004 (nothing to split)
        yield chunk
        return
    for word in words:
        part = copy.deepcopy(chunk)
        part.choices[0].delta.content = word
        yield part


def _content(chunk: Any) -> str:
    """Return the text of a chunk; empty if it has none."""
    content = chunk.choices[0].delta.content if chunk.choices else None
    return content if isinstance(content, str) else ""
