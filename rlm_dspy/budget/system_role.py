"""Recognizes models without a system role, and moves system messages into user messages."""

from __future__ import annotations

import re
from typing import Any

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


def rejects_system_role(error: BaseException, messages: list[Message] | None) -> bool:
    """Whether an error means that the model does not accept the system message in the call."""
    has_one = any(message.get("role") in _SYSTEM for message in messages or ())
    return has_one and bool(_NO_SYSTEM_ROLE.search(str(error)))


def without_system_role(messages: list[Message]) -> list[Message]:
    """Move the text of each system message to the start of the next message, as the user's."""
    moved: list[Message] = []
    for given in messages:
        message = {**given, "role": "user"} if given.get("role") in _SYSTEM else given
        if moved and moved[-1]["role"] == message["role"] == "user":
            moved[-1] = {**message, "content": _joined(moved[-1]["content"], message["content"])}
        else:
            moved.append(message)
    return moved


def _joined(first: str | list[Any], second: str | list[Any]) -> str | list[Any]:
    """Return the content of two messages as one: text, or a list of parts if one of them is a list."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_parts(first), *_parts(second)]


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
