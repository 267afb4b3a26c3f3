"""Normalizes the arguments of an LM call, strips thinking from its outputs and rejects truncated replies."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import dspy
from dspy.lm15 import Request

from rlm_dspy.budget.lm_info import REPLY_LIMITS, finish_reasons, longest_reply, text_of
from rlm_dspy.errors import ReplyCut
from rlm_dspy.replies.thinking import split_thinking
from rlm_dspy.text import mended

if TYPE_CHECKING:
    from collections.abc import Collection

    from rlm_dspy.budget.metering import LMRequest, Outputs

_CUT = frozenset(
    {"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length", "token_limit"}
    | {"model_context_window_exceeded", "content_filter"}
)
"""Why a reply may end before its end, as providers name it, in lower case."""
_LONGEST_REPLY_UNKNOWN = 32_768


@dataclass(frozen=True)
class LMCall:
    """The normalized arguments of an LM call.

    Attributes:
        prompt: A text, or a whole request; None if there are messages.
        messages: The messages that an adapter has made; None if there is a prompt.
        options: The settings of this call, in place of those of the LM.
    """

    prompt: str | Request | None
    messages: list[dict[str, Any]] | None
    options: dict[str, Any]

    @classmethod
    def of(
        cls, prompt: str | Request | None, messages: list[dict[str, Any]] | None, options: dict[str, Any]
    ) -> Self:
        """Return the arguments of `dspy.BaseLM.__call__`; `request` may also be a keyword."""
        if prompt is None and isinstance(options.get("request"), Request):
            prompt = options.pop("request")
        return cls(prompt, messages, options)

    def most_written(self, lm: dspy.BaseLM) -> int:
        """Return the most tokens that a reply of an LM may have."""
        limits = {**lm.kwargs, **self.options}
        told = next((limits[name] for name in REPLY_LIMITS if limits.get(name)), None)
        told = self.prompt.config.max_tokens if isinstance(self.prompt, Request) else told
        most: int = told or longest_reply(lm) or _LONGEST_REPLY_UNKNOWN
        return most

    def answers(self, lm: dspy.BaseLM) -> int:
        """Return how many answers the call requests."""
        number: int = self.options.get("n") or lm.kwargs.get("n") or 1
        return number

    def sendable(self) -> LMCall:
        """Return the call without lone surrogates, which DSPy rejects.

        The list of messages stays the same object, by which DSPy knows that an adapter made it.
        """
        if isinstance(self.messages, list):
            self.messages[:] = mended(self.messages)
        return LMCall(mended(self.prompt), self.messages, mended(self.options))

    def within(self, room: float) -> LMCall:
        """Return the call with its reply limited to `room` tokens."""
        if math.isinf(room):
            return self
        if isinstance(self.prompt, Request):
            most = int(min(self.prompt.config.max_tokens or room, room))
            config = replace(self.prompt.config, max_tokens=most)
            return replace(self, prompt=replace(self.prompt, config=config))
        limits = {name: min(n, room) for name in REPLY_LIMITS if (n := self.options.get(name))}
        return replace(self, options={**self.options, **limits})


def readable(request: LMRequest) -> Outputs:
    """Return the outputs of a request without the thinking in their texts.

    Raises:
        ReplyCut: If one of them was cut short.
    """
    outputs = request.outputs
    if not isinstance(outputs, list):  # the response of an explicit request
        return outputs
    fields = _fields_asked_for()
    outputs = [
        {**each, "text": _answer(each.get("text"), fields)} if isinstance(each, dict) else _answer(each, fields)
        for each in outputs
    ]
    entry = request.entry(request.outputs)
    if reason := next((reason for reason in finish_reasons(entry.get("response")) if reason in _CUT), None):
        tokens = entry["usage"].get("completion_tokens") or longest_reply(request.lm)
        raise _cut(reason, tokens, text_of(outputs))
    return outputs


def _fields_asked_for() -> Collection[str]:
    """Return the output fields of the predictor that asks: tags with their names are no thinking."""
    callers = dspy.settings.caller_modules
    return callers[-1].signature.output_fields if callers and isinstance(callers[-1], dspy.Predict) else ()


def _answer(text: Any, fields: Collection[str]) -> Any:
    return split_thinking(text, fields=fields)[1] if isinstance(text, str) else text


def _cut(reason: str, tokens: int | None, text: str) -> ReplyCut:
    """Return the error of an answer that was cut short."""
    if reason == "content_filter":
        return ReplyCut("was cut by the provider's content filter", text)
    return ReplyCut(f"was cut after {tokens:,} tokens" if tokens else "was cut", text)
