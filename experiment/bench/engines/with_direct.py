"""No RLM: one call with the whole input in the prompt."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import openai
from sharing import made_once

if TYPE_CHECKING:
    from worker import Task

VERSION = f"openai {version('openai')}"
NOTES = "the input, then the question, in one message"


def run(task: Task) -> str | None:
    """Ask once."""
    client = _client(openai.OpenAI, task.base_url, task.api_key)
    return answer_of(client.chat.completions.create(model=task.model, messages=messages_of(task)))


async def arun(task: Task) -> str | None:
    """Ask once on the running event loop."""
    client = _client(openai.AsyncOpenAI, task.base_url, task.api_key)
    return answer_of(await client.chat.completions.create(model=task.model, messages=messages_of(task)))


@made_once
def _client(kind: Any, base_url: str, api_key: str) -> Any:
    """Return one client for all runs at the same address."""
    return kind(base_url=base_url, api_key=api_key)


def messages_of(task: Task) -> list[openai.types.chat.ChatCompletionMessageParam]:
    """Return the one message."""
    text = f"{task.context}\n\n{task.question}"
    return [{"role": "user", "content": text}]


def answer_of(completion: openai.types.chat.ChatCompletion) -> str | None:
    """Return the text of a completion."""
    return completion.choices[0].message.content
