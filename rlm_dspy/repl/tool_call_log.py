"""Records the tool calls of a turn for the trajectory and for listeners."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from rlm_dspy.events import ToolEvent, unit
from rlm_dspy.repl.value_codec import short
from rlm_dspy.text import clip
from rlm_dspy.trajectory import ToolCall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
_MOST_CALLS = 100
"""Of one turn; further ones are only counted."""
_ARGUMENT_CHARS = 300
_RESULT_CHARS = 600


@dataclass
class ToolCalls:
    """The tool calls of a run's turns.

    Attributes:
        began: When the root run began, by `time.monotonic`.
        calls: Those of the turn so far.
        left_out: How many more there were.
    """

    began: float
    calls: list[ToolCall] = field(default_factory=list)
    left_out: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self) -> None:
        """Begin a turn: `calls` holds what is called from now on."""
        with self._lock:
            self.calls, self.left_out = [], 0

    def record(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Callable[[], T]
    ) -> T | None:
        """Make a call and record what it is given, and what it returns or raises.

        Args:
            name: The tool.
            args: Its arguments without a name.
            kwargs: Its other arguments.
            function: Makes the call.
        """
        result, started, error_type = None, time.monotonic(), ""
        with unit(ToolEvent(name=name, arguments={**({"args": list(args)} if args else {}), **kwargs})) as told:
            try:
                result = function()
            except BaseException as error:
                error_type = type(error).__name__
                raise
            finally:
                call = ToolCall(
                    name=name,
                    arguments=_written(args, kwargs),
                    result="" if error_type else short(result, _RESULT_CHARS),
                    error_type=error_type,
                    started=started - self.began,
                    seconds=time.monotonic() - started,
                )
                self._add(call)
                told.end(result=result, call=call)
        return result

    def _add(self, call: ToolCall) -> None:
        with self._lock:
            if len(self.calls) < _MOST_CALLS:
                self.calls.append(call)
            else:
                self.left_out += 1


def _written(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return arguments as code writes them, cut."""
    parts = [*map(_argument, args), *(f"{name}={_argument(value)}" for name, value in kwargs.items())]
    return clip(", ".join(parts), 2 * _ARGUMENT_CHARS)


def _argument(value: Any) -> str:
    text = short(value, _ARGUMENT_CHARS)
    return repr(text) if isinstance(value, str) else text
