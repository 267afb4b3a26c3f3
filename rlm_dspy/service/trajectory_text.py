"""Writes the trajectory of a run as Markdown while it runs: what clients are sent as reasoning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.events import BatchEvent, CellEvent, ChunkEvent, Listener, RunEvent, StepEvent, TurnEvent
from rlm_dspy.text import counted
from rlm_dspy.usage import RunUsage, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.events import Event

_OPEN, _CLOSE = "\n```python\n", "\n```\n"


class TrajectoryText(Listener):
    """Tells the turns of the runs of one request, but not those of children, as pieces of one Markdown text.

    Attributes:
        stop: How the last run ended, as `prediction.stop` has it.
        spent: What all runs that ended have used.

    Args:
        tell: Receives each piece, in the thread where it happens.
        hears_chunks: Whether a reply is told while the model writes it.
    """

    def __init__(self, tell: Callable[[str], object], *, hears_chunks: bool) -> None:
        self._tell = tell
        self.hears_chunks = hears_chunks
        self.stop = ""
        self.spent: Usage = RunUsage()
        self._forget()

    def _forget(self) -> None:
        """Begin a reply."""
        self._written = {"thinking": "", "reasoning": "", "code": ""}
        self._in_code = self._has_cell = False

    def on_event(self, event: Event) -> None:
        """Tell what an event says."""
        if event.depth:
            return
        begins = event.phase == "started"
        match event:
            case ChunkEvent():
                self._write(event)
            case CellEvent() if begins:
                self._begin_cell(event.reasoning, event.code)
            case BatchEvent() if begins:
                self._tell(f"[{event.name}: {counted(len(event.items), 'call')}]\n")
            case CellEvent():
                self._block(event.output)
            case TurnEvent() if begins:
                self._forget()
            case TurnEvent() if event.step and not self._has_cell:  # no code
                self._say_rest(event.step.reasoning)
                self._block(event.step.observation)
            case StepEvent() if event.step.kind == "folded":
                self._tell("\n(Earlier turns are summarized.)\n")
            case RunEvent() if not begins:
                self.stop = event.outcome.stop
                self.spent += event.outcome.usage

    def _write(self, event: ChunkEvent) -> None:
        if event.again:
            self._leave_code()
            self._tell("\n(The reply broke off, and begins again.)\n")
            self._forget()
        if not event.text:
            return
        if event.field != "code":
            self._leave_code()
        elif not self._in_code:
            self._in_code = True
            self._tell(_OPEN)
        self._written[event.field] += event.text
        self._tell(event.text)

    def _begin_cell(self, reasoning: str, code: str) -> None:
        """Tell the rest of a reply: what is known only at its end, or all of it if no chunk was heard."""
        self._has_cell = True
        written = self._written["code"].strip()
        if written and code.strip().startswith(written):
            rest = code.strip()[len(written) :]
            self._tell(rest if self._in_code or not rest else _OPEN + rest + _CLOSE)
            self._leave_code()
            return
        self._leave_code()
        self._say_rest(reasoning)
        self._tell(f"{_OPEN}{code.strip()}{_CLOSE}")

    def _say_rest(self, reasoning: str) -> None:
        if not self._written["reasoning"] and reasoning:
            self._tell(f"\n{reasoning.strip()}\n")

    def _leave_code(self) -> None:
        if self._in_code:
            self._in_code = False
            self._tell(_CLOSE)

    def _block(self, output: str) -> None:
        if output.strip():
            self._tell(f"\n```text\n{output.strip()}\n```\n")
