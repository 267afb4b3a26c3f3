"""Reads the stream of a program in each way that there is."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter

Response = dspy.streaming.StreamResponse
LOOK = "I look at it.\n```python\nprint(len(context))\nwords = context.split()\n```\nThen I count."
SUBMIT = "That is it.\n```python\nSUBMIT(answer=str(len(words)))\n```"
LOOK_CODE, SUBMIT_CODE = "print(len(context))\nwords = context.split()", "SUBMIT(answer=str(len(words)))"


def rlm(signature: str = "context -> answer", **options: Any) -> RLM:
    return RLM(
        signature, **{"policy": None, "max_iters": 3, "interpreter_factory": LocalPythonInterpreter, **options}
    )


class Program(dspy.Module):
    """A user's program around an RLM."""

    def __init__(self) -> None:
        super().__init__()
        self.rlm = rlm()
        self.short = dspy.Predict("text -> gist")

    def forward(self, context: str) -> Any:
        return self.rlm(context=context)

    async def aforward(self, context: str) -> Any:
        return await self.rlm.acall(context=context)


class Speaks:
    """One way to read the stream: as an async or a sync generator, of a program that is awaited or not."""

    def __init__(self, *, awaited: bool, sync: bool) -> None:
        self.awaited, self.sync = awaited, sync

    async def __call__(self, program: Any, listeners: list[Any], lm: Any, **options: Any) -> list[Any]:
        streamed = dspy.streamify(
            program,
            stream_listeners=listeners,
            is_async_program=self.awaited,
            async_streaming=not self.sync,
            **options,
        )

        def read() -> list[Any]:
            return list(streamed(context="a b c"))

        with dspy.context(lm=lm):
            if self.sync:
                return await asyncio.to_thread(read)
            return [item async for item in streamed(context="a b c")]


def listen(name: str, **options: Any) -> Any:
    return dspy.streaming.StreamListener(name, **options)


def replies(items: list[Any], name: str, predict_name: str | None = None) -> list[str]:
    """Return what a field says: one text for each of its replies."""
    texts, text = [], ""
    for item in items:
        if isinstance(item, Response) and item.signature_field_name == name:
            if predict_name not in (None, item.predict_name):
                continue
            text += item.chunk
            if item.is_last_chunk:
                texts.append(text)
                text = ""
    assert text == "", "a reply has no last chunk"
    return texts
