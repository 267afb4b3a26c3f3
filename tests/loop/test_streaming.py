"""A run whose replies are streamed, by `dspy.streamify`, is the run that it is without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER = "[[ ## answer ## ]]\nfine\n\n[[ ## completed ## ]]"


def look_up(word: str) -> str:
    """Return what another predictor says of a word."""
    return str(dspy.Predict("question -> answer")(question=word).answer)


class Sum(dspy.Module):
    """A module without an async form."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        """Ask twice."""
        self.ask(question=question)
        return self.ask(question=question + "!")


CELLS = {
    "none": ("SUBMIT(out='fine')", 0),
    "one": ("SUBMIT(out=ask('a').strip())", 1),
    "a batch": ("SUBMIT(out=ask.map(['a', 'b', 'c'])[2])", 3),
    "plain queries": ("SUBMIT(out=str(len(llm_query_batched(['a', 'b']))))", 2),
    "ad hoc": ("SUBMIT(out=dspy.Predict('question -> answer')(question='a').answer)", 1),
    "awaited": ("SUBMIT(out=await ask.acall('a'))", 1),
    "a tool": ("SUBMIT(out=look_up('a'))", 0),
    "no async form": ("SUBMIT(out=twice('a'))", 2),
    "a child": ("SUBMIT(out=rlm_query('What is it?', 'abc'))", 1),
}


def streamed(cell: str, interpreter: Callable[[], Any], limits: Limits) -> RLM:
    """Return a module whose code is one cell."""
    return RLM(
        "context -> out: str",
        tools=[look_up],
        subs={"ask": "question -> answer", "twice": Sum()},
        sub_lm=ScriptedLM(lambda _: ANSWER, child=lambda _: block("SUBMIT(response='fine')")),
        limits=limits,
        interpreter_factory=interpreter,
        policy=None,
    )


@pytest.mark.parametrize("limits", [Limits(max_iters=1), Limits(max_iters=1, max_seconds=60)], ids=["", "timed"])
@pytest.mark.parametrize("interpreter", [PythonInterpreter, LocalPythonInterpreter])
@pytest.mark.parametrize("awaited", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("cell", CELLS)
async def test_every_kind_of_call_is_answered(
    cell: str, awaited: bool, interpreter: Callable[[], Any], limits: Limits
) -> None:
    code, calls = CELLS[cell]
    lm = ScriptedLM(lambda _: ANSWER, act=[block(code)])
    program = dspy.streamify(streamed(cell, interpreter, limits), is_async_program=awaited)
    with dspy.context(lm=lm):
        *chunks, prediction = [item async for item in program(context="x")]
    assert prediction.stop == "submitted", prediction.trajectory
    assert prediction.out
    assert prediction.usage["failures"] == 0
    assert prediction.usage["calls"] == 1 + calls
    assert chunks


@pytest.mark.parametrize("awaited", [False, True], ids=["sync", "async"])
async def test_what_sub_calls_write_is_streamed_too(awaited: bool) -> None:
    rlm = streamed("one", PythonInterpreter, Limits(max_iters=1))
    program = dspy.streamify(rlm, is_async_program=awaited)
    with dspy.context(lm=ScriptedLM([block(CELLS["one"][0])])):
        *chunks, _ = [item async for item in program(context="x")]
    replies = [chunk for chunk in chunks if not isinstance(chunk, dspy.streaming.StatusMessage)]
    assert {chunk.predict_id for chunk in replies} == {id(rlm.act), id(rlm.subs.ask)}
