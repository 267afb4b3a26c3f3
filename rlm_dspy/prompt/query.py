"""Defines `Query`, the predictor behind `llm_query`, and the adapter that sends its prompt unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import dspy

from rlm_dspy.inputs import MEDIA
from rlm_dspy.prompt.adapter import labels
from rlm_dspy.prompt.refine_advice import hint, speaking
from rlm_dspy.streaming.run_stream import WholeReplyAdapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_dspy.repl.value_codec import Media


class Prompt(str):
    """A prompt with images, sounds or files. As a str it contains their names instead.

    Attributes:
        parts: The texts, and the images, sounds and files, in order.
    """

    __slots__ = ("parts",)
    parts: list[Any]

    def __new__(cls, text: str, parts: list[Any]) -> Self:
        """Return the text as a prompt of these parts."""
        made = super().__new__(cls, text)
        made.parts = parts
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[str, list[Any]]]:
        """Return what makes a copy: optimizers copy demos, and other processes send traces."""
        return type(self), (str(self), self.parts)

    @classmethod
    def of(cls, parts: list[Any], media: Media) -> Self:
        """Join the parts; a picture that code made stands in them by its data.

        Raises:
            ValueError: If a part has another type.
        """
        parts = [_picture(part) if isinstance(part, dict) else part for part in parts]
        if other := [type(part).__name__ for part in parts if not isinstance(part, (str, *MEDIA))]:
            raise ValueError(f"a prompt consists of texts, images, sounds and files, not {', '.join(other)}")
        shown = [part if isinstance(part, str) else f"<{type(part).__name__} {media.key(part)}>" for part in parts]
        return cls("\n".join(shown), parts)

    def content(self) -> list[dict[str, Any]]:
        """Return it as the content of a message."""
        blocks: list[dict[str, Any]] = []
        for part in self.parts:
            blocks += [{"type": "text", "text": part}] if isinstance(part, str) else part.format()
        return blocks


def _picture(fields: dict[str, Any]) -> Any:
    """Return the image of `dspy.Image(...)` in the REPL, never one that somebody would fetch."""
    url = fields.get("url")
    return dspy.Image(url) if isinstance(url, str) and url.startswith("data:image/") else fields


class PromptAdapter(WholeReplyAdapter):
    """Sends the prompt unchanged and takes the whole reply, as a direct call would."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the instructions as system message, demos as pairs, then the prompt."""
        system = "\n\n".join(filter(None, (signature.instructions, hint())))
        messages = [{"role": "system", "content": system}]
        for demo in filter(_is_own, demos):
            messages.append({"role": "user", "content": str(demo["prompt"])})
            messages.append({"role": "assistant", "content": str(demo["response"])})
        prompt = inputs["prompt"]
        content = prompt.content() if isinstance(prompt, Prompt) else prompt
        return [*messages, {"role": "user", "content": content}]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return the reply."""
        return {"response": completion.strip()}


_PROMPT_ADAPTER = PromptAdapter()


def _is_own(demo: Mapping[str, Any]) -> bool:
    """Whether a demo is one of this predictor, not a labeled example of the whole task."""
    return {"prompt", "response"} <= set(demo.keys())


class Query(dspy.Predict):
    """The predictor behind `llm_query`: `prompt -> response`, without a format of its own."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Answer one prompt."""
        with speaking(self, _PROMPT_ADAPTER):
            return super().forward(**inputs)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Answer one prompt."""
        with speaking(self, _PROMPT_ADAPTER):
            return await super().aforward(**inputs)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the state; labeled examples of the whole task, which are not shown, without long texts."""
        state: dict[str, Any] = super().dump_state(json_mode)
        state["demos"] = [demo if _is_own(demo) else labels(demo) for demo in state["demos"]]
        return state
