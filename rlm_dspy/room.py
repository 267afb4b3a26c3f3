"""Keeps the messages of a run within the model's window: fold, fold more, shorten outputs, leave out demos."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlm_dspy.fold import ACCOUNT_CHARS, KEPT_TURNS, fold
from rlm_dspy.lms import context_window
from rlm_dspy.trajectory import Trajectory, fitted

if TYPE_CHECKING:
    from rlm_dspy.port import Port
    from rlm_dspy.run import Run
    from rlm_dspy.trajectory import Step

_CHARS_PER_TOKEN = 3
_FULL = 0.8
"""The part of the window that messages may fill; the reply needs room too."""
_SHRINK = 0.6
"""Messages that were refused without a number are made so much shorter."""
_BASE_SHARE = 0.5
"""The part of the room that all but the turns may fill: instructions, demos, environment."""
_PART = 4
"""One output fills at most one part in so many of the room, as does the account of older turns."""
_AFTER = 0.6
"""The part of the room that turns fill once some were folded, if so few can stay: more are to come."""
_LEAST_OUTPUT_CHARS = 500
_LEAST_KEPT_CHARS = 600
"""A newest turn that would be shorter gives way to the account."""
_LEAST_TURNS_CHARS = 1_000
_LEAST_ENVIRONMENT_CHARS = 2_000
"""What has fewer characters is not shortened: it would tell too little."""


class Room:
    """How long the messages of a run may be: as its limits say, as is known of the LM, or as refusals teach.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._most = math.inf
        self._chars_per_token: float = _CHARS_PER_TOKEN

    @property
    def window(self) -> int | None:
        """The tokens that the model can hold, as far as that is known; None if it is not."""
        given = self._run.limits.max_context_tokens
        known = given if given is not None else context_window(self._run.lm)
        told = self._run.ledger.windows.get(getattr(self._run.lm, "model", ""))
        return min((n for n in (known, told) if n is not None), default=None)

    @property
    def chars(self) -> float:
        """The most characters that the messages of a turn may have; infinite while nothing is known."""
        window = self.window
        fits = math.inf if window is None else _FULL * window * self._chars_per_token
        return min(fits, self._most)

    @property
    def output_chars(self) -> int:
        """The most characters that one output is shown with."""
        most = self._run.limits.max_output_chars
        return most if math.isinf(self.chars) else min(most, max(_LEAST_OUTPUT_CHARS, int(self.chars / _PART)))

    @property
    def is_full(self) -> bool:
        """Whether the messages of the next turn near the window, as far as it is known."""
        window, tokens = self.window, self._run.context_tokens()
        if window is None or tokens <= _FULL * window:
            return False
        self._chars_per_token = min(self._chars_per_token, self._run.message_chars() / tokens)
        return True

    def refused(self) -> None:
        """Note that the messages of the next turn were refused; the window that was told of is known by now."""
        chars = self._run.message_chars()
        if chars <= self.chars:
            self._most = _SHRINK * chars


async def make_room(port: Port, run: Run) -> bool:
    """Make the messages of the next turn shorter: so that they fit the window, or by one step if it is not known.

    Older turns are folded first (see `fold`), more and more of them; then the newest outputs are shortened; then
    demos are left out, and the longest parts of the environment shortened.

    Args:
        port: How the model is reached.
        run: The run.

    Returns:
        Whether anything was folded or shortened.
    """
    before = run.message_chars()
    if run.room.window is None:
        for keep in (KEPT_TURNS, 1, 0):
            if await fold(port, run, keep):
                return True
        room = int(run.room.chars)
        _shorten_turns(run, room - run.message_chars(Trajectory()))
        _shorten_base(run, room - _chars(run.trajectory.steps))
    else:
        _shorten_base(run, int(_BASE_SHARE * run.room.chars))
        if await _fit_turns(port, run, int(run.room.chars) - run.message_chars(Trajectory())):
            return True
    return run.message_chars() < before


async def _fit_turns(port: Port, run: Run, room: int) -> bool:
    """Make the turns fit into so many characters; return whether any were folded."""
    steps = run.trajectory.steps
    if _chars(steps) <= room:
        return False
    account = min(ACCOUNT_CHARS, max(room, 0) // _PART)
    for keep in (KEPT_TURNS, 1):
        if account + _chars(steps[-keep:]) <= _AFTER * room and await fold(port, run, keep, account):
            return True
    folded = await fold(port, run, 1 if room - account >= _LEAST_KEPT_CHARS else 0, account)
    _shorten_turns(run, room)
    return folded


def _shorten_turns(run: Run, room: int) -> None:
    """Shorten the longest of what the turns said, ran and printed."""
    steps = run.trajectory.steps
    if _chars(steps) <= (room := max(room, _LEAST_TURNS_CHARS)):
        return
    parts = [text for step in steps for text in (step.reasoning, step.code, step.output)]
    notices = sum(len(step.notice) for step in steps)
    shorter = iter(fitted(parts, room - notices))
    run.show(
        [
            step.model_copy(update={"reasoning": next(shorter), "code": next(shorter), "output": next(shorter)})
            for step in steps
        ]
    )


def _shorten_base(run: Run, room: int) -> None:
    """Leave out demos, then shorten the longest parts of the environment."""
    if run.message_chars(Trajectory()) <= room:
        return
    run.leave_out_demos()
    over = run.message_chars(Trajectory()) - room
    if over > 0:
        parts = run.environment.split("\n\n")
        seams = 2 * (len(parts) - 1)
        least = min(len(run.environment), _LEAST_ENVIRONMENT_CHARS)
        run.environment = "\n\n".join(fitted(parts, max(least, len(run.environment) - over) - seams))
        run.show(list(run.trajectory.steps))


def _chars(steps: tuple[Step, ...]) -> int:
    return sum(len(step.reasoning) + len(step.code) + len(step.observation) for step in steps)
