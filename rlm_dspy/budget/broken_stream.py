"""Keeps the part of a streamed reply that arrived before its stream broke: it is paid, and was shown."""

from __future__ import annotations

from typing import Any, Protocol

from rlm_dspy._dspy_compat import value


class SendStream(Protocol):
    """The stream of `dspy.streamify`, to which DSPy sends chunks and status messages."""

    async def send(self, item: Any) -> None:
        """Hand an item to the reader of the stream."""


class RestartableStream:
    """A stream that can be told that a reply begins again, because the connection broke before its first text."""

    def restart(self) -> None:
        """End what the reply has said: more follows as a reply of its own."""
        raise NotImplementedError


class RecordedStream:
    """Passes the chunks of one request on, and records their text.

    Args:
        stream: The stream that DSPy would send them to.
    """

    def __init__(self, stream: SendStream) -> None:
        self._stream = stream
        self._texts: list[str] = []
        self._has_sent = False

    async def send(self, item: Any) -> None:
        """Record the text of a chunk, and pass it on."""
        for choice in value(item, "choices") or ():
            if isinstance(text := value(value(choice, "delta"), "content"), str):
                self._texts.append(text)
        self._has_sent = True
        await self._stream.send(item)

    def restart(self) -> None:
        """Tell the stream that the request is repeated, if it heard something of the reply."""
        if self._has_sent and isinstance(self._stream, RestartableStream):
            self._stream.restart()

    @property
    def text(self) -> str:
        """The text that was sent so far; without the model's thinking."""
        return "".join(self._texts)
