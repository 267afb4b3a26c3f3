"""What the tests of batches share: a model that notes every request in a file, a program for it, and examples."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy import RLM
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from pathlib import Path

    from rlm_dspy.testing import Messages

CONTEXT = "word " * 20_000
"""Long enough to be published."""
ANSWER = "```python\nSUBMIT(words=len(context.split()) + number)\n```"


class CountingLM(ScriptedLM):
    """Answers every turn with `reply`; each request is a file.

    Args:
        folder: Where each request is noted, as a file named by process and time.
        reply: What it replies.
        seconds: How long a reply takes.
        kill: Words; a process that is asked with them kills itself, as often as there are files named `bullet*`
            beside the folder.
        fails_from: The number of the first request that fails; 0 for none.
    """

    def __init__(
        self, folder: Path, reply: str = ANSWER, seconds: float = 0.0, kill: str = "", fails_from: int = 0
    ) -> None:
        self.made_with = (folder, reply, seconds, kill, fails_from)
        super().__init__(self._reply, seconds=seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.made_with

    def _reply(self, messages: Messages) -> str:
        folder, reply, _, kill, fails_from = self.made_with
        (folder / f"{time.time_ns()}-{os.getpid()}").write_text(messages[-1]["content"])
        if kill and kill in messages[-1]["content"]:
            for bullet in folder.parent.glob("bullet*"):
                bullet.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        if fails_from and self.requests >= fails_from:
            raise dspy.LMInvalidRequestError("no more")
        return reply

    @property
    def requests(self) -> int:
        """The number of requests of all processes."""
        return len(list(self.made_with[0].iterdir()))


def examples(number: int, context: Any = CONTEXT) -> list[dspy.Example]:
    """Return examples that differ by a number."""
    return [dspy.Example(context=context, number=n).with_inputs("context", "number") for n in range(number)]


def program() -> RLM:
    """Return a program that adds a number to the words of a context."""
    return RLM("context: str, number: int -> words: int")


class Fails(dspy.Module):
    """Raises what it is given, as often as there are errors left."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__()
        self.errors = errors
        self.calls = 0

    def forward(self, number: int) -> dspy.Prediction:
        self.calls += 1
        if self.errors:
            raise self.errors.pop()
        return dspy.Prediction(number=number)
