"""Keeps a session alive across the processes that run it: sleeping copies of its worker, one of which replaces it.

`Checkpoints` says when to make a copy; `Lineage` makes it, wakes it when the worker is lost, and ends them all.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import dspy

from rlm_dspy.interpreters.base import CellUndone
from rlm_dspy.interpreters.host.deadlines import Deadline
from rlm_dspy.interpreters.host.worker_connection import Arrived, WorkerConnection, pid_of, text_of
from rlm_dspy.interpreters.worker import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rlm_dspy.interpreters.host.worker_group import Group

Mode = Literal["auto", "always", "off"]

WAKE_SECONDS = 10
"""Seconds that a copy may take to wake, and a worker to execute an order between cells."""
_LEFT_PACKETS = 64
_COPY_SECONDS = 0.1
"""Seconds until a worker must have read an order to copy itself."""
_STAYS_DONE = "Function calls and written files are not undone; running threads and processes have ended."
_CHEAP_SECONDS, _CHEAP_SHARE = 0.020, 0.05
_GIVEN_UP_COST = 5
"""Factor on the cost of a copy that was given up: the worker copied the pages that it used for nothing."""
_GAVE_UP = " Its copy had been given up because both together took more memory than allowed."


@dataclass
class Checkpoint:
    """A sleeping copy of the worker process.

    Attributes:
        process: The copy.
        order: The number of the order by which it is made.
        cell: The number of the last cell before it.
        blocks: How many of the cells before it were the model's.
        bound: The variables that the host had bound by then.
        calls: The calls to the host since the copy before.
        since: When that was ordered.
        made: Whether the worker has said that it exists.
    """

    process: WorkerConnection
    order: int
    cell: int
    blocks: int
    bound: dict[str, Any]
    calls: int
    since: float
    made: bool = False


class Checkpoints:
    """The sleeping copies of one worker.

    Args:
        mode: `auto`: when more would be lost without a copy than it costs; `always`: of each state; `off`.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._kept: list[Checkpoint] = []
        self._seconds = 0.0
        self._calls = 0
        self._since = time.monotonic()
        self._took_over = False
        self.changed = True
        """Whether the worker has changed since the last copy was ordered."""
        self.gave_up = False
        """Whether the last copy was ended for the memory that it took, and there was none since."""

    def worth_one(self) -> bool:
        """Return whether a checkpoint is worth its cost now.

        A call to the host may have been paid for, so each is worth a copy, and so is a session whose only copy has
        taken over. Otherwise a copy may take 20 ms, or 5 % of the time since the last one, which the session would
        lose otherwise.
        """
        self._forget_given_up()
        if self._mode != "auto" or not self.changed:
            return self._mode == "always" and self.changed
        cheap = max(_CHEAP_SECONDS, _CHEAP_SHARE * (time.monotonic() - self._since))
        return self._calls > 0 or (self._took_over and not self._kept) or self._seconds <= cheap

    def ran(self, calls: int) -> None:
        """Record that a cell ran and made so many calls."""
        self.changed = True
        self._calls += calls

    def ordered(
        self, process: WorkerConnection, order: int, cell: int, blocks: int, bound: Mapping[str, Any]
    ) -> None:
        """Record that a checkpoint of the current state was ordered."""
        self._kept.append(Checkpoint(process, order, cell, blocks, dict(bound), self._calls, self._since))
        self.changed, self._calls, self._since = False, 0, time.monotonic()

    def record_report(self, frame: wire.Frame) -> None:
        """Record the worker's report on an ordered copy; ignore anything else."""
        order, seconds = frame.get("id"), frame.get("seconds")
        for checkpoint in self._kept:
            if checkpoint.order == order and not checkpoint.made:
                if frame.get("made") is True and isinstance(seconds, float):
                    checkpoint.made, self._seconds, self.gave_up = True, seconds, False
                    checkpoint.process.pid = pid_of(frame)
                else:
                    self._drop(checkpoint)
                return

    def _drop(self, checkpoint: Checkpoint) -> None:
        """Drop a copy that was not made, or the last one if it was given up: its state is at risk as before."""
        self._kept.remove(checkpoint)
        checkpoint.process.close()
        self.changed, self._calls, self._since = True, self._calls + checkpoint.calls, checkpoint.since

    def _forget_given_up(self) -> None:
        for checkpoint in [each for each in self._kept if each.process.given_up]:
            if checkpoint is not self._kept[-1]:
                self._kept.remove(checkpoint)
                checkpoint.process.close()
                continue
            self._drop(checkpoint)
            self._seconds *= _GIVEN_UP_COST
            self._took_over, self.gave_up = False, True

    def asleep(self) -> list[WorkerConnection]:
        """Return those that were made and not given up, the oldest first."""
        return [each.process for each in self._kept if each.made and not each.process.given_up]

    def forget_older(self) -> None:
        """Keep the newest that was made, and what was ordered after it."""
        self._forget_given_up()
        newest = max((place for place, checkpoint in enumerate(self._kept) if checkpoint.made), default=0)
        for _ in range(newest):
            self._kept.pop(0).process.close()

    def has(self, before: int) -> bool:
        """Return whether one was made before this cell ran."""
        self._forget_given_up()
        return any(checkpoint.made and checkpoint.cell < before for checkpoint in self._kept)

    def newest(self, before: int | None = None) -> Checkpoint | None:
        """Take the newest finished checkpoint, and release later ones.

        Args:
            before: A cell that must not have run yet when it was made.
        """
        self._forget_given_up()
        while self._kept:
            checkpoint = self._kept.pop()
            if checkpoint.made and (before is None or checkpoint.cell < before):
                self.changed = self._took_over = True
                return checkpoint
            checkpoint.process.close()
        return None

    def close(self) -> None:
        """Release all checkpoints."""
        while self._kept:
            self._kept.pop().process.close()

    def detach(self) -> None:
        """In a forked child of the host: close what it inherited and disturb nothing."""
        for checkpoint in self._kept:
            checkpoint.process.detach()


