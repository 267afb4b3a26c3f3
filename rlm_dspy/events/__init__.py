"""Emits an event when a run, turn, cell, sub-call, tool call or model call starts, ends or fails.

A `Listener` is a DSPy callback. `dspy.configure(callbacks=[...])` registers it for every run of the process,
`dspy.context(callbacks=[...])` for those in a scope, including the threads of a run and of DSPy:

    class Codes(Listener):
        def on_event(self, event: Event) -> None:
            if isinstance(event, CellEvent) and event.phase == "started":
                print(event.code)

The units and their nesting:

    RunEvent            an RLM is called
      LMEvent           a model call of the run (extraction of the answer, summary of older turns)
      StepEvent         a step that no turn produced
      TurnEvent
        LMEvent         the model writes code
        PauseEvent      the call failed, and is repeated after a pause; as wherever an LMEvent is
        ChunkEvent      a part of what it writes, if a listener wants to hear it
        ReviewEvent     a hook is asked about the code, a tool call (in the ToolEvent) or the answer
        CellEvent       the code runs
          ToolEvent     it calls a tool of the user's
          BatchEvent    it calls `llm_query`, `rlm_query`, a sub or its own module, for one or many items
            SubCallEvent  one item
              LMEvent
              RunEvent  a child

Events are emitted in the thread or task that does the work, with its context.
If a listener raises, that is logged once on `dspy.rlm_dspy`; the run continues.
"""

from rlm_dspy.events.event_types import (
    BatchEvent,
    CellEvent,
    ChunkEvent,
    Event,
    LMEvent,
    Outcome,
    PauseEvent,
    Phase,
    ReviewEvent,
    RunEvent,
    StepEvent,
    SubCallEvent,
    ToolEvent,
    TurnEvent,
)
from rlm_dspy.events.listener import Listener, Unit, chunks_are_heard, emit, here, listeners, silent, unit

__all__ = [
    "BatchEvent",
    "CellEvent",
    "ChunkEvent",
    "Event",
    "LMEvent",
    "Listener",
    "Outcome",
    "PauseEvent",
    "Phase",
    "ReviewEvent",
    "RunEvent",
    "StepEvent",
    "SubCallEvent",
    "ToolEvent",
    "TurnEvent",
    "Unit",
    "chunks_are_heard",
    "emit",
    "here",
    "listeners",
    "silent",
    "unit",
]
