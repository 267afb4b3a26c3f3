"""Creates child RLMs for `rlm_query`, limits their depth, and rejects one that would only repeat its parent."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import dspy

from rlm_dspy.inputs import HostInput, Text
from rlm_dspy.subcalls.interface import Interface
from rlm_dspy.text import sendable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

_MAX_TASK_CHARS = 2_000
_MOST_OF_IT = 0.8
_GUARDED_CHARS = 2_000
"""Shorter inputs may be passed whole: that costs little."""

LLM_QUERY = Interface(name="query", inputs={"prompt": str}, outputs={"response": str})
"""The interface of `llm_query`; instructions by an optimizer do not change it."""
RLM_QUERY = Interface(
    name="rlm_query", inputs={"prompt": str, "context": Any}, defaults={"context": None}, outputs={"response": str}
)
"""The interface of `rlm_query`."""


class ChildQuery(dspy.Module):
    """The module behind `rlm_query`: a child RLM whose task is the prompt.

    Args:
        make: Returns a child for a signature.
    """

    def __init__(self, make: Callable[[type[dspy.Signature]], dspy.Module]) -> None:
        super().__init__()
        self._make = make

    def forward(self, prompt: str, context: Any = None) -> dspy.Prediction:
        """Answer a prompt about a context; a long prompt is a variable of the child's."""
        child, inputs = self._child(prompt, context)
        return child(**inputs)

    async def aforward(self, prompt: str, context: Any = None) -> dspy.Prediction:
        """Answer a prompt about a context; a long prompt is a variable of the child's."""
        child, inputs = self._child(prompt, context)
        return await child.acall(**inputs)

    def _child(self, prompt: str, context: T | None) -> tuple[dspy.Module, dict[str, T | str]]:
        inputs: dict[str, T | str] = {} if context is None else {"context": context}
        task = f"{prompt}\n\nGive the answer as `response`."
        if len(prompt) > _MAX_TASK_CHARS:
            inputs["prompt"] = prompt
            task = "Follow the instructions in `prompt`. Give the answer as `response`."
        fields = {name: (Any, dspy.InputField()) for name in inputs} | {"response": (str, dspy.OutputField())}
        return self._make(dspy.Signature(fields, sendable(task))), inputs


@dataclass(eq=False)
class Guard:
    """Refuses a child that would receive most of its parent's inputs and repeat its parent's work.

    A repeated call is accepted.

    Args:
        inputs: The parent's inputs by name.
    """

    inputs: Mapping[str, Any]
    _refused: set[str] = field(default_factory=set)

    @functools.cached_property
    def _total(self) -> int:
        return sum(map(_chars, self.inputs.values()))

    def __call__(self, given: Mapping[str, Any], key: str) -> str:
        """Return why a child is refused; empty if it is not.

        Args:
            given: The child's inputs by name.
            key: Identifies the call.
        """
        handed = sum(_chars(value) for value in given.values())
        if self._total < _GUARDED_CHARS or handed < _MOST_OF_IT * self._total or key in self._refused:
            return ""
        self._refused.add(key)
        return (
            f"This child would receive almost the whole input ({handed:,} of {self._total:,} characters). No call "
            "was made. Split the input with code and pass slices. To pass all of it anyway, repeat the call."
        )


def _chars(value: Any) -> int:
    if isinstance(value, Text) and value.path is not None:
        return value.path.stat().st_size  # not read for this
    if isinstance(value, HostInput):
        return value.total
    if isinstance(value, str | bytes | Text):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_chars, value.values()))
    return sum(map(_chars, value)) if isinstance(value, list | tuple | set) else 1
