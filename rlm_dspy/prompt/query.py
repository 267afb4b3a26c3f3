"""Defines `Query`, the predictor behind `llm_query`, and the adapter that sends its prompt unchanged."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Self

import dspy

from rlm_dspy.inputs import MEDIA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlm_dspy.repl.value_codec import Media


class Prompt(str):
    """A prompt with images, sounds or files in it. As a str it has their names in their places.

    Attributes:
        parts: The texts, and the images, sounds and files, in order.

    Raises:
        ValueError: If a part is something else.
    """

    __slots__ = ("parts",)
    parts: list[Any]

    def __new__(cls, parts: list[Any], media: Media) -> Self:
        """Put the parts together."""
        if other := [type(part).__name__ for part in parts if not isinstance(part, (str, *MEDIA))]:
            raise ValueError(f"a prompt consists of texts, images, sounds and files, not {', '.join(other)}")
        shown = [part if isinstance(part, str) else f"<{type(part).__name__} {media.key(part)}>" for part in parts]
        made = super().__new__(cls, "\n".join(shown))
        made.parts = parts
        return made

    def content(self) -> list[dict[str, Any]]:
        """Return it as the content of a message."""
        blocks: list[dict[str, Any]] = []
        for part in self.parts:
            blocks += [{"type": "text", "text": part}] if isinstance(part, str) else part.format()
        return blocks


class PromptAdapter(dspy.Adapter):
    """Sends the prompt unchanged and takes the whole reply, as a direct call would."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the instructions as system message, demos as pairs, then the prompt."""
        messages = [{"role": "system", "content": signature.instructions}]
        for demo in demos:
            if not {"prompt", "response"} <= set(demo.keys()):  # a labeled example of the whole task
                continue
            messages.append({"role": "user", "content": str(demo["prompt"])})
            messages.append({"role": "assistant", "content": str(demo["response"])})
        prompt = inputs["prompt"]
        content = prompt.content() if isinstance(prompt, Prompt) else prompt
        return [*messages, {"role": "user", "content": content}]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return the reply."""
        return {"response": completion.strip()}


callers_adapter: ContextVar[dspy.Adapter | None] = ContextVar("callers_adapter", default=None)
"""The adapter that was in force where a predictor with one of its own was called."""


class WithOwnAdapter(dspy.Predict):
    """A predictor with its own adapter; the other predictors of a program keep the user's."""

    adapter: ClassVar[dspy.Adapter]

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Predict, with the adapter in force."""
        with self._speaking():
            return super().forward(**inputs)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Predict, with the adapter in force."""
        with self._speaking():
            return await super().aforward(**inputs)

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        token = callers_adapter.set(dspy.settings.adapter)
        try:
            with dspy.context(adapter=self.adapter):
                yield
        finally:
            callers_adapter.reset(token)


class Query(WithOwnAdapter):
    """The predictor behind `llm_query`: `prompt -> response`, without a format of its own."""

    adapter = PromptAdapter()
