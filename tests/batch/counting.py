"""A model that other processes can make, and which notes every request in a file."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from pathlib import Path

    from rlm_dspy.testing import Messages

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
