"""What is done to an LM's request and reply: lone surrogates are mended, thinking dropped, a cut reply refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.lm_info import finish_reasons, longest_reply, text_of
from rlm_dspy.errors import ReplyCut
from rlm_dspy.replies.thinking import split_thinking
from rlm_dspy.text import mended

if TYPE_CHECKING:
    from collections.abc import Collection

    from rlm_dspy.budget.metering import LMRequest

_CUT = frozenset(
    {"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length", "token_limit"}
    | {"model_context_window_exceeded", "content_filter"}
)
"""Why a reply may end before its end, as providers name it, in lower case."""


def sendable(prompt: Any, messages: Any, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return the arguments of a call without halves of surrogate pairs, which DSPy refuses.

    The list of messages stays the same object, by which DSPy knows that an adapter made it.
    """
    if isinstance(messages, list):
        messages[:] = mended(messages)
    else:
        messages = mended(messages)
    return mended(prompt), messages, mended(options)


def readable(request: LMRequest) -> Any:
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
        raise _cut(request.lm, reason, entry["usage"], text_of(outputs))
    return outputs


def _fields_asked_for() -> Collection[str]:
    """Return the output fields of the predictor that asks: tags with their names are no thinking."""
    callers = dspy.settings.caller_modules
    return callers[-1].signature.output_fields if callers and isinstance(callers[-1], dspy.Predict) else ()


def _answer(text: Any, fields: Collection[str]) -> Any:
    return split_thinking(text, fields=fields)[1] if isinstance(text, str) else text


def _cut(lm: dspy.BaseLM, reason: str, usage: dict[str, Any], text: str) -> ReplyCut:
    """Return the error of an answer that was cut short."""
    if reason == "content_filter":
        return ReplyCut("was cut by the provider's content filter", text)
    tokens = usage.get("completion_tokens") or longest_reply(lm)
    return ReplyCut(f"was cut after {tokens:,} tokens" if tokens else "was cut", text)
