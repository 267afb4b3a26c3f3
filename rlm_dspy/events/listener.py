"""Defines `Listener`, the callback that receives events, and emits events to the listeners in force."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import dspy

from rlm_dspy._dspy_compat import BaseCallback, call_scope
from rlm_dspy.events.event_types import Event, RunEvent

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rlm_dspy.events.event_types import Phase


_SETTING = "rlm_dspy_event"
"""The setting of DSPy that holds the innermost unit: DSPy hands its settings on to its threads."""
_logger = logging.getLogger("dspy.rlm_dspy")
_failed: set[int] = set()
"""Listeners that have raised."""


class Listener(BaseCallback):
    """Receives the events of runs. It is a DSPy callback, and is registered as one."""

    def on_event(self, event: Event) -> None:
        """Handle an event, in the thread or task where it happens."""


E = TypeVar("E", bound=Event)


class unit(Generic[E]):  # noqa: N801 (a scope, used like a function)
    """Emit the start of a unit on entry to this scope, and its end or failure on exit.

    Without a listener, and outside of runs for all but a run, it does nothing.

    Args:
        event: The event of the start.
        ends: Whether the end is emitted here; else by `emit`.
    """

    def __init__(self, event: E, *, ends: bool = True) -> None:
        self.event = event
        self._ends = ends
        self._scope: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        if listeners() and ((outer := here()) is not None or isinstance(self.event, RunEvent)):
            self.event = self.event.within(outer)
            _send(self.event)
            self._scope = contextlib.ExitStack()
            self._scope.enter_context(dspy.context(**{_SETTING: self.event}))
            self._scope.enter_context(call_scope(self.event.id))
        return self

    def end(self, **known: Any) -> None:
        """Note what the event of the end says, by the names of its fields."""
        self.event = replace(self.event, **known)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._scope is None:
            return
        self._scope.close()
        if self._ends:
            seconds = time.monotonic() - self.event.began
            phase: Phase = "failed" if error is not None else "ended"
            _send(replace(self.event, phase=phase, seconds=seconds, error=error))


def emit(event: Event) -> None:
    """Emit an event inside the current unit; do nothing outside of runs."""
    if (outer := here()) is not None:
        _send(event.within(outer))


def here() -> Event | None:
    """Return the innermost unit under way; None outside of runs, or if nobody listened when the run started."""
    found: Event | None = dspy.settings.get(_SETTING)
    return found


def listeners() -> list[Listener]:
    """Return the listeners in force."""
    return [callback for callback in dspy.settings.callbacks if isinstance(callback, Listener)]


def _send(event: Event) -> None:
    for listener in listeners():
        try:
            listener.on_event(event)
        except Exception as error:  # noqa: BLE001 (a listener ends no run)
            if id(listener) not in _failed:
                _failed.add(id(listener))
                _logger.warning("%s failed on an event: %s: %s", listener, type(error).__name__, error)