class Lineage:
    """A session across the processes that run it.

    Args:
        group: The group it belongs to.
        process: Its process.
        mode: When it is copied.
        cell: The number of its last cell, if it is a branch.
        bound: The variables that it has from the host, if it is a branch.
    """

    def __init__(
        self, group: Group, process: WorkerConnection, mode: Mode, cell: int, bound: Mapping[str, Any]
    ) -> None:
        self.group = group
        self.owner = os.getpid()
        self.ended = False
        self._process = process
        self._checkpoints = Checkpoints(mode)
        self._early: deque[Arrived] = deque()
        self._printed = ""
        """What the running cell has printed so far, as reported by its process."""
        self._cell = cell
        self._blocks = 0
        self._bound = dict(bound)
        self._sent_tools: dict[str, Callable[..., Any]] | None = None
        self._orders = 0
        self._lock = threading.Lock()
        self._in_use = self._released = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def roll_back(self) -> int:
        """Go back to the checkpoint.

        Returns:
            The number of the cell before which the session is now.

        Raises:
            dspy.CodeInterpreterError: If there is none, or it cannot be woken.
        """
        with self._used():
            if not self._cell or not self._checkpoints.has(self._cell):
                raise dspy.CodeInterpreterError("There is no checkpoint to roll back to.")
            checkpoint = self._woken(before=self._cell)
            if checkpoint is None:
                self._lose("The checkpoint could not be woken")
            self._checkpoints.close()
            return checkpoint.cell + 1

    def close(self) -> None:
        """End the worker, its copies and what it left running, from any thread, also while a cell runs.

        In a forked child of the host: close what it inherited and disturb nothing.
        """
        if self.owner != os.getpid():
            self.ended = True
            self._process.detach()
            self._checkpoints.detach()
            return
        with self._lock:
            if self.ended:
                return
            self.ended = True
            self._process.kill()
            in_use = self._in_use
        self._awake()
        if not in_use:
            self._release()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """Keep what the session holds open until the block is done, also if another thread closes it meanwhile.

        Raises:
            dspy.CodeInterpreterError: If it was closed before.
        """
        with self._lock:
            if self.ended:
                raise dspy.CodeInterpreterError("The session was shut down.")
            self._in_use = True
        try:
            yield
        finally:
            with self._lock:
                self._in_use = False
            if self.ended:
                self._release()

    def _release(self) -> None:
        with self._lock:
            if self._released:
                return
            self._released = True
            os.close(self._wake)
        self._process.close()
        self._checkpoints.close()
        self.group.leave()

    def _awake(self) -> None:
        """Wake the executing thread, from any other thread."""
        with self._lock:
            if not self._released:
                with suppress(BlockingIOError):
                    os.eventfd_write(self._wake, 1)

    def _order_copy(self) -> None:
        """Order the worker to copy itself, if that is worth its cost, without waiting for its report."""
        if not self._checkpoints.worth_one():
            return
        try:
            copy, theirs = WorkerConnection.new()
        except OSError:  # no descriptors are left
            return
        self._orders += 1
        try:
            with theirs:
                order = {"t": "copy", "id": self._orders}
                self._process.send(order, Deadline(_COPY_SECONDS).left, [theirs.fileno()])
        except BaseException as error:
            copy.close()
            if isinstance(error, OSError):
                return  # it is busy, or it has ended; the next cell finds out
            raise
        self._checkpoints.ordered(copy, self._orders, self._cell, self._blocks, self._bound)
        self.group.add_copy(copy, self._process, self._orders)

    def _aside(self, arrived: Arrived) -> None:
        """Take a frame that came while another was expected."""
        kind = arrived.frame.get("t")
        if kind == "copied":
            self._checkpoints.record_report(arrived.frame)
        elif kind == "call":
            if len(self._early) >= self.group.limits.max_processes:
                raise wire.Violation("more calls at once than it has threads")
            self._early.append(arrived)
        elif kind == "printed":
            self._take_printed(arrived.frame)

    def _take_printed(self, frame: wire.Frame) -> None:
        """Keep what the running cell printed, for the case that no result comes."""
        if frame.get("id") == self._cell:
            self._printed = text_of(frame, "text").rstrip("\n")

    def _recover(self, reason: str, rest: str = "") -> NoReturn:
        """Go back to the newest checkpoint and say so; without one the session is lost.

        Args:
            reason: Why the process cannot go on.
            rest: What became of the request, if it was not to run a cell.
        """
        if self.ended:
            raise dspy.CodeInterpreterError("The session was shut down while the cell ran.")
        checkpoint = self._woken()
        if checkpoint is None:
            self._lose(reason)
        undone, self._blocks = self._blocks - checkpoint.blocks, checkpoint.blocks
        sentences = [f"{reason}.", _undone(undone, this_included=not rest), _STAYS_DONE, rest]
        raise CellUndone(" ".join(filter(None, sentences)), "" if rest else self._printed)

    def _lose(self, reason: str) -> NoReturn:
        self.close()
        why, more = self.group.server.lost or reason, _GAVE_UP if self._checkpoints.gave_up else ""
        more += f" The last cell had printed:\n{self._printed}" if self._printed else ""
        raise dspy.CodeInterpreterError(f"{why}; the session and all its variables are lost.{more}")

    def _woken(self, before: int | None = None) -> Checkpoint | None:
        """End the process and let the newest checkpoint that wakes take its place; None if none does.

        Args:
            before: A cell that must not have run yet when the checkpoint was made.
        """
        self._process.kill()
        self._read_what_is_left()
        self._early.clear()
        while not self.ended and (checkpoint := self._checkpoints.newest(before)):
            self._process.close()
            self._process = checkpoint.process
            try:
                self._wake_up(self._process, Deadline(WAKE_SECONDS))
            except (OSError, EOFError, ValueError):
                continue
            self._bound, self._sent_tools = checkpoint.bound, None
            self.group.sweep(self._process)
            return checkpoint
        return None

    def _read_what_is_left(self) -> None:
        """Read the reports that the process sent before it ended: of copies, and of what the cell printed."""
        with suppress(OSError, EOFError, ValueError):
            for _ in range(_LEFT_PACKETS):
                arrived = self._process.received()
                if arrived is not None and arrived.frame.get("t") in ("copied", "printed"):
                    self._aside(arrived)

    def _wake_up(self, process: WorkerConnection, deadline: Deadline) -> None:
        process.send({"t": "wake"}, deadline.left)
        pid = pid_of(process.expect("awake", deadline))
        if not pid:
            raise wire.Violation("a copy without a number")
        self.group.watch(process, pid)

    def _order(self, frame: Mapping[str, object], fds: list[int], answer: str) -> None:
        """Give an order between cells and wait until it is done."""
        deadline = Deadline(WAKE_SECONDS)
        self._orders += 1
        try:
            self._process.check_alive()
            self._process.send({**frame, "id": self._orders}, deadline.left, fds)
            self._process.expect(answer, deadline, self._orders, self._aside)
        except (OSError, EOFError, ValueError) as error:
            self._recover(f"The worker ended or accepts no requests ({error})", "The request was not carried out.")


def _undone(blocks: int, *, this_included: bool) -> str:
    if blocks == 0:
        return "Variables are as the last cell left them."
    if blocks == 1:
        return f"Variables are restored to their state before {'this' if this_included else 'the last'} cell."
    included = ", this one included" if this_included else ""
    return f"Variables are restored to their state before the last {blocks} cells{included}."
