"""Delivers a run to `dspy.streamify`: its turns, sub-calls and outputs to stream listeners, its steps as status.

What a `dspy.streaming.StreamListener` on an RLM receives:

- `code` and `reasoning` of `act`: every turn of every run, with the model's thinking in `reasoning`. The
  `predict_name` of a child is `child.act`.
- An output field of the RLM: the value of each run as one chunk. If the answer is read from the trajectory, the
  chunks arrive as the model writes them.
- A field of a sub, such as `subs.claims`: as from any predictor.

If other code runs than the model wrote (repaired code, or code after a draft in its thinking), that code follows
in a chunk of its own after the last chunk of what the model wrote.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
import pydantic_core

from rlm_dspy._dspy_compat import StatusStreamingCallback
from rlm_dspy.concurrency.wait_scope import running_loop, wait_scope
from rlm_dspy.events import (
    BatchEvent,
    CellEvent,
    ChunkEvent,
    Listener,
    RunEvent,
    SubCallEvent,
    ToolEvent,
    TurnEvent,
)
from rlm_dspy.streaming.run_stream import ListenedField, RunStream, renewed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlm_dspy.events import Event


@dataclass
class _Written:
    """The part of a turn's reply that was emitted so far.

    Attributes:
        code: The code.
        reasoning: The text around it.
        emitted: The fields with at least one emitted chunk.
        held: White space at the end of the reasoning, which is emitted if more text follows.
    """

    code: str = ""
    reasoning: str = ""
    emitted: set[str] = field(default_factory=set)
    held: str = ""


class Delivery(Listener):
    """Sends one run, but not the runs inside it, to the stream.

    Args:
        rlm: The module.
        stream: The stream.
        is_child: Whether it is a child of a run of the same predictor.
    """

    def __init__(self, rlm: dspy.Module, stream: RunStream, *, is_child: bool) -> None:
        self.rlm = rlm
        self._stream = stream
        self._is_child = is_child
        self._listeners = dspy.settings.stream_listeners
        self._run = ""
        self._turns: dict[str, _Written] = {}
        self.hears_chunks = any(True for _ in self._listened("code", "reasoning"))

    def on_event(self, event: Event) -> None:
        """Send the chunks and the status message for an event of the run."""
        if isinstance(event, RunEvent) and not self._run:
            self._run = event.id
        if event.run != self._run:
            return
        begins = event.phase == "started"
        match event:
            case ChunkEvent(parent=str(turn)):
                self._write(turn, event)
            case CellEvent(parent=str(turn)) if begins:
                self._end_turn(turn, event.reasoning, event.code)
            case TurnEvent() if not begins:
                self._end_turn(event.id, event.step.reasoning if event.step else "", "")
                self._stream.close_reply(event.id)
            case SubCallEvent() if not begins:
                self._stream.close_reply(event.id)
            case RunEvent() if not begins:
                self._end_run(event)
        self._send_status(event)

    def _listened(self, *fields: str) -> Iterator[ListenedField]:
        """Yield the fields of the turns that have listeners, once for each listener."""
        for listener in self._listeners:
            if listener.predict is self.rlm.act and listener.signature_field_name in fields:
                before, act, last = (listener.predict_name or "act").rpartition("act")
                name = f"{before}{'child.' if self._is_child else ''}{act}{last}"
                listener.stream_start = listener.stream_end = True  # DSPy has nothing of its own to finish
                yield ListenedField(name, listener.signature_field_name)

    def _write(self, turn: str, event: ChunkEvent) -> None:
        if event.again:
            self._finish(turn)
        written, text = self._turns.setdefault(turn, _Written()), event.text
        if not text:
            return
        if event.field == "code":
            written.code += text
        elif event.field == "reasoning":
            written.reasoning += text
        if event.field != "code":
            said = (written.held + text).rstrip() if "reasoning" in written.emitted else text.strip()
            text, written.held = said, (written.held + text)[len(said) :] if said else written.held + text
        self._emit(turn, "code" if event.field == "code" else "reasoning", text)

    def _emit(self, turn: str, name: str, text: str, *, is_last: bool = False) -> None:
        if text or is_last:
            self._turns[turn].emitted.add(name)
            for listened in self._listened(name):
                self._stream.emit(listened, turn, text, is_last=is_last)

    def _end_turn(self, turn: str, reasoning: str, code: str) -> None:
        """Emit the rest of a turn's reply, which is known only at its end, and end the reply."""
        written = self._turns.get(turn)
        if written is None:
            return
        prose, is_cut = written.reasoning.rstrip(), "code" in written.emitted and not code
        if not is_cut and reasoning.startswith(prose) and (rest := reasoning[len(prose) :]):
            self._emit(turn, "reasoning", written.held + rest.lstrip() if "reasoning" in written.emitted else rest)
        if "code" in written.emitted and code and not code.startswith(written.code):
            self._emit(turn, "code", "", is_last=True)
            written.code = ""
        self._emit(turn, "code", code[len(written.code) :])
        self._finish(turn)
        for listened in self._listened("code", "reasoning"):
            self._stream.end(listened, turn)

    def _finish(self, turn: str) -> None:
        """Emit the last chunk of each field of a reply."""
        for name in sorted(self._turns[turn].emitted):
            self._emit(turn, name, "", is_last=True)
        del self._turns[turn]

    def _end_run(self, event: RunEvent) -> None:
        outputs, stream = event.outcome.outputs, self._stream
        of_rlm = [each for each in self._listeners if each.predict is self.rlm and event.phase == "ended"]
        all_fields = [ListenedField(each.predict_name, each.signature_field_name) for each in of_rlm]
        is_extracted = event.outcome.stop == "extracted"
        read = [listened for listened in all_fields if is_extracted and stream.has_read(event.id, listened)]
        stream.close_reply(event.id)
        for listener, listened in zip(of_rlm, all_fields, strict=True):
            listener.stream_start = listener.stream_end = True
            if listened not in read:
                value = outputs.get(listened.field)
                stream.emit(listened, event.id, "" if value is None else _text(value), is_last=True)
                stream.end(listened, event.id)

    def _send_status(self, event: Event) -> None:
        """Send the status message for a tool call, a sub-call or a block of code, each reported as a tool."""
        if not isinstance(event, CellEvent | ToolEvent | BatchEvent):
            return
        provider = next(
            (each.status_message_provider for each in dspy.settings.callbacks if _sends_status(each)), None
        )
        if provider is None:
            return
        if event.phase == "started":
            message = provider.tool_start_status_message(*self._as_tool(event))
        elif type(provider) is dspy.streaming.StatusMessageProvider and (
            not isinstance(event, CellEvent) or event.kind == "submitted"
        ):
            return  # its message says that the model is called next
        else:
            message = provider.tool_end_status_message(_result(event))
        if message:
            self._stream.put(dspy.streaming.StatusMessage(message))

    def _as_tool(self, event: CellEvent | ToolEvent | BatchEvent) -> tuple[dspy.Tool, Mapping[str, Any]]:
        """Return the tool that represents a call or a block of code, and its inputs."""
        match event:
            case ToolEvent():
                tool, arguments = self.rlm.tools[event.name], dict(event.arguments)
                return tool, {**dict(zip(tool.args, arguments.pop("args", ()), strict=False)), **arguments}
            case CellEvent():
                return _tool("python"), {"code": event.code}
            case BatchEvent():
                one = len(event.items) == 1
                return _tool(event.name), event.items[0] if one else {"items": list(event.items)}


