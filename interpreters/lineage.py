"""A worker's process, the sleeping copies that can take its place, and its end."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import dspy

from rlm_dspy.interpreters import wire
from rlm_dspy.interpreters.base import CellError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.interpreters.group import Group
    from rlm_dspy.interpreters.process import Process

_WAKE_SECONDS = 10
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
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def roll_back(self) -> int:
        """Go back to the checkpoint.

        Returns:
            The number of the cell before which the session is now.

        Raises:
            dspy.CodeInterpreterError: If there is none, or it cannot be woken.
        """
        if not self._checkpoints:
            raise dspy.CodeInterpreterError("There is no checkpoint to roll back to.")
        checkpoint = self._woken()
        if checkpoint is None:
            self._lose("The checkpoint could not be woken")
        return checkpoint.cell

    def close(self) -> None:
        """End the worker, its copies and what it left running."""
        if self.ended:
            return
        self.ended = True
        self._process.signal(signal.SIGKILL)
        self._process.close()
        for checkpoint in self._checkpoints:
            checkpoint.process.close()
        os.close(self._wake)
        self.group.leave()

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
        self._process.signal(signal.SIGKILL)
        while self._checkpoints:
            checkpoint = self._checkpoints.pop()
            self._process.close()
            self._process = checkpoint.process
            try:
                self._wake_up(self._process)
            except (OSError, EOFError, ValueError):
                continue
            self._bound, self._told = checkpoint.bound, None
            self.group.sweep(self._process)
            return checkpoint
        return None

    def _wake_up(self, process: Process) -> None:
        process.send({"t": "wake"})
        awake = process.expect("awake", _WAKE_SECONDS)
        pid = awake.get("pid")
        if type(pid) is not int or not 0 < pid < 1 << 31:
            raise wire.Violation("a copy without a number")
        self.group.watch(process, pid)

    def _order(self, frame: wire.Frame, fds: list[int], answer: str) -> None:
        """Give an order between cells and wait until it is done."""
        try:
            self._process.check_alive()
            self._process.send(frame, fds)
            self._process.expect(answer, _WAKE_SECONDS)
        except (OSError, EOFError, ValueError) as error:
            self._recover(f"The worker ended or takes no orders ({error})", "The order was not carried out.")
