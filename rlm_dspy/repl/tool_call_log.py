"""Records the tool calls of a turn for the trajectory and for listeners."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from rlm_dspy.events import ToolEvent, unit
from rlm_dspy.repl.value_codec import short
from rlm_dspy.text import clip
from rlm_dspy.trajectory import ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOST_CALLS = 100
"""Of one turn; further ones are only counted."""
_ARGUMENT_CHARS = 300
_RESULT_CHARS = 600


class Returned:
    """Holds a tool's result for the record of its call."""

    value: Any = None


class ToolCalls:
    """The tool calls of a run's turns.

    Args:
        began: When the root run began, by `time.monotonic`.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._calls: list[ToolCall] = []
        self._left_out = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Begin a turn: `taken` gives what is called from now on."""
        with self._lock:
            self._calls, self._left_out = [], 0

    def taken(self) -> dict[str, Any]:
        """Return the turn's calls so far and how many were left out, by the fields of `Step`."""
        with self._lock:
            return {"tool_calls": tuple(self._calls), "tool_calls_left_out": self._left_out}

    @contextlib.contextmanager
    def call(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Returned]:
        """Note a call that is made in this scope: what it is given, what it returns or raises.

        Args:
            name: The tool.
            args: Its arguments without a name.
            kwargs: Its other arguments.
        """
        returned, started, error_type = Returned(), time.monotonic(), ""
        with unit(ToolEvent(name=name, arguments={**({"args": list(args)} if args else {}), **kwargs})) as told:
            try:
                yield returned
            except BaseException as error:
                error_type = type(error).__name__
                raise
            finally:
                call = ToolCall(
                    name=name,
                    arguments=_written(args, kwargs),
                    result="" if error_type else short(returned.value, _RESULT_CHARS),
                    error_type=error_type,
                    started=started - self._began,
                    seconds=time.monotonic() - started,
                )
                self._add(call)
                told.end(result=returned.value, call=call)

    def _add(self, call: ToolCall) -> None:
        with self._lock:
            if len(self._calls) < _MOST_CALLS:
                self._calls.append(call)
            else:
                self._left_out += 1


def _written(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return arguments as code writes them, cut."""
    parts = [*map(_argument, args), *(f"{name}={_argument(value)}" for name, value in kwargs.items())]
    return clip(", ".join(parts), 2 * _ARGUMENT_CHARS)


def _argument(value: Any) -> str:
    text = short(value, _ARGUMENT_CHARS)
    return repr(text) if isinstance(value, str) else text
