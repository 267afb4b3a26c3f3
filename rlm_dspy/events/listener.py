"""Defines `Listener`, the callback that receives events, and emits events to the listeners in force."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import dspy

from rlm_dspy._dspy_compat import BaseCallback, call_scope
from rlm_dspy.events.event_types import ChunkEvent, Event, RunEvent
from rlm_dspy.text import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.events.event_types import Phase

_SETTING = "rlm_dspy_event"
"""The DSPy setting that holds the innermost unit: DSPy passes its settings to its threads."""
_logger = logger()
_failed: set[int] = set()
"""Listeners that have raised."""


class Listener(BaseCallback):
    """Receives the events of runs. It is a DSPy callback, and is registered as one.

    Attributes:
        hears_chunks: Whether it receives each `ChunkEvent` too. The replies of turns are requested as streams
            then.
    """

    hears_chunks: bool = False

    def on_event(self, event: Event) -> None:
        """Handle an event, in the thread or task where it happens."""


E = TypeVar("E", bound=Event)


@dataclass
class Unit(Generic[E]):
    """A running unit.

    Attributes:
        event: The event of its start, with the known fields of its end.
    """

    event: E

    def end(self, **known: Any) -> None:
        """Set fields of the end event by name."""
        self.event = replace(self.event, **known)


@contextlib.contextmanager
def unit(event: E, *, ends: bool = True) -> Iterator[Unit[E]]:
    """Emit the start of a unit on entry to this scope, and its end or failure on exit.

    It does nothing without a listener, nor outside runs for any unit but a run.

    Args:
        event: The event of the start.
        ends: Whether the scope emits the end; else `emit` does.
    """
    started, outer, error = Unit(event), here(), None
    if not listeners() or (outer is None and not isinstance(event, RunEvent)):
        yield started
        return
    started.event = event.within(outer)
    _send(started.event)
    try:
        with dspy.context(**{_SETTING: started.event}), call_scope(started.event.id):
            yield started
    except BaseException as raised:
        error = raised
        raise
    finally:
        if ends:
            phase: Phase = "ended" if error is None else "failed"
            seconds = time.monotonic() - started.event.began
            _send(replace(started.event, phase=phase, seconds=seconds, error=error))


def emit(event: Event) -> None:
    """Emit an event inside the current unit; do nothing outside of runs."""
    if (outer := here()) is not None:
        _send(event.within(outer))


def silent() -> contextlib.AbstractContextManager[object]:
    """Emit no events in this scope, but for those of new root runs."""
    scope: contextlib.AbstractContextManager[object] = dspy.context(**{_SETTING: None})
    return scope


def here() -> Event | None:
    """Return the innermost running unit; None outside runs, or if the run started without a listener."""
    found: Event | None = dspy.settings.get(_SETTING)
    return found


def listeners() -> list[Listener]:
    """Return the active listeners."""
    return [callback for callback in dspy.settings.callbacks if isinstance(callback, Listener)]


def chunks_are_heard() -> bool:
    """Return whether what a model writes in this run is to be emitted while it writes it."""
    return here() is not None and any(listener.hears_chunks for listener in listeners())


def _send(event: Event) -> None:
    for listener in listeners():
        if isinstance(event, ChunkEvent) and not listener.hears_chunks:
            continue
        try:
            listener.on_event(event)
        except Exception as error:  # noqa: BLE001 (a listener must not end a run)
            if id(listener) not in _failed:
                _failed.add(id(listener))
                _logger.warning("%s failed on an event: %s: %s", listener, type(error).__name__, error)
