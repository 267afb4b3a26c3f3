"""Emits an event when a run, turn, cell, sub-call, tool call or model call starts, ends or fails.

A `Listener` is one of DSPy's callbacks. `dspy.configure(callbacks=[...])` has it hear of every run of the process,
`dspy.context(callbacks=[...])` of those in a scope, in the threads of a run and of DSPy too:

    class Codes(Listener):
        def on_event(self, event: Event) -> None:
            if isinstance(event, CellEvent) and event.phase == "started":
                print(event.code)

The units, and how they lie in one another:

    RunEvent            an RLM is called
      LMEvent           a model is asked (the answer is read from the trajectory, older turns are summed up)
      StepEvent         a step is kept that no turn gave
      TurnEvent
        LMEvent         the model writes code
        CellEvent       the code runs
          ToolEvent     it calls a tool of the user's
          BatchEvent    it calls `llm_query`, `rlm_query`, a sub or a module of its own, for one item or for many
            SubCallEvent  one item
              LMEvent
              RunEvent  a child

Units are emitted in the thread or task that does the work, so that a listener finds the context of the work there.
A listener that raises is told of once on the logger `dspy.rlm_dspy`; the run goes on.
"""

from rlm_dspy.events.event_types import (
    BatchEvent,
    CellEvent,
    Event,
    LMEvent,
    Outcome,
    Phase,
    RunEvent,
    StepEvent,
    SubCallEvent,
    ToolEvent,
    TurnEvent,
)
from rlm_dspy.events.listener import Listener, Unit, emit, here, listeners, unit

__all__ = [
    "BatchEvent",
    "CellEvent",
    "Event",
    "LMEvent",
    "Listener",
    "Outcome",
    "Phase",
    "RunEvent",
    "StepEvent",
    "SubCallEvent",
    "ToolEvent",
    "TurnEvent",
    "Unit",
    "emit",
    "here",
    "listeners",
    "unit",
]
