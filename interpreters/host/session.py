"""Runs the cells of one session on a worker, from the host."""

from __future__ import annotations

import os
import select
import signal
import time
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import dspy

from rlm_dspy.concurrency.thread_pool import run_in_pool
from rlm_dspy.interpreters.base import CellError, CellUndone
from rlm_dspy.interpreters.host import tool_threads
from rlm_dspy.interpreters.host.checkpoints import WAKE_SECONDS, Lineage
from rlm_dspy.interpreters.host.deadlines import CellLimits, Clock, Deadline
from rlm_dspy.interpreters.host.input_transfer import CannotCross, Forms, StandIn
from rlm_dspy.interpreters.host.worker_connection import Arrived, WorkerConnection, text_of
from rlm_dspy.interpreters.worker import frames, wire
from rlm_dspy.interpreters.worker.cell import SETUP, Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlm_dspy.interpreters.host.checkpoints import Mode
    from rlm_dspy.interpreters.host.worker_group import Group

_LOOK_SECONDS = 0.5
"""Seconds between two checks of the memory and CPU time of a cell's processes."""
_TAKE_SECONDS = 10
"""Seconds that a worker may take to read a cell."""


@dataclass(frozen=True)
class Cell:
    """One execution: its code, variables, tools and output fields."""

    code: str
    variables: Mapping[str, Any]
    tools: dict[str, Callable[..., Any]]
    fields: list[dict[str, Any]] | None
    call: Callable[[str, list[Any], dict[str, Any]], Any]
    """Runs a tool by its name, positional and named arguments."""


@dataclass(frozen=True)
class Settings:
    """The settings of a session."""

    limits: CellLimits
    checkpoint: Mode
    """When the worker is copied."""
    modules: frozenset[str]
    """Packages that the worker can import beside the standard library."""
    stand_in: StandIn | None = None
    """What to make of values that the worker has no class for."""


