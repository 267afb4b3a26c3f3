"""Defines `ActiveSubCall`: through it a run inside a sub-call finds its parent and reports how it ended."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import dspy

from rlm_dspy.errors import Unanswered

if TYPE_CHECKING:
    from rlm_dspy.coverage.tracker import Watch
    from rlm_dspy.trajectory import Step


class ActiveRun(Protocol):
    """The run that made a sub-call, as sub-calls see it; `Run` is one."""

    lm: dspy.BaseLM
    watch: Watch | None
    depth: int
    heard: bool
    """Whether anybody listens to its events."""


@dataclass
class ActiveSubCall:
    """A sub-call under way, as an RLM that runs inside it finds it.

    Attributes:
        run: The run that made the sub-call: the parent of what runs inside.
        steps: The steps of the runs inside that have ended.
        stop: How the last run inside ended, as in `Prediction.stop`; empty if there was none.
        final_reasoning: Its last words; of one that ended unanswered, why it did.
    """

    run: ActiveRun
    steps: list[Step] = field(default_factory=list)
    stop: str = ""
    final_reasoning: str = ""

    def check(self, result: dspy.Prediction, *, is_child: bool) -> None:
        """Check that the sub-call did not end with a run inside that gave no answer.

        Args:
            result: What the module gave.
            is_child: Whether the module is an RLM. Another module may go on without the answer of a run inside
                it; one that returns the prediction of that run did not.

        Raises:
            Unanswered: If it did; the message says why the run ended and what to do.
        """
        handed_on = isinstance(result, dspy.Prediction) and result.get("stop") == "unanswered"
        if self.stop == "unanswered" and (is_child or handed_on):
            raise Unanswered(
                f"The child ended without an answer. {self.final_reasoning} Give it a smaller part or a simpler "
                "task, or go on with plain Python."
            )


active_sub_call: ContextVar[ActiveSubCall | None] = ContextVar("active_sub_call", default=None)
"""The sub-call that runs in this context; None outside of sub-calls, and in the tools of a run."""
