"""Streamed replies of the embedded model, decoded for real."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import dspy
import pytest
from dspy import lm15

from rlm_dspy import RLM
from rlm_dspy.embedded import engine
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.events import ChunkEvent, Event, Listener
from rlm_dspy.interpreters import LocalPythonInterpreter

pytestmark = pytest.mark.usefixtures("smollm2")


@pytest.fixture(scope="module")
def lm() -> dspy.LM:
    return embedded_lm(max_tokens=16, cache=False)


async def test_a_streaming_program_gets_its_chunks(lm: dspy.LM) -> None:
    class Direct(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=lm(question)[0])

    program = dspy.streamify(Direct(), async_streaming=True)
    *chunks, prediction = [chunk async for chunk in program(question="What is tea?")]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(filter(None, texts)) == prediction.answer
    assert len(texts) > 8  # of 16 tokens


async def awaited(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


def events_of(lm: dspy.LM, how: str, request: lm15.Request) -> list[Any]:
    """Return the events of a streamed reply."""
    if how == "blocking":
        return list(lm.engine.stream(request))
    return asyncio.run(awaited(engine.AsyncEmbeddedEngine(lm.engine.settings).stream(request)))


@pytest.mark.parametrize("options", [{}, {"logprobs": 2}, {"stop": (",",)}], ids=str)
def test_a_streamed_reply_is_the_whole_one_with_its_usage(lm: dspy.LM, how: str, options: dict[str, Any]) -> None:
    config = lm15.Config(max_tokens=12, **options)
    request = lm15.Request(model=lm.model, messages=(lm15.Message.user("Count to ten."),), config=config)
    whole = lm.engine.complete(request)
    start, *deltas, end = events_of(lm, how, request)
    assert (start.model, end.finish_reason) == (lm.model, whole.finish_reason)
    assert "".join(delta.delta.text for delta in deltas) == whole.text
    assert (end.usage.input_tokens, end.usage.output_tokens) == (
        whole.usage.input_tokens,
        whole.usage.output_tokens,
    )


def test_a_streamed_prompt_over_the_window_names_both_numbers(lm: dspy.LM, how: str) -> None:
    request = lm15.Request(model=lm.model, messages=(lm15.Message.user("word " * 9_000),))
    with pytest.raises(lm15.ContextLengthError, match=r"prompt is 9\d{3} tokens.* is 8192"):
        events_of(lm, how, request)


def test_a_stream_that_nobody_reads_on_ends_the_generation(lm: dspy.LM) -> None:
    request = lm15.Request(
        model=lm.model,
        messages=(lm15.Message.user("Write a long story."),),
        config=lm15.Config(max_tokens=4_000, extensions={"ignore_eos": True}),
    )
    for _ in range(6):  # more than there are slots
        events = lm.engine.stream(request)
        next(events)
        events.close()
    assert lm("What is 2+2?", max_tokens=4)


@pytest.mark.long
def test_a_turn_is_heard_while_it_is_written(lm: dspy.LM) -> None:
    """Also without `dspy.streamify`, as on the command line."""

    class Ear(Listener):
        hears_chunks = True

        def __init__(self) -> None:
            self.chunks: list[str] = []

        def on_event(self, event: Event) -> None:
            if isinstance(event, ChunkEvent) and event.text:
                self.chunks.append(event.text)

    ear = Ear()
    with dspy.context(lm=lm.copy(max_tokens=48), callbacks=[ear]):
        RLM("text -> words: int", max_iters=1, policy=None, interpreter_factory=LocalPythonInterpreter)(text="a b")
    assert len(ear.chunks) > 5