class Session(Lineage):
    """Runs cells on one worker.

    Args:
        group: The group it belongs to.
        process: Its process.
        settings: How cells are treated.
        cell: The number of its last cell, if it is a branch.
        bound: The variables that it has from the host, if it is a branch.
    """

    def __init__(
        self,
        group: Group,
        process: WorkerConnection,
        settings: Settings,
        cell: int = 0,
        bound: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(group, process, settings.checkpoint, cell, bound or {})
        self._settings = settings
        self._stop: str | BaseException | None = None
        self._look_again = Deadline(_LOOK_SECONDS)

    # What a user may do

    def execute(self, cell: Cell) -> tuple[Outcome, str]:
        """Run a cell; return how it ended and what it printed.

        Raises:
            CellUndone: If its process had to be ended and a checkpoint took over.
            CannotCross: If a variable cannot enter the worker; nothing ran.
            dspy.CodeInterpreterError: If the session is lost.
            BaseException: What a tool raised that is no Exception; the cell was stopped.
        """
        with self._used(), self.group.busy():
            if self._process.ended:
                self._recover("The worker ended after the last cell", "This cell did not run.")
            clock = Clock(self._settings.limits)
            self._stop, self._look_again = None, Deadline(_LOOK_SECONDS)
            known = self._bound
            fresh = {
                name: value
                for name, value in cell.variables.items()
                if name not in known or known[name] is not value
            }
            forms = self._forms(fresh, clock.left())
            try:
                with closing(forms):
                    self._send_cell(cell, fresh, forms, clock)
                outcome, output, threads = self._result(cell, clock)
            except (CellError, dspy.CodeInterpreterError):
                raise
            except BaseException:
                self._abandon(clock)
                raise
            finally:
                clock.ends()
                self._checkpoints.ran(clock.calls)
            self._printed = ""
            self._checkpoints.forget_older()
            if outcome.kind != "submitted" and not threads:
                self._order_copy()  # while the model thinks
            if outcome.kind == "raised" and clock.asked:
                why = f"\nThe cell was interrupted because it {clock.reason}. Variables are kept."
                outcome = replace(outcome, error=outcome.error + why)
            return outcome, output

    @property
    def printed(self) -> str:
        """What the last cell had printed, as far as known, if `execute` raised."""
        return self._printed

    def bind(self, variables: Mapping[str, Any]) -> None:
        """Bind variables now.

        Raises:
            CannotCross: If one cannot enter the worker.
            dspy.CodeInterpreterError: If the session is lost.
        """
        with self._used():
            with closing(self._forms(variables, WAKE_SECONDS)) as forms:
                self._order({"t": "bind", "values": forms.frames}, forms.fds, "bound")
            self._bound.update(variables)
            self._checkpoints.changed = True

    def interrupt(self, why: str | BaseException) -> None:
        """Stop the running cell, from any thread. An exception is raised from `execute` then."""
        if self._stop is None or isinstance(why, BaseException):
            self._stop = why
        self._awake()

    def branches(self, count: int) -> list[Session]:
        """Return `count` copies of this session.

        Raises:
            dspy.CodeInterpreterError: If they cannot be made.
        """
        with self._used():
            made: list[WorkerConnection] = []
            try:
                with ExitStack() as theirs:
                    fds = []
                    for _ in range(count):
                        process, end = WorkerConnection.new()
                        made.append(process)
                        fds.append(theirs.enter_context(end).fileno())
                    self._order({"t": "copy"}, fds, "copied")
                deadline = Deadline(WAKE_SECONDS)
                for process in made:
                    self._wake_up(process, deadline)
            except BaseException as error:
                for process in made:
                    process.close()
                if isinstance(error, OSError | EOFError | ValueError):
                    raise dspy.CodeInterpreterError(f"A branch could not be made: {error}") from error
                raise
            for _ in made:
                self.group.join()
            return [Session(self.group, process, self._settings, self._cell, self._bound) for process in made]

    # One cell

    def _send_cell(self, cell: Cell, fresh: Mapping[str, Any], forms: Forms, clock: Clock) -> None:
        if self._cell or not cell.code.startswith(SETUP):  # before its set-up, there is nothing to go back to
            self._order_copy()
        number, values = self._cell + 1, forms.frames
        frame = frames.Order(t="cell", id=number, code=cell.code, values=values, fields=cell.fields)
        if cell.tools != self._sent_tools:
            frame["tools"] = tool_threads.described(cell.tools)
        patience = Deadline(_TAKE_SECONDS)
        try:
            self._process.send(frame, lambda: min(patience.left(), clock.left()), forms.fds)
        except OSError as error:
            self._recover(f"The worker no longer accepts cells ({error})", "This cell did not run.")
        self._cell += 1
        self._printed = ""
        self._blocks += not cell.code.startswith(SETUP)
        self._bound.update(fresh)
        self._sent_tools = cell.tools

    def _forms(self, variables: Mapping[str, Any], seconds: float) -> Forms:
        forms, name = Forms(self._settings.modules, self._settings.stand_in), ""
        try:
            for name, value in variables.items():
                forms.add(name, value)
            self._make_room(forms, seconds)
        except BaseException as error:
            forms.close()
            if isinstance(error, CannotCross):
                raise CannotCross(f"Variable {name!r}: {error}") from error
            if isinstance(error, OSError):
                raise dspy.CodeInterpreterError(f"There is no room for the variable {name!r}: {error}") from error
            raise
        return forms

    def _make_room(self, forms: Forms, seconds: float) -> None:
        try:
            self.group.make_room(self._process, forms, seconds)
        except TimeoutError as error:
            raise CellError(f"The variables could not be loaded: {error}. This cell did not run.") from error
        except OSError as error:
            self._lose(f"The worker does not accept values ({error})")

    def _result(self, cell: Cell, clock: Clock) -> tuple[Outcome, str, bool]:
        """Wait for the end of a cell: return how it ended, what it printed, and whether its threads may run on."""
        while True:
            try:
                arrived = self._next(clock)
                if arrived is None:
                    self._process.check_alive()
                elif arrived.frame.get("t") == "call":
                    self._call(arrived, cell, clock)
                elif arrived.frame.get("t") == "copied":
                    self._checkpoints.record_report(arrived.frame)
                elif arrived.frame.get("t") == "printed":
                    self._take_printed(arrived.frame)
                elif arrived.frame.get("t") != "bound":  # that answers an order which nobody waits for any more
                    return self._checked_result(arrived.frame)
            except EOFError:
                self._recover("The worker's process ended")
            except wire.Violation as error:
                self._recover(f"The worker sent an invalid message: {error}")

    def _next(self, clock: Clock) -> Arrived | None:
        if self._early and not clock.full:
            return self._early.popleft()
        self._wait(clock)
        return self._process.received()

    def _wait(self, clock: Clock) -> None:
        """Wait for a packet or the end of the process. What bounds the cell is looked at first, each time."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._process.handle is not None:
            poll.register(self._process.handle, select.POLLIN)
        while True:
            self._enforce_limits(clock)
            poll.register(self._process, 0 if clock.full else select.POLLIN)
            ready = dict(poll.poll(min(max(0, clock.left()), _LOOK_SECONDS) * 1000))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            elif ready:
                return

    def _enforce_limits(self, clock: Clock) -> None:
        if self.ended:
            self._recover("The session was shut down")
        if isinstance(self._stop, BaseException):
            raise self._stop
        if self._stop and not clock.asked:
            clock.ask(self._stop)
            self._process.signal(signal.SIGINT)
        if clock.left() <= 0:
            if clock.asked >= 2:  # noqa: PLR2004 (interrupts before the kill)
                self._recover(f"The cell {clock.reason}, ignored {clock.asked} interrupts and was killed")
            clock.ask()
            self._process.signal(signal.SIGINT)
        if self._look_again.left() <= 0:
            self._look_again = Deadline(_LOOK_SECONDS)
            clock.worked(self._process.cpu_seconds() + time.thread_time())
            if taken := self.group.memory_over(self._process, self._checkpoints.asleep()):
                self._recover(
                    f"The cell's processes took {taken >> 20} MB together, more than allowed, and were killed"
                )

    def _call(self, arrived: Arrived, cell: Cell, clock: Clock) -> None:
        frame, size = arrived
        number, name = frame.get("id"), text_of(frame, "name")
        args, kwargs = frame.get("args"), frame.get("kwargs")
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise wire.Violation("a call without a number")
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise wire.Violation("a call without arguments")
        if clock.unanswered >= self.group.limits.max_processes:
            raise wire.Violation("more calls at once than it has threads")
        process = self._process
        clock.call_starts(size)

        def answer(outcome: Future[Any]) -> None:
            clock.call_ends()
            try:
                self._answer(process, number, outcome, clock)
            finally:
                was_full = clock.full
                clock.call_answered(size)
                if was_full:
                    self._awake()

        done: Future[Any] = Future()
        done.add_done_callback(answer)
        run_in_pool(lambda: cell.call(name, args, kwargs), done)

    def _answer(self, process: WorkerConnection, number: int, outcome: Future[Any], clock: Clock) -> None:
        """Send the worker what a call came to; it may be gone by now."""
        raised = outcome.exception()
        if raised is not None and not isinstance(raised, Exception):
            if not clock.over:
                self.interrupt(raised)
            return
        with closing(Forms(self._settings.modules, self._settings.stand_in)) as forms, suppress(OSError):
            answer: Mapping[str, object] = forms.frames
            try:
                forms.add("value", outcome.result())
                self.group.make_room(process, forms)
            except Exception as error:  # noqa: BLE001 (the model handles any error)
                answer = {"type": type(error).__name__, "error": tool_threads.message(error)}
            fds = forms.fds if answer is forms.frames else []
            process.send({"t": "answer", "id": number, **answer}, clock.left_for_answer, fds, number)

    def _checked_result(self, frame: wire.Frame) -> tuple[Outcome, str, bool]:
        """Read the result of this cell.

        Raises:
            wire.Violation: If it is anything else.
        """
        kind, values = cast("Kind", frame.get("kind")), frame.get("values")
        if frame.get("t") != "done" or frame.get("id") != self._cell or kind not in get_args(Kind):
            raise wire.Violation("a frame that is not a result of this cell")
        if not isinstance(values, dict):
            raise wire.Violation("a result without values")
        outcome = Outcome(kind, values, frame.get("value"), text_of(frame, "error"), text_of(frame, "missing"))
        if frame.get("taken") is not True:
            self._bound, self._sent_tools = {}, None
        return outcome, text_of(frame, "output"), frame.get("threads") is not False

    def _abandon(self, clock: Clock) -> None:
        """The host itself wants to stop: end the cell, and keep the session if that is possible."""
        self._process.signal(signal.SIGINT)
        clock.ask()
        try:
            with suppress(OSError, EOFError, ValueError):
                grace = Deadline(self._settings.limits.grace_seconds)
                ended = self._process.expect("done", grace, self._cell, self._aside)
                if ended.get("t") == "done":
                    self._printed = text_of(ended, "output").rstrip("\n")
                return
            with suppress(CellUndone, dspy.CodeInterpreterError):
                self._recover("The host stopped it")
        except BaseException:  # a second Ctrl-C: the next cell finds the process dead, and recovers
            self._process.kill()
            raise
