"""A worker's process, the sleeping copies that can take its place, and its end."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import dspy

from rlm_dspy.interpreters import wire
from rlm_dspy.interpreters.base import CellError
from rlm_dspy.interpreters.deadlines import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_dspy.interpreters.group import Group
    from rlm_dspy.interpreters.process import Process

WAKE_SECONDS = 10
"""How long a copy may take to wake, and a worker to carry out an order between cells."""
_STAYS_DONE = "Calls it made to functions, and files it wrote, stay done."


class CellUndone(CellError):  # noqa: N818 (it says what became of the cell)
    """The cell's process had to be ended; the session is as it was before the cell that `str(error)` names."""


@dataclass
class Checkpoint:
    """A sleeping copy of the worker."""

    process: Process
    cell: int
    """The cell before which it was made."""
    bound: dict[str, Any]
    """The variables that the host had bound by then."""


class Lineage:
    """What a session is made of, across the processes that carry it.

    Args:
        group: The group it belongs to.
        process: Its process.
        cell: The number of its last cell, if it is a branch.
        bound: The variables that it has from the host, if it is a branch.
    """

    def __init__(self, group: Group, process: Process, cell: int, bound: dict[str, Any]) -> None:
        self.group = group
        self.ended = False
        self._process = process
        self._checkpoints: list[Checkpoint] = []
        self._cell = cell
        self._bound = dict(bound)
        self._told: dict[str, Callable[..., Any]] | None = None
        self._copy_seconds = 0.0
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
            if not self._checkpoints:
                raise dspy.CodeInterpreterError("There is no checkpoint to roll back to.")
            checkpoint = self._woken()
            if checkpoint is None:
                self._lose("The checkpoint could not be woken")
            return checkpoint.cell

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
        for checkpoint in self._checkpoints:
            checkpoint.process.close()
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
        for checkpoint in self._checkpoints:
            checkpoint.process.detach()

    def _forget_older_checkpoints(self) -> None:
        for checkpoint in self._checkpoints[:-1]:
            checkpoint.process.close()
        del self._checkpoints[:-1]

    def _after(self, frame: wire.Frame) -> None:
        """Note what became of the copy and the variables that were sent with the cell."""
        newest = self._checkpoints[-1] if self._checkpoints else None
        if newest is not None and newest.cell == self._cell:
            copying = frame.get("copying")
            if isinstance(copying, float) and copying > 0:
                self._copy_seconds = copying
                self._forget_older_checkpoints()
            else:
                self._checkpoints.pop().process.close()
        if frame.get("taken") is not True:
            self._bound, self._told = {}, None

    def _recover(self, reason: str, rest: str = "") -> NoReturn:
        """Go back to the checkpoint and say so; without one the session is lost."""
        if self.ended:
            raise dspy.CodeInterpreterError("The session was shut down while the cell ran.")
        checkpoint = self._woken()
        if checkpoint is None:
            self._lose(reason)
        undone = f"cell {checkpoint.cell}"
        if checkpoint.cell < self._cell:
            undone = f"cells {checkpoint.cell} to {self._cell}"
        rest = rest or f"What {undone} did to variables is undone. {_STAYS_DONE}"
        raise CellUndone(f"{reason}. Variables are as they were before cell {checkpoint.cell}. {rest}")

    def _lose(self, reason: str) -> NoReturn:
        self.close()
        raise dspy.CodeInterpreterError(f"{reason}; the session is lost, with all its variables.")

    def _woken(self) -> Checkpoint | None:
        """End the process and let the newest checkpoint that wakes take its place; None if none does."""
        self._process.kill()
        while self._checkpoints and not self.ended:
            checkpoint = self._checkpoints.pop()
            self._process.close()
            self._process = checkpoint.process
            try:
                self._wake_up(self._process, Deadline(WAKE_SECONDS / 2))
            except (OSError, EOFError, ValueError):
                continue
            self._bound, self._told = checkpoint.bound, None
            self.group.sweep(self._process)
            return checkpoint
        return None

    def _wake_up(self, process: Process, deadline: Deadline) -> None:
        process.send({"t": "wake"}, deadline.left)
        awake = process.expect("awake", deadline)
        pid = awake.get("pid")
        if type(pid) is not int or not 0 < pid < 1 << 31:
            raise wire.Violation("a copy without a number")
        self.group.watch(process, pid)

    def _order(self, frame: wire.Frame, fds: list[int], answer: str) -> None:
        """Give an order between cells and wait until it is done."""
        deadline = Deadline(WAKE_SECONDS)
        self._orders += 1
        try:
            self._process.check_alive()
            self._process.send({**frame, "id": self._orders}, deadline.left, fds)
            self._process.expect(answer, deadline, self._orders)
        except (OSError, EOFError, ValueError) as error:
            self._recover(f"The worker ended or takes no orders ({error})", "The order was not carried out.")
