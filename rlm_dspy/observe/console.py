"""How a run is shown while it goes on: step by step, as text or on a terminal."""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from rlm_dspy._dspy_compat import BaseCallback
from rlm_dspy.loop.turn import Turn
from rlm_dspy.observe.formatting import used
from rlm_dspy.subcalls.batch import Batch
from rlm_dspy.text import clip, counted, printable
from rlm_dspy.trajectory import KINDS, Step

if TYPE_CHECKING:
    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.trajectory import Tone
    from rlm_dspy.usage import RunUsage

_SHOWN_LINES = 16
_SHOWN_CHARS = 2_000
_STYLES: dict[Tone, str] = {"": "dim", "good": "green", "warn": "yellow", "bad": "red"}


class View(Protocol):
    """Where a run is shown."""

    def head(self, question: str, about: str) -> None:
        """Show what is asked, and what it is asked about and of whom."""

    def busy(self, what: str) -> None:
        """Show what is going on now."""

    def step(self, number: int, step: Step, spent: str) -> None:
        """Show a turn that has ended."""

    def end(self, summary: str, *, answered: bool) -> None:
        """Show why the run ended and what it spent."""

    def close(self) -> None:
        """Leave the stream as it was."""


class Lines:
    """Shows a run as plain lines, for pipes and files."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def head(self, question: str, about: str) -> None:
        """Print what is asked."""
        self._print(f"{question}\n({about})")

    def busy(self, what: str) -> None:
        """Print nothing: what goes on is of use only while one watches."""

    def step(self, number: int, step: Step, spent: str) -> None:
        """Print a turn: the code with a prompt in front, the output as it is."""
        code = "".join(f">>> {line}\n" for line in step.code.splitlines())
        reasoning = f"{step.reasoning}\n" if step.reasoning else ""
        head = f"--- turn {number}: {KINDS[step.kind].label} ({spent})"
        self._print(f"\n{head}\n{reasoning}{code}{step.output.rstrip()}")

    def end(self, summary: str, *, answered: bool) -> None:
        """Print the summary."""
        self._print(f"\n--- {summary}")

    def close(self) -> None:
        """Do nothing: each line was written at once."""

    def _print(self, text: str) -> None:
        print(printable(text), file=self._file, flush=True)


class Terminal:
    """Shows a run on a terminal: colours, and a line that lives while the model writes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._busy = _Busy()
        # Not redirecting: code that runs in this process has the streams replaced already.
        self._live = Live(
            self._busy, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        )

    def head(self, question: str, about: str) -> None:
        """Print what is asked."""
        self._console.print(Text(printable(question), style="bold"), Text(printable(about), style="dim"), sep="\n")

    def busy(self, what: str) -> None:
        """Show it in the living line."""
        self._busy.show(what)
        self._live.start()

    def step(self, number: int, step: Step, spent: str) -> None:
        """Print a turn: reasoning, highlighted code, and the ends of a long output."""
        self._rule(f"turn {number}", spent, "cyan")
        label, tone, _ = KINDS[step.kind]
        style = _STYLES[tone]
        rows = Table.grid(padding=(0, 1))
        rows.add_column(width=7, justify="right")
        rows.add_column(overflow="fold")
        if step.code and step.reasoning:
            rows.add_row("", Text(printable(step.reasoning), style="italic"))
        if step.code:
            code = Syntax(
                printable(step.code), "python", theme="ansi_dark", background_color="default", word_wrap=True
            )
            rows.add_row(Text("code", style="blue"), code)
        elif step.reasoning:
            rows.add_row(Text("reply", style="blue"), Text(shortened(printable(step.reasoning))))
        rows.add_row(Text(label, style=style), Text(shortened(printable(step.output)), style=style))
        self._console.print(rows)

    def end(self, summary: str, *, answered: bool) -> None:
        """Print the summary, as a heading for the answer that follows."""
        self.close()
        self._rule("answer" if answered else "no answer", summary, "green" if answered else "yellow")

    def close(self) -> None:
        """Take the living line away."""
        self._live.stop()

    def _rule(self, title: str, note: str, style: str) -> None:
        line = Text.assemble(("── ", style), (title, f"bold {style}"), ("  ", ""), (printable(note), "dim"), " ")
        line.append("─" * max(2, self._console.width - line.cell_len - 1), style=style)
        self._console.print(Group(Text(), line), no_wrap=True, overflow="ellipsis")


class _Busy:
    """The living line: a spinner, what goes on, and for how long."""

    def __init__(self) -> None:
        self._spinner = Spinner("dots", style="cyan")
        self._what = ""
        self._since = time.monotonic()

    def show(self, what: str) -> None:
        if what != self._what:
            self._what, self._since = what, time.monotonic()

    def __rich__(self) -> Any:
        seconds = time.monotonic() - self._since
        self._spinner.update(
            text=Text(printable(f"{self._what}  {seconds:.0f} s") if self._what else "", style="dim")
        )
        return self._spinner if self._what else Text()


class Progress(BaseCallback):
    """Tells a view what a run does, by listening to DSPy. Turns of child runs belong to the turn that made them.

    Args:
        view: Where to show it.
        ledger: Where the run's model calls are entered.
        turns: How many turns the run may take.
    """

    def __init__(self, view: View, ledger: Ledger, turns: int) -> None:
        self._view = view
        self._ledger = ledger
        self._turns = turns
        self._number = 0
        self._turn: str | None = None
        self._running = False
        self._subcalls = 0
        self._batch: Batch | None = None
        self._before: RunUsage = ledger.usage()

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a turn begins."""
        if isinstance(instance, Turn) and self._turn is None:
            self._turn, self._subcalls, self._running, self._batch = call_id, 0, False, None
            self._number += 1
            self._before = self._ledger.usage()
        elif isinstance(instance, Batch):
            self._batch = instance

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Show the turn that has ended."""
        if call_id == self._turn:
            self._turn = None
            if isinstance(outputs, Step):
                now = self._ledger.usage()
                took = now.seconds - self._before.seconds
                subcalls = f", {counted(self._subcalls, 'sub-call')}" if self._subcalls else ""
                self._view.step(self._number, outputs, f"{used(now - self._before, took)}{subcalls}")

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Show who is asked."""
        if self._turn is None:
            self._view.busy("reading the answer from the trajectory")
        elif self._running:
            self._subcalls += 1
            batch = self._batch
            of_batch = f" ({batch.name}: {batch.done:,} of {batch.total:,})" if batch else ""
            self._view.busy(
                f"turn {self._number} of {self._turns}: code runs, {counted(self._subcalls, 'sub-call')}{of_batch}"
            )
        else:
            self._view.busy(f"turn {self._number} of {self._turns}: the model writes")

    def on_interpreter_execute_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Show that code runs."""
        self._running = True
        if self._turn is not None:
            self._view.busy(f"turn {self._number} of {self._turns}: code runs")


def view_on(file: IO[str] | None = None) -> View:
    """Return the view that suits a stream: `Terminal` on a terminal that can, else `Lines`."""
    file = file or sys.stderr
    console = Console(file=file, highlight=False, emoji=False, markup=False)
    return Terminal(console) if console.is_terminal and not console.is_dumb_terminal else Lines(file)


def shortened(text: str) -> str:
    """Return the first and last lines of a long output."""
    lines = clip(text.rstrip(), _SHOWN_CHARS).splitlines()
    if len(lines) <= _SHOWN_LINES:
        return "\n".join(lines)
    head, tail = lines[: _SHOWN_LINES - 5], lines[-4:]
    return "\n".join([*head, f"... [{len(lines) - len(head) - len(tail)} lines]", *tail])
