"""Plays a run in a test: scripted replies, code in this process, nothing that reaches a network."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import dspy

from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.signatures import Environment
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

    from rlm_dspy.testing import Messages, Reply

    Replies = ScriptedLM | Iterable[Reply] | Callable[[Messages], Reply]

FIELDS = "[[ ## {} ## ]]\n{}"
ASKS_FOR_THE_FIRST_BLOCK = Environment().parts[-1].partition(".")[0]
"""The first sentence of the last paragraph of every environment."""


def block(code: str, reasoning: str = "Next.") -> str:
    """Return a reply with one block of Python."""
    return f"{reasoning}\n```python\n{code}\n```"


def begins(message: dict[str, str]) -> bool:
    """Whether a message of a chat begins a run: it holds an environment, and asks for the first block.

    One with DSPy's field markers may quote an environment: an optimizer asks about it.
    """
    asks = ASKS_FOR_THE_FIRST_BLOCK in message["content"] and "[[ ## " not in message["content"]
    return message["role"] == "user" and asks


def is_last_turn(messages: Messages) -> bool:
    """Whether the newest message says that this is the last turn."""
    return "last turn" in messages[-1]["content"]


def told(messages: Messages) -> str:
    """Return what the last run of a chat was told before its first turn, the instructions included."""
    starts = [message["content"] for message in messages if begins(message)]
    return f"{messages[0]['content']}\n\n{starts[-1]}"


def fields(**values: str) -> str:
    """Return a reply in the form of DSPy's ChatAdapter, as `dspy.RLM` and extraction want it."""
    written = [FIELDS.format(name, value) for name, value in values.items()]
    return "\n\n".join([*written, "[[ ## completed ## ]]"])


@dataclass(frozen=True)
class Played:
    """A run that has ended.

    Attributes:
        prediction: What it gave.
        lm: The scripted LM it ran on.
    """

    prediction: dspy.Prediction
    lm: ScriptedLM

    @property
    def calls(self) -> list[Messages]:
        """The messages of each model call."""
        return self.lm.script.calls

    def calls_as(self, role: str) -> list[Messages]:
        """Return the messages of each model call that was made in a role."""
        return [call for call, made_as in zip(self.calls, self.lm.script.roles, strict=True) if made_as == role]

    @property
    def outputs(self) -> list[str]:
        """What came out of each turn."""
        return [step["output"] for step in self.prediction.trajectory]

    @property
    def kinds(self) -> list[str]:
        """How each turn ended."""
        return [step["kind"] for step in self.prediction.trajectory]


class Play(Protocol):
    """Calls a module with scripted replies."""

    def __call__(self, module: dspy.Module, replies: Replies, **inputs: Any) -> Played: ...


def play_blocking(module: dspy.Module, replies: Replies, **inputs: Any) -> Played:
    """Call a module."""
    lm = scripted(replies)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        return Played(module(**inputs), lm)


def play_awaiting(module: dspy.Module, replies: Replies, **inputs: Any) -> Played:
    """Await a module on an event loop of its own."""
    lm = scripted(replies)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        return Played(asyncio.run(module.acall(**inputs)), lm)


def scripted(replies: Replies) -> ScriptedLM:
    """Return the LM that plays the replies."""
    return replies if isinstance(replies, ScriptedLM) else ScriptedLM(replies)


def steps_of(caught: pytest.ExceptionInfo[Any]) -> list[dict[str, Any]]:
    """Return the trajectory that an error carries."""
    steps: list[dict[str, Any]] = caught.value.trajectory
    return steps
