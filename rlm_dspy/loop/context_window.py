"""Holds the conversation of a run, and decides how long it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.last_turn_reserve import TRANSCRIPT_CHARS
from rlm_dspy.budget.lm_info import context_window, tokens_at_most
from rlm_dspy.prompt.adapter import messages_of
from rlm_dspy.prompt.nearest_demos import demos_for_run
from rlm_dspy.repl.value_codec import without_media_marks
from rlm_dspy.text import counted, cut, logger, shorten_to_fit
from rlm_dspy.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.limits import Limits
    from rlm_dspy.signatures import Environment
    from rlm_dspy.trajectory import Step

_CHARS_PER_TOKEN = 3
_FULL = 0.8
"""Maximum share of the window for messages; the reply needs room too."""
_SHRINK = 0.6
"""Factor by which messages are shortened after a refusal without a number."""
PART = 4
"""One output, or the summary, fills at most 1/PART of the room."""
_LEAST_OUTPUT_CHARS = 500
_LEAST_INSTRUCTIONS_CHARS, _LEAST_ENVIRONMENT_CHARS = 1_000, 2_000
"""Shorter parts are not shortened further: they would say too little."""
_logger = logger()


@dataclass(eq=False)
class Conversation:
    """The messages of a run's turns and their maximum length.

    Attributes:
        act: The predictor of the turns.
        lm: The LM of the turns.
        limits: The limits of the run.
        ledger: Holds the context windows known from errors.
        environment: The first message.
        after_fold: In a session that goes on, the first message once the calls before are summarized.
        trajectory: The turns as shown to the model.
        reported: The reported tokens of the last turn's messages, and the number of steps in them.
    """

    act: dspy.Predict
    lm: dspy.BaseLM
    limits: Limits
    ledger: Ledger
    environment: Environment
    trajectory: Trajectory = Trajectory()  # noqa: RUF009 (frozen)
    reported: tuple[int, int] = (0, 0)
    after_fold: Environment | None = None
    _demos: list[dict[str, Any]] | None = None
    _instructions: str | None = None
    _demos_left: int | None = None
    _most: float = math.inf
    _chars_per_token: float = _CHARS_PER_TOKEN

    def __post_init__(self) -> None:
        self._demos_left = getattr(self.act, "demos_per_run", None)
        self._demos = demos_for_run(self.act, self.environment, self._demos_left)

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of `act` in the next turn."""
        given: dict[str, Any] = {} if self._demos is None else {"demos": self._demos}
        if self._instructions is not None:
            given["signature"] = self._signature
        if self.lm is not (self.act.lm or dspy.settings.lm):
            given["lm"] = self.lm
        return {"environment": self.environment, "trajectory": self.trajectory, **given}

    @property
    def _signature(self) -> type[dspy.Signature]:
        signature: type[dspy.Signature] = self.act.signature
        return signature if self._instructions is None else signature.with_instructions(self._instructions)

    @property
    def demos(self) -> list[dict[str, Any]]:
        """The demos of `act` that are shown."""
        return self.act.demos if self._demos is None else self._demos

    def shorten_base(self, room: int) -> None:
        """Make everything but the turns fit into `room` characters from now on, as far as that is possible.

        First demos are left out: of the nearest ones the farthest first, else all. Then the instructions of `act`
        and the longest parts of the environment are shortened.
        """
        if (before := self.chars(Trajectory())) <= room:
            return
        shown = len(self.demos)
        while self.demos and self.chars(Trajectory()) > room:
            self._demos_left = max(0, (self._demos_left or 0) - 1)
            self._demos = demos_for_run(self.act, self.environment, self._demos_left)
        if (over := self.chars(Trajectory()) - room) > 0:
            instructions = self._signature.instructions
            kept = max(len(instructions) - over, room // PART, _LEAST_INSTRUCTIONS_CHARS)
            self._instructions = cut(instructions, kept)
        if (over := self.chars(Trajectory()) - room) > 0:
            chars = len(str(self.environment))
            self.environment = self.environment.shortened(max(min(chars, _LEAST_ENVIRONMENT_CHARS), chars - over))
        self.show(self.trajectory.steps)
        if (after := self.chars(Trajectory())) < before:
            left_out = counted(shown - len(self.demos), "demo")
            words = "RLM: shortened the first messages from %d to %d characters (%s left out) to fit the window."
            _logger.warning(words, before, after, left_out)

    def show(self, steps: Iterable[Step]) -> None:
        """Replace the steps that the model is shown."""
        self.trajectory = Trajectory(steps=tuple(steps))
        self.reported = (0, 0)
        if self.after_fold is not None and self.trajectory.steps[:1] and self.trajectory.steps[0].kind == "folded":
            self.environment, self.after_fold = self.after_fold, None

    def _messages(self, trajectory: Trajectory) -> list[dict[str, str]]:
        return messages_of(self._signature, self.environment, trajectory, self.demos)

    def chars(self, trajectory: Trajectory | None = None) -> int:
        """Return the number of characters of the next turn's messages, optionally after another trajectory."""
        messages = self._messages(self.trajectory if trajectory is None else trajectory)
        return sum(len(message["content"]) for message in messages)

    def most_tokens(self) -> int:
        """Return an upper bound of the tokens of the next turn's messages."""
        return tokens_at_most(None, self._messages(self.trajectory))

    def tokens(self) -> float:
        """Estimate the tokens of these messages from those reported last."""
        reported, steps = self.reported
        if not reported:
            return self.chars() / self._chars_per_token
        return reported + chars_of(self.trajectory.steps[steps:]) / self._chars_per_token

    @property
    def window(self) -> int | None:
        """The model's context window in tokens; None if it is not known."""
        given = self.limits.max_context_tokens
        known = given if given is not None else context_window(self.lm)
        learned = self.ledger.windows.get(getattr(self.lm, "model", ""))
        return min((n for n in (known, learned) if n is not None), default=None)

    @property
    def most_chars(self) -> float:
        """Maximum characters of a turn's messages; infinite while unknown."""
        window = self.window
        fits = math.inf if window is None else _FULL * window * self._chars_per_token
        return min(fits, self._most)

    @property
    def output_chars(self) -> int:
        """Maximum characters of one output."""
        most, room = self.limits.max_output_chars, self.most_chars
        return most if math.isinf(room) else min(most, max(_LEAST_OUTPUT_CHARS, int(room / PART)))

    @property
    def is_full(self) -> bool:
        """Whether the messages of the next turn are close to the context window, if it is known."""
        window = self.window
        if window is None or (tokens := self.tokens()) <= _FULL * window:
            return False
        self._chars_per_token = min(self._chars_per_token, self.chars() / tokens)
        return True

    def refused(self, read: int | None) -> None:
        """Record that the messages of the next turn were too long; the window of the error is recorded already.

        Args:
            read: Their tokens, if the error states them.
        """
        chars = self.chars()
        if read:
            self._chars_per_token = min(self._chars_per_token, chars / read)
        if chars <= self.most_chars:
            self._most = _SHRINK * chars

    def transcript(self, chars: float) -> str:
        """Return the session as text of about `chars` characters: the environment, then the steps."""
        most = int(min(chars, len(str(self.environment)) + TRANSCRIPT_CHARS))
        room = max(most - TRANSCRIPT_CHARS, most // 3)
        environment = cut(str(self.environment.shortened(room)), room)
        steps = list(map(as_session, self.trajectory.steps))
        shown = shorten_to_fit(steps, min(TRANSCRIPT_CHARS, most - len(environment)))
        return str(without_media_marks("\n\n".join([environment, *shown])))


def as_session(step: Step) -> str:
    """Format a step like a REPL session."""
    return f"{step.reasoning}\n>>> {step.code}\n{step.output}"


def chars_of(steps: Iterable[Step]) -> int:
    """Return the number of characters of these steps in the messages."""
    return sum(len(step.reasoning) + len(step.code) + len(step.observation) for step in steps)
