"""Fits the messages of a call to its provider: marks for the prompt cache, and no system role where none is taken.

Anthropic's models, at Anthropic, on Bedrock and behind OpenRouter, cache only what is marked; others cache by
themselves or not at all. A turn of a run repeats the messages of the turn before, so the system message and the
last message are marked. Sources: platform.claude.com/docs/en/build-with-claude/prompt-caching,
docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html, openrouter.ai/docs/features/prompt-caching.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dspy.lm15 import CacheConfig

from rlm_dspy._dspy_compat import select_backend
from rlm_dspy.budget.lm_info import caches_prompts

if TYPE_CHECKING:
    import dspy

    from rlm_dspy.budget.max_reply_tokens import LMCall

_WORDINGS = (
    r"system role (?:is )?not supported",  # the templates of Gemma, on vLLM, SGLang, LM Studio, llama.cpp
    r"only user and assistant roles are supported",  # the templates of Mistral 7B
    r"conversation roles must alternate",  # the same, and those of Gemma
    r"does(?:n'?t| not) support (?:the )?'?system'?",  # OpenAI's o1-mini, Bedrock
    r"developer instruction is not enabled",  # Gemini's API for Gemma
    r"system (?:messages?|prompts?|instructions?) (?:is|are) not (?:supported|allowed|enabled)",
    r"unexpected (?:message )?role:? '?system",
)
_NO_SYSTEM_ROLE = re.compile("|".join(_WORDINGS), re.IGNORECASE)
_SYSTEM = ("system", "developer")

Message = dict[str, Any]
_BY_DSPY: dict[str, Any] = {"prompt_cache": CacheConfig(prefix="history")}
_BY_LITELLM: dict[str, Any] = {
    "cache_control_injection_points": [
        {"location": "message", "role": "system"},
        {"location": "message", "index": -1},
    ]
}
_CHOICES = {*_BY_DSPY, *_BY_LITELLM, "cache_control"}
_BY_CLIENT = {"temperature", "max_tokens", "top_p", "top_k", "stop", "reasoning_effort"} | {
    *("api_key", "api_base", "base_url", "timeout", "rollout_id")
}
"""Options that DSPy's own client sends. With `prompt_cache`, DSPy refuses what only LiteLLM sends."""
_NOT_BY_CLIENT = {"thinking", "extra_body", "drop_params"}
"""Options of Anthropic's users for which DSPy sends the request by LiteLLM; of others that is not known."""


def with_cache_marks(lm: dspy.BaseLM, call: LMCall) -> LMCall:
    """Return the call of a turn with marks, if its model needs them and its provider takes them.

    The user's own choice stays, e.g. `dspy.LM(..., prompt_cache=CacheConfig(mode="off"))`.
    """
    provider = lm.model.partition("/")[0]
    if "claude" not in lm.model or getattr(lm, "engine", None) != "auto" or lm.model_type != "chat":
        return call
    options = {**lm.kwargs, **call.options}
    if call.messages is None or _CHOICES & options.keys():
        return call
    takes_marks = provider in ("anthropic", "openrouter") or (provider == "bedrock" and caches_prompts(lm))
    native = select_backend(lm, call.options).native and not _NOT_BY_CLIENT & options.keys()
    if not takes_marks or (native and not options.keys() <= _BY_CLIENT):
        return call
    # DSPy itself sends none to OpenRouter.
    marks = _BY_DSPY if native and provider == "anthropic" else _BY_LITELLM
    return replace(call, options={**call.options, **marks})


def rejects_system_role(error: BaseException, messages: list[Message] | None) -> bool:
    """Whether an error means that the model does not accept the system message in the call."""
    has_one = any(message.get("role") in _SYSTEM for message in messages or ())
    return has_one and bool(_NO_SYSTEM_ROLE.search(str(error)))


def without_system_role(call: LMCall) -> LMCall:
    """Return a call with the text of each system message at the start of the next message, as the user's."""
    if call.messages is None:
        return call
    moved: list[Message] = []
    for given in call.messages:
        message = {**given, "role": "user"} if given.get("role") in _SYSTEM else given
        if moved and moved[-1]["role"] == message["role"] == "user":
            moved[-1] = {**message, "content": _joined(moved[-1]["content"], message["content"])}
        else:
            moved.append(message)
    return replace(call, messages=moved)


def _joined(first: str | list[Any], second: str | list[Any]) -> str | list[Any]:
    """Return the content of two messages as one: text, or a list of parts if one of them is a list."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_parts(first), *_parts(second)]


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
