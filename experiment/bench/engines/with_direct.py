"""No RLM: one call with the whole input in the prompt."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import openai

if TYPE_CHECKING:
    from worker import Task

VERSION = f"openai {version('openai')}"
NOTES = "the input, then the question, in one message"


def run(task: Task) -> str | None:
    """Ask once."""
    client = openai.OpenAI(base_url=task.base_url, api_key=task.api_key)
    return answer_of(client.chat.completions.create(model=task.model, messages=messages_of(task)))


async def arun(task: Task) -> str | None:
    """Ask once on the running event loop."""
    async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:
        return answer_of(await client.chat.completions.create(model=task.model, messages=messages_of(task)))


def messages_of(task: Task) -> list[openai.types.chat.ChatCompletionMessageParam]:
    """Return the one message."""
    text = f"{task.context}\n\n{task.question}\nGive the answer alone, in as few words as it takes."
    return [{"role": "user", "content": text}]


def answer_of(completion: openai.types.chat.ChatCompletion) -> str | None:
    """Return the text of a completion."""
    return completion.choices[0].message.content
