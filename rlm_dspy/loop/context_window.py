"""Holds what the model is shown of a run, and decides how long that may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.last_turn_reserve import TRANSCRIPT_CHARS
from rlm_dspy.budget.lm_info import context_window, tokens_at_most
from rlm_dspy.prompt.adapter import messages_of
from rlm_dspy.repl.value_codec import without_media_marks
from rlm_dspy.text import fitted
from rlm_dspy.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.limits import Limits
    from rlm_dspy.signatures import Environment
    from rlm_dspy.trajectory import Step

_CHARS_PER_TOKEN = 3
_FULL = 0.8
"""The part of the window that messages may fill; the reply needs room too."""
_SHRINK = 0.6
"""Messages that were refused without a number are made so much shorter."""
PART = 4
"""One output fills at most one part in so many of the room, as does the account of older turns."""
_LEAST_OUTPUT_CHARS = 500


@dataclass(eq=False)
class Conversation:
    """The messages of a run's turns, and how long they may be.

    Attributes:
        act: The predictor of the turns.
        lm: The LM that takes them.
        limits: The limits of the run.
        ledger: Knows the context windows that errors have told.
        environment: The first message.
        trajectory: The turns as the model is shown them.
        reported: The tokens that the messages of the last turn had, as reported, and the steps among them.
    """

    act: dspy.Predict
    lm: dspy.BaseLM
    limits: Limits
    ledger: Ledger
    environment: Environment
    trajectory: Trajectory = Trajectory()  # noqa: RUF009 (frozen)
    reported: tuple[int, int] = (0, 0)
    _demos: list[dict[str, Any]] | None = None
    _most: float = math.inf
    _chars_per_token: float = _CHARS_PER_TOKEN

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of `act` in the next turn."""
        given: dict[str, Any] = {} if self._demos is None else {"demos": self._demos}
        if self.lm is not (self.act.lm or dspy.settings.lm):
            given["lm"] = self.lm
        return {"environment": self.environment, "trajectory": self.trajectory, **given}

    def leave_out_demos(self) -> None:
        """Show no demos from now on, to save room."""
        self._demos = []

    def show(self, steps: Iterable[Step]) -> None:
        """Show the model these steps from now on, instead of those before."""
        self.trajectory = Trajectory(steps=tuple(steps))
        self.reported = (0, 0)

    def _messages(self, trajectory: Trajectory) -> list[dict[str, str]]:
        return messages_of(self.act, self.environment, trajectory, self._demos)

    def chars(self, trajectory: Trajectory | None = None) -> int:
        """Return how many characters the messages of the next turn have, or would have after other turns."""
        messages = self._messages(self.trajectory if trajectory is None else trajectory)
        return sum(len(message["content"]) for message in messages)

    def most_tokens(self) -> int:
        """Return the most tokens that the messages of the next turn have."""
        return tokens_at_most(None, self._messages(self.trajectory))

    def tokens(self) -> float:
        """Return about how many tokens these messages have, from those that were reported last."""
        reported, steps = self.reported
        if not reported:
            return self.chars() / _CHARS_PER_TOKEN
        return reported + chars_of(self.trajectory.steps[steps:]) / _CHARS_PER_TOKEN

    @property
    def window(self) -> int | None:
        """The model's context window in tokens; None if it is not known."""
        given = self.limits.max_context_tokens
        known = given if given is not None else context_window(self.lm)
        told = self.ledger.windows.get(getattr(self.lm, "model", ""))
        return min((n for n in (known, told) if n is not None), default=None)

    @property
    def most_chars(self) -> float:
        """The most characters that the messages of a turn may have; infinite while nothing is known."""
        window = self.window
        fits = math.inf if window is None else _FULL * window * self._chars_per_token
        return min(fits, self._most)

    @property
    def output_chars(self) -> int:
        """The most characters of one output that are shown."""
        most, room = self.limits.max_output_chars, self.most_chars
        return most if math.isinf(room) else min(most, max(_LEAST_OUTPUT_CHARS, int(room / PART)))

    @property
    def is_full(self) -> bool:
        """Whether the messages of the next turn are close to the context window, as far as it is known."""
        window = self.window
        if window is None or (tokens := self.tokens()) <= _FULL * window:
            return False
        self._chars_per_token = min(self._chars_per_token, self.chars() / tokens)
        return True

    def refused(self) -> None:
        """Record that the messages of the next turn were too long; the error's window is recorded by now."""
        chars = self.chars()
        if chars <= self.most_chars:
            self._most = _SHRINK * chars

    def transcript(self, chars: float) -> str:
        """Return the session as text of about this many characters: the environment, then the steps."""
        most = int(min(chars, len(str(self.environment)) + TRANSCRIPT_CHARS))
        environment = fitted(self.environment.parts, max(most - TRANSCRIPT_CHARS, most // 3))
        steps = list(map(as_session, self.trajectory.steps))
        room = min(TRANSCRIPT_CHARS, most - sum(map(len, environment)))
        return str(without_media_marks("\n\n".join([*environment, *fitted(steps, room)])))


def as_session(step: Step) -> str:
    """Return a step as text, as a session in a REPL shows it."""
    return f"{step.reasoning}\n>>> {step.code}\n{step.output}"


def chars_of(steps: Iterable[Step]) -> int:
    """Return how many characters of the messages are of these steps."""
    return sum(len(step.reasoning) + len(step.code) + len(step.observation) for step in steps)
