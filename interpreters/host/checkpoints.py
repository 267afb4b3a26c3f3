"""Manages checkpoints, the sleeping copies of a worker: when to make one, and which one replaces the worker."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_dspy.interpreters.host.process import Process
    from rlm_dspy.interpreters.worker import wire

Mode = Literal["auto", "always", "off"]

_CHEAP_SECONDS, _CHEAP_SHARE = 0.020, 0.05


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

    process: Process
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
        self.changed = True
        """Whether the worker has changed since the last copy was ordered."""

    def worth_one(self) -> bool:
        """Return whether a checkpoint is worth its cost now.

        A call to the host may have been paid for, so each is worth a copy. Otherwise a copy may take 20 ms, or 5 %
        of the time since the last: that is what the session would lose, with what the model thought meanwhile.
        """
        if self._mode != "auto" or not self.changed:
            return self._mode == "always" and self.changed
        cheap = max(_CHEAP_SECONDS, _CHEAP_SHARE * (time.monotonic() - self._since))
        return self._calls > 0 or self._seconds <= cheap

    def ran(self, calls: int) -> None:
        """Record that a cell ran and made so many calls."""
        self.changed = True
        self._calls += calls

    def ordered(self, process: Process, order: int, cell: int, blocks: int, bound: Mapping[str, Any]) -> None:
        """Record that a checkpoint of the current state was ordered."""
        made = Checkpoint(process, order, cell, blocks, dict(bound), self._calls, self._since)
        self._kept.append(made)
        self.changed, self._calls, self._since = False, 0, time.monotonic()

    def told(self, frame: wire.Frame) -> None:
        """Note what the worker says of a copy that was ordered; anything else is ignored."""
        order, seconds = frame.get("id"), frame.get("seconds")
        for checkpoint in self._kept:
            if checkpoint.order == order and not checkpoint.made:
                if frame.get("made") is True and isinstance(seconds, float):
                    checkpoint.made, self._seconds = True, seconds
                else:
                    self._drop(checkpoint)
                return

    def _drop(self, checkpoint: Checkpoint) -> None:
        """Let go of a copy that was not made: what it would have kept is at risk as before."""
        self._kept.remove(checkpoint)
        checkpoint.process.close()
        self.changed, self._calls, self._since = True, self._calls + checkpoint.calls, checkpoint.since

    def forget_older(self) -> None:
        """Keep the newest that was made, and what was ordered after it."""
        made = [place for place, checkpoint in enumerate(self._kept) if checkpoint.made]
        for checkpoint in self._kept[: made[-1]] if made else ():
            checkpoint.process.close()
        self._kept = self._kept[made[-1] :] if made else self._kept

    def has(self, before: int) -> bool:
        """Return whether one was made before this cell ran."""
        return any(checkpoint.made and checkpoint.cell < before for checkpoint in self._kept)

    def newest(self, before: int | None = None) -> Checkpoint | None:
        """Take the newest finished checkpoint, and release later ones.

        Args:
            before: A cell that must not have run yet when it was made.
        """
        while self._kept:
            checkpoint = self._kept.pop()
            if checkpoint.made and (before is None or checkpoint.cell < before):
                self.changed = True
                return checkpoint
            checkpoint.process.close()
        return None

    def close(self) -> None:
        """Release all checkpoints."""
        for checkpoint in self._kept:
            checkpoint.process.close()
        self._kept = []

    def detach(self) -> None:
        """In a forked child of the host: close what it inherited and disturb nothing."""
        for checkpoint in self._kept:
            checkpoint.process.detach()
