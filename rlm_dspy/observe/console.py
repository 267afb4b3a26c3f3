"""Shows a run step by step as it happens, as plain text or on a terminal."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from rich import progress
from rich.console import Console, Group
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from rlm_dspy.events import (
    BatchEvent,
    CellEvent,
    ChunkEvent,
    Event,
    Listener,
    LMEvent,
    PauseEvent,
    ReviewEvent,
    SubCallEvent,
    TurnEvent,
)
from rlm_dspy.observe.progress import Pauses
from rlm_dspy.report.formatting import used
from rlm_dspy.text import clip, counted, printable
from rlm_dspy.trajectory import KINDS, Step

if TYPE_CHECKING:
    from rlm_dspy.trajectory import Tone

_SHOWN_LINES = 16
_SHOWN_CHARS = 2_000
_TAIL_CHARS = 300
"""Characters of a long line that is being written."""
_STYLES: dict[Tone, str] = {"": "dim", "good": "green", "warn": "yellow", "bad": "red"}


class View(Protocol):
    """Displays a run.

    Attributes:
        is_live: Whether it shows what the model writes while it writes it.
    """

    is_live: bool

    def head(self, question: str, about: str) -> None:
        """Show the question, the inputs and the model."""

    def busy(self, what: str) -> None:
        """Show the current activity."""

    def wait(self, what: str) -> None:
        """Show why nothing happens for some time."""

    def write(self, number: int, field: str, text: str) -> None:
        """Show the next part of the reply of a turn; see `ChunkEvent`."""

    def written(self) -> None:
        """Show what is left of a reply that is complete."""

    def step(self, number: int, step: Step, spent: str) -> None:
        """Show a turn that has ended."""

    def end(self, summary: str, *, answered: bool) -> None:
        """Show why the run ended and what it used."""

    def close(self) -> None:
        """Restore the stream."""


class Lines:
    """Prints a run as plain lines, for pipes and files."""

    is_live = False

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def head(self, question: str, about: str) -> None:
        """Print the question, the inputs and the model."""
        self._print(f"{question}\n({about})")

    def busy(self, what: str) -> None:
        """Print nothing: only a live view shows the current activity."""

    def wait(self, what: str) -> None:
        """Print why nothing happens for some time."""
        self._print(f"\n--- {what}")

    def write(self, number: int, field: str, text: str) -> None:
        """Print nothing: the turn is printed when it has ended."""

    def written(self) -> None:
        """Do nothing, as `write`."""

    def step(self, number: int, step: Step, spent: str) -> None:
        """Print a turn: the code with a prompt, the output unchanged."""
        code = "".join(f">>> {line}\n" for line in step.code.splitlines())
        reasoning = f"{step.reasoning}\n" if step.reasoning else ""
        head = f"--- turn {number}: {KINDS[step.kind].label} ({spent})"
        self._print(f"\n{head}\n{reasoning}{code}{step.output.rstrip()}")

    def end(self, summary: str, *, answered: bool) -> None:
        """Print the summary."""
        self._print(f"\n--- {summary}")

    def close(self) -> None:
        """Do nothing: each line is written at once."""

    def _print(self, text: str) -> None:
        print(printable(text), file=self._file, flush=True)


class Terminal:
    """Shows a run on a terminal: in colour, each line of the model's reply when it is written.

    The line that is being written, and the end of what the model thinks, are in a live line at the bottom.
    """

    is_live = True

    def __init__(self, console: Console) -> None:
        self._console = console
        self._turn = 0
        """The turn whose reply is being shown; 0 for none."""
        self._written = ""
        """What was written of its code."""
        self._field = ""
        self._line = ""
        self._label = ""
        spinner = progress.SpinnerColumn(style="cyan")
        what = progress.TextColumn("{task.description}", style="dim", markup=False)
        line = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        tail = progress.TextColumn("{task.fields[tail]}", style="dim", markup=False, table_column=line)
        # Not redirecting: code in this process has already replaced the streams.
        self._live = progress.Progress(
            spinner,
            what,
            progress.TimeElapsedColumn(),
            tail,
            console=console,
            expand=True,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._live.add_task("", tail="")

    def head(self, question: str, about: str) -> None:
        """Print the question, the inputs and the model."""
        self._console.print(Text(printable(question), style="bold"), Text(printable(about), style="dim"), sep="\n")

    def busy(self, what: str) -> None:
        """Show the current activity in the live line."""
        if (what := printable(what)) != self._live.tasks[0].description:
            self._live.reset(self._task, description=what, tail="")
        self._live.start()

    wait = busy

    def write(self, number: int, field: str, text: str) -> None:
        """Print the lines of the reply that are complete."""
        if self._turn != number:
            self._turn, self._written, self._field = number, "", ""
            self._rule(f"turn {number}", "", "cyan")
        if field != self._field:
            self._end_line()
            self._field, self._label = field, field if field == "code" else ""
        self._written += text if field == "code" else ""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines if field != "thinking" else ():
            self._print_line(line)
        tail = self._line if field != "thinking" else (self._line or lines[-1])
        self._live.update(self._task, tail=printable(tail)[-_TAIL_CHARS:])

    def written(self) -> None:
        """Print the last line, which the end of the reply completes."""
        self._end_line()
        self._live.update(self._task, tail="")

    def _end_line(self) -> None:
        if self._line and self._field != "thinking":
            self._print_line(self._line)
        self._line = ""

    def _print_line(self, line: str) -> None:
        text = printable(line)
        if self._field == "code":
            self._row(Text(self._label, style="blue"), _highlighted(text))
            self._label = ""
        elif text.strip():
            self._row("", Text(text, style="italic"))

    def _row(self, label: Text | str, what: Text | Syntax) -> None:
        rows = Table.grid(padding=(0, 1))
        rows.add_column(width=7, justify="right")
        rows.add_column(overflow="fold")
        rows.add_row(label, what)
        self._console.print(rows)

    def step(self, number: int, step: Step, spent: str) -> None:
        """Print a turn, or what was not written yet of it: reasoning, code, and the ends of a long output."""
        label, tone, _ = KINDS[step.kind]
        is_written, self._turn = self._turn == number, 0
        if is_written:
            self.written()
        else:
            self._written = ""
            self._rule(f"turn {number}", spent, "cyan")
        if step.code and step.reasoning and not is_written:
            self._row("", Text(printable(step.reasoning), style="italic"))
        if step.code and step.code.strip() != self._written.strip():  # also if it had to be repaired
            rest = step.code.removeprefix(self._written).lstrip("\n")
            self._row(Text("code", style="blue"), _highlighted(printable(rest)))
        elif step.reasoning and not step.code and not is_written:
            self._row(Text("reply", style="blue"), Text(shortened(printable(step.reasoning))))
        style = _STYLES[tone]
        self._row(Text(label, style=style), Text(shortened(printable(step.output)), style=style))
        if is_written:
            self._row("", Text(printable(spent), style="dim"))

    def end(self, summary: str, *, answered: bool) -> None:
        """Print the summary, as a heading for the answer that follows."""
        self.close()
        self._rule("answer" if answered else "no answer", summary, "green" if answered else "yellow")

    def close(self) -> None:
        """Print what was written of a line, and remove the live one."""
        self._end_line()
        self._live.stop()

    def _rule(self, title: str, note: str, style: str) -> None:
        line = Text.assemble(("── ", style), (title, f"bold {style}"), ("  ", ""), (printable(note), "dim"), " ")
        line.append("─" * max(2, self._console.width - line.cell_len - 1), style=style)
        self._console.print(Group(Text(), line), no_wrap=True, overflow="ellipsis")


class Reporter(Listener):
    """Reports the events of a run to a view. Turns of children count towards their parent's turn.

    Args:
        view: The view.
        turns: The maximum number of turns.
    """

    def __init__(self, view: View, turns: int) -> None:
        self._view = view
        self._turns = turns
        self.hears_chunks = view.is_live
        self._turn: int | None = None
        self._running = False
        self._asked = 0
        self._reviews = 0
        """Hooks that are being asked: a person may be reading and typing."""
        self._batch: BatchEvent | None = None
        self._answered = 0
        self._pauses = Pauses()

    def on_event(self, event: Event) -> None:
        """Show a turn that has ended, or the current activity."""
        begins, inner = event.phase == "started", event.depth > 0
        match event:
            case TurnEvent() if not inner:
                self._turn, self._running = event.turn if begins else None, False
                if begins:
                    self._asked, self._batch = 0, None
                elif event.step is not None:
                    self._show(event.turn or 0, event.step)
            case ChunkEvent() if event.text and not inner:
                self._busy("the model thinks" if event.field == "thinking" else "the model writes")
                self._view.write(event.turn or 0, event.field, event.text)
            case CellEvent() if begins and not inner:
                self._running = True
                self._view.written()
                self._busy("code runs")
            case BatchEvent() if begins and len(event.items) > 1:
                self._batch, self._answered = event, 0
            case SubCallEvent() if not begins and self._batch is not None and event.parent == self._batch.id:
                self._answered += 1
            case ReviewEvent():
                self._reviews += 1 if begins else -1
                self._view.close()
            case LMEvent() | PauseEvent() if begins:
                self._ask(event)

    def _show(self, number: int, step: Step) -> None:
        subcalls = f", {counted(self._asked, 'sub-call')}" if self._asked else ""
        self._view.step(number, step, f"{used(step.spent, step.seconds)}{subcalls}")

    def _ask(self, event: LMEvent | PauseEvent) -> None:
        if isinstance(event, PauseEvent):
            if not self._reviews and self._pauses.is_new(event):
                self._view.wait(event.text)
        elif self._turn is None:
            folds = event.role.endswith("fold")
            self._show_busy("summing up earlier turns" if folds else "reading the answer from the trajectory")
        elif self._running:
            self._asked += 1
            batch = self._batch
            of_batch = f" ({batch.name}: {self._answered:,} of {len(batch.items):,})" if batch else ""
            self._busy(f"code runs, {counted(self._asked, 'sub-call')}{of_batch}")
        else:
            self._busy("the model writes")

    def _busy(self, what: str) -> None:
        self._show_busy(f"turn {self._turn} of {self._turns}: {what}")

    def _show_busy(self, what: str) -> None:
        if not self._reviews:  # the live line would be drawn over the question
            self._view.busy(what)


def _highlighted(code: str) -> Syntax:
    return Syntax(code, "python", theme="ansi_dark", background_color="default", word_wrap=True)


class _Tolerant:
    """A stream that drops what cannot be written."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write a text, if possible."""
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, if possible."""
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def view_on(file: IO[str] | None = None) -> View:
    """Return the view for a stream: `Terminal` on a capable terminal, else `Lines`.

    Nothing is raised where the stream is closed, its reader has gone or the disk is full: the steps are shown as
    far as possible, and the answer is what counts.
    """
    file = file or sys.stderr
    if file is None:  # of a process that was started without
        return Lines(io.StringIO())
    file = cast("IO[str]", _Tolerant(file))
    console = Console(file=file, highlight=False, emoji=False, markup=False)
    return Terminal(console) if console.is_terminal and not console.is_dumb_terminal else Lines(file)


def shortened(text: str) -> str:
    """Return the first and last lines of a long output."""
    lines = clip(text.rstrip(), _SHOWN_CHARS).splitlines()
    if len(lines) <= _SHOWN_LINES:
        return "\n".join(lines)
    head, tail = lines[: _SHOWN_LINES - 5], lines[-4:]
    return "\n".join([*head, f"... [{len(lines) - len(head) - len(tail)} lines]", *tail])
