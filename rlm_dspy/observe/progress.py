"""Shows how runs get on, in scripts and in notebooks, by one switch: `dspy.configure(callbacks=[Progress()])`."""

from __future__ import annotations

import html
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from rlm_dspy.events import (
    CellEvent,
    ChunkEvent,
    Event,
    Listener,
    LMEvent,
    PauseEvent,
    ReviewEvent,
    RunEvent,
    SubCallEvent,
    TurnEvent,
)
from rlm_dspy.redaction import safe_message
from rlm_dspy.report.formatting import used
from rlm_dspy.report.record import was_stopped
from rlm_dspy.text import clip, counted, printable
from rlm_dspy.trajectory import KINDS

if TYPE_CHECKING:
    from rlm_dspy.trajectory import Step

_CODE_LINES = 20
_LINE_CHARS = 110
_MOST_LINES = 15
"""Runs in a notebook's display: the newest."""
_UPDATE_SECONDS = 0.1
_ERROR_CHARS = 300


class Pauses:
    """Tells which pauses to show: of those of concurrent calls, the first."""

    def __init__(self) -> None:
        self._until = 0.0

    def is_new(self, event: PauseEvent) -> bool:
        """Return whether no pause that is shown is still going on; this one is shown then."""
        now = event.began + event.seconds
        if now < self._until:
            return False
        self._until = now + event.pause
        return True


@dataclass
class _Run:
    """What is shown of a run.

    Attributes:
        number: Its number, from 1.
        turns: The maximum number of its turns.
        turn: The current turn.
        doing: What it is doing, or how it ended.
        code: What was written so far of the turn's code.
        subcalls: The number of sub-calls that have ended in the turn.
        is_over: Whether it has ended.
        pauses: Which pauses of its model calls are shown.
    """

    number: int
    turns: int
    turn: int = 0
    doing: str = "starts"
    code: str = ""
    subcalls: int = 0
    is_over: bool = False
    pauses: Pauses = field(default_factory=Pauses)

    def line(self) -> str:
        """Return the run as one line."""
        turn = f"turn {self.turn} of {self.turns}: " if self.turn and not self.is_over else ""
        asked = f", {counted(self.subcalls, 'sub-call')}" if self.subcalls and not self.is_over else ""
        return f"RLM {self.number}: {turn}{self.doing}{asked}"


