"""Owns the worker process of a session: replaces it by a checkpoint when it is lost, and ends it."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import dspy

from rlm_dspy.interpreters.base import CellError
from rlm_dspy.interpreters.host.checkpoints import Checkpoint, Checkpoints, Mode
from rlm_dspy.interpreters.host.deadlines import Deadline
from rlm_dspy.interpreters.host.process import Arrived, Process
from rlm_dspy.interpreters.worker import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rlm_dspy.interpreters.host.worker_group import Group

WAKE_SECONDS = 10
"""How long a copy may take to wake, and a worker to carry out an order between cells."""
_LEFT_PACKETS = 64
_COPY_SECONDS = 0.1
"""How long a worker may leave an order to copy itself unread."""
_STAYS_DONE = (
    "Calls made to functions, and files written, stay done; threads and processes left running have ended."
)


class CellUndone(CellError):  # noqa: N818 (it says what became of the cell)
    """A checkpoint replaced the cell's process; `str(error)` says what was undone."""


class Lineage:
    """A session across the processes that run it.

    Args:
        group: The group it belongs to.
        process: Its process.
        mode: When it is copied.
        cell: The number of its last cell, if it is a branch.
        bound: The variables that it has from the host, if it is a branch.
    """

    def __init__(self, group: Group, process: Process, mode: Mode, cell: int, bound: Mapping[str, Any]) -> None:
        self.group = group
        self.ended = False
        self._process = process
        self._checkpoints = Checkpoints(mode)
        self._early: deque[Arrived] = deque()
        self._cell = cell
        self._blocks = 0
        self._bound = dict(bound)
        self._told: dict[str, Callable[..., Any]] | None = None
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
        """End the worker, its copies and what it left running, from any thread, also while a cell runs."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
            self._process.kill()
            os.eventfd_write(self._wake, 1)
            in_use = self._in_use
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
        """End the wait of the thread that executes, from any other."""
        with self._lock:
            if not self._released:
                with suppress(BlockingIOError):
                    os.eventfd_write(self._wake, 1)

    def let_go(self) -> None:
        """In a forked child of the host: close what it inherited and disturb nothing."""
        self.ended = True
        self._process.detach()
        self._checkpoints.detach()

    def _order_copy(self) -> None:
        """Have the worker copy itself, if that is worth it. It says so when it is done; nobody waits for that."""
        if not self._checkpoints.worth_one():
            return
        try:
            copy, theirs = Process.new()
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

    def _aside(self, arrived: Arrived) -> None:
        """Take a frame that came while another was expected."""
        kind = arrived.frame.get("t")
        if kind == "copied":
            self._checkpoints.told(arrived.frame)
        elif kind == "call":
            if len(self._early) >= self.group.limits.max_processes:
                raise wire.Violation("more calls at once than it has threads")
            self._early.append(arrived)

    def _recover(self, reason: str, rest: str = "") -> NoReturn:
        """Go back to the newest checkpoint and say so; without one the session is lost.

        Args:
            reason: Why the process cannot go on.
            rest: What became of what was asked for, if that is no cell that ran.
        """
        if self.ended:
            raise dspy.CodeInterpreterError("The session was shut down while the cell ran.")
        checkpoint = self._woken()
        if checkpoint is None:
            self._lose(reason)
        undone, self._blocks = self._blocks - checkpoint.blocks, checkpoint.blocks
        told = [f"{reason}.", _undone(undone, this_included=not rest), _STAYS_DONE, rest]
        raise CellUndone(" ".join(filter(None, told)))

    def _lose(self, reason: str) -> NoReturn:
        self.close()
        raise dspy.CodeInterpreterError(f"{reason}; the session is lost, with all its variables.")

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
            self._bound, self._told = checkpoint.bound, None
            self.group.sweep(self._process)
            return checkpoint
        return None

    def _read_what_is_left(self) -> None:
        """Find out whether a copy was made shortly before the process was ended."""
        with suppress(OSError, EOFError, ValueError):
            for _ in range(_LEFT_PACKETS):
                arrived = self._process.received()
                if arrived is None:
                    return
                if arrived.frame.get("t") == "copied":
                    self._checkpoints.told(arrived.frame)

    def _wake_up(self, process: Process, deadline: Deadline) -> None:
        process.send({"t": "wake"}, deadline.left)
        awake = process.expect("awake", deadline)
        pid = awake.get("pid")
        if type(pid) is not int or not 0 < pid < 1 << 31:
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
            self._recover(f"The worker ended or takes no orders ({error})", "The order was not carried out.")


def _undone(blocks: int, *, this_included: bool) -> str:
    if blocks == 0:
        return "Variables are as the last cell left them."
    if blocks == 1:
        which = "this cell: what it did to them" if this_included else "the last cell: what it did to them"
        return f"Variables are as they were before {which} is undone."
    included = ", this one included," if this_included else ""
    return f"Variables are as they were {blocks} cells ago: what the last {blocks} cells{included} did is undone."