class Streaming:
    """A scope in which a run is streamed, if it is called inside `dspy.streamify`.

    Args:
        rlm: The module that is called.
    """

    def __init__(self, rlm: dspy.Module) -> None:
        self._rlm = rlm
        self._stream: RunStream | None = None
        self._scope = contextlib.ExitStack()

    def __enter__(self) -> None:
        """Enter the scope of a run in this thread."""
        self._enter(wait_scope().free_loop)

    def __exit__(self, *error: object) -> None:
        """Leave the scope."""
        self._scope.close()

    async def __aenter__(self) -> None:
        """Enter the scope of a run on this event loop."""
        self._enter(running_loop())

    async def __aexit__(self, *error: object) -> None:
        """Leave the scope when everything was sent."""
        self.__exit__(*error)
        if self._stream is not None and error[0] is None:
            await self._stream.flush()

    def _enter(self, loop: Any) -> None:
        given = dspy.settings.send_stream
        stream = given or wait_scope().stream
        if stream is None:
            return
        changes: dict[str, Any] = {"send_stream": None}  # nothing can be sent: its loop waits for this call
        if loop is not None:
            self._stream = stream if isinstance(stream, RunStream) else RunStream(stream, loop)
            callbacks = dspy.settings.callbacks
            outer = [each.rlm.act for each in callbacks if isinstance(each, Delivery)]
            is_child = bool(outer) and outer[-1] is self._rlm.act
            own = Delivery(self._rlm, self._stream, is_child=is_child)
            changes = {"send_stream": given and self._stream, "callbacks": [*callbacks, own]}
        self._scope.enter_context(dspy.context(**changes))


def outputs_heard(rlm: dspy.Module, extract: dspy.Predict) -> dict[str, Any]:
    """Return settings that connect listeners of an RLM's outputs to the predictor that extracts them."""
    if not (listeners := dspy.settings.stream_listeners):
        return {}
    return {
        "stream_listeners": [
            renewed(each, extract, allow_reuse=True) if each.predict is rlm else each for each in listeners
        ]
    }


@functools.cache
def _tool(name: str) -> dspy.Tool:
    return dspy.Tool(lambda **_: None, name=name)


def _sends_status(callback: Any) -> bool:
    return isinstance(callback, StatusStreamingCallback)


def _result(event: CellEvent | ToolEvent | BatchEvent) -> Any:
    match event:
        case ToolEvent():
            return event.result
        case CellEvent():
            return event.output
        case BatchEvent():
            return list(event.answers)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else pydantic_core.to_json(value, fallback=str).decode()