class Progress(Listener):
    r"""Shows the progress of every run: in a notebook as one display a cell, else as lines on stderr.

    It is a DSPy callback: `dspy.configure(callbacks=[Progress()])` for all runs of the process,
    `dspy.context(callbacks=[...])` for those in a scope. Runs in threads, of `batch`, `dspy.Parallel` or
    `dspy.Evaluate`, are numbered. The turns of children count as sub-calls of their parents.

    A notebook also shows the code while the model writes it: there the replies of turns are requested as streams.

    Args:
        file: Where to write lines, also in a notebook; default: the display of a notebook, else stderr.

    Examples:
        >>> import io
        >>> import dspy
        >>> from rlm_dspy import RLM
        >>> from rlm_dspy.testing import ScriptedLM
        >>> lines = io.StringIO()
        >>> lm = ScriptedLM(["```python\nSUBMIT(answer=42)\n```"])
        >>> with dspy.context(lm=lm, callbacks=[Progress(lines)]):
        ...     _ = RLM("question -> answer: int")(question="?")
        >>> print(lines.getvalue().splitlines()[0])  # doctest: +ELLIPSIS
        RLM 1: turn 1 of 20: SUBMIT (...)
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._shell = None if file else _notebook()
        self.hears_chunks = self._shell is not None
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        """By the id of the root run."""
        self._roots: dict[str, str] = {}
        """The root of each running run."""
        self._count = 0
        self._display: Any = None
        self._cell: int | None = None
        """The number of the notebook's cell that the display belongs to."""
        self._updated = 0.0

    def on_event(self, event: Event) -> None:
        """Show what an event says."""
        with self._lock:
            if isinstance(event, RunEvent) and event.phase == "started":
                self._roots[event.id] = self._roots.get(event.parent_run or "", event.id)
                if event.id == self._roots[event.id]:
                    self._begin(event)
            root = self._roots.get(event.run, "")
            if (run := self._runs.get(root)) is None:
                return
            if isinstance(event, PauseEvent):
                self._pause(run, event)
            elif event.run != root:
                run.subcalls += isinstance(event, TurnEvent) and event.phase != "started"
            elif line := self._change(run, event):
                self._say(line)
            self._show(now=run.is_over)
            if isinstance(event, RunEvent) and event.phase != "started":
                del self._roots[event.id]
                if self._shell is None and run.is_over:  # nothing shows it again
                    del self._runs[root]

    def _begin(self, event: RunEvent) -> None:
        cell = self._shell and self._shell.execution_count
        if cell != self._cell and all(run.is_over for run in self._runs.values()):
            self._runs, self._display, self._cell = {}, None, cell
        self._count += 1
        self._runs[event.id] = _Run(self._count, event.limits.max_iters)

    def _pause(self, run: _Run, event: PauseEvent) -> None:
        """Show that a model call of a run waits, once for concurrent ones."""
        if run.pauses.is_new(event):
            run.doing = event.text
            self._say(run.line())

    def _change(self, run: _Run, event: Event) -> str:
        """Change what is shown of a run; return a line if something has ended."""
        begins = event.phase == "started"
        match event:
            case TurnEvent():
                run.turn, run.code, run.doing = event.turn or 0, "", "the model writes"
                if not begins and event.step is not None:
                    line, run.subcalls = self._turn(run, event.step), 0
                    return line
                run.subcalls = 0
            case ChunkEvent():
                run.code += event.text if event.field == "code" else ""
                run.doing = "the model thinks" if event.field == "thinking" else "the model writes"
            case ReviewEvent() if begins:
                run.doing = f"waits for {event.hook}"
            case CellEvent() if begins:
                run.code, run.doing = event.code, "code runs"
            case SubCallEvent() if not begins:
                run.subcalls += 1
            case LMEvent(role="extract" | "fold") if begins:
                run.doing = "reads the answer" if event.role == "extract" else "sums up earlier turns"
            case RunEvent() if not begins:
                usage, run.is_over, run.code = event.outcome.usage, True, ""
                if event.error is None or was_stopped(event.error):
                    run.doing = f"{event.outcome.stop or 'interrupted'} ({used(usage, usage.seconds)})"
                else:
                    said = " ".join(safe_message(event.error, event.lm, event.sub_lm).split())
                    run.doing = f"failed: {type(event.error).__name__}: {clip(said, _ERROR_CHARS)}"
                return run.line()
        return ""

    def _turn(self, run: _Run, step: Step) -> str:
        asked = f", {counted(run.subcalls, 'sub-call')}" if run.subcalls else ""
        done = f"{KINDS[step.kind].label} ({used(step.spent, step.seconds)}{asked})"
        return f"RLM {run.number}: turn {run.turn} of {run.turns}: {done}"

    def _say(self, line: str) -> None:
        if self._shell is None:
            print(printable(line), file=self._file or sys.stderr, flush=True)

    def _show(self, *, now: bool) -> None:
        """Update the display of a notebook, not too often."""
        if self._shell is None or (not now and time.monotonic() - self._updated < _UPDATE_SECONDS):
            return
        from IPython.display import HTML, display  # noqa: PLC0415  # a notebook has it

        self._updated = time.monotonic()
        shown = HTML(_page(list(self._runs.values())))
        if self._display is None:
            self._display = display(shown, display_id=True)
        else:
            self._display.update(shown)


def _page(runs: list[_Run]) -> str:
    """Return the display of a notebook's cell: a line for each run, and the code of a run that is alone."""
    going = [run for run in runs if not run.is_over]
    lines = [f"{len(runs) - len(going)} of {len(runs)} runs have ended"] if len(runs) > 1 else []
    lines += [clip(run.line(), _LINE_CHARS) for run in runs[-_MOST_LINES:]]
    if len(going) == 1 and (code := going[0].code):
        lines += ["", *code.splitlines()[-_CODE_LINES:]]
    return f"<pre>{html.escape(printable(chr(10).join(lines)))}</pre>"


def _notebook() -> Any:
    """Return the shell of the notebook that this process runs; None outside of one."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython  # noqa: PLC0415  # it is loaded already

    shell = get_ipython()
    return shell if shell is not None and getattr(shell, "kernel", None) is not None else None
