"""Native tool calls, in turns and where the answer is read from the trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from tests.playing import block
from tests.provider_quirks import message_of
from tests.provider_server import PROVIDERS, ProviderServer, Said, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

Called = tuple[str, str]
"""The name of a tool, and its arguments as a model wrote them."""


def run(replies: Sequence[str | Called], max_iters: int) -> dspy.Prediction:
    """Run with a server that gives these replies in order."""

    def write(said: Said, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        reply, said_next = PROVIDERS["vLLM"].write(said, body), replies[len(server.requests) - 1]
        if isinstance(said_next, tuple):
            function = dict(zip(("name", "arguments"), said_next, strict=True))
            call = {"id": "c1", "type": "function", "function": function}
            message_of(reply).update(content=None, tool_calls=[call])
        else:
            message_of(reply)["content"] = said_next
        return 200, reply

    with (
        serving(ProviderServer(lambda _: Said("-"), write)) as server,
        dspy.context(lm=PROVIDERS["vLLM"].lm(server.base)),
    ):
        return RLM("question -> answer", max_iters=max_iters, policy=None)(question="?")


def test_code_in_arguments_with_unescaped_quotes_is_run() -> None:
    step, _ = run((("python", '{"code": "print("it" + "s")"}'), block("SUBMIT(answer='a')")), 2).trajectory
    assert step["output"] == "its"


def test_a_call_that_cannot_be_read_is_kept_and_told() -> None:
    """The reply was not empty, as it would be without its call."""
    step, _ = run((("lookup", '{"word": "a'), block("SUBMIT(answer='a')")), 2).trajectory
    assert step["reasoning"] == 'lookup({"word": "a)'
    assert "Your tool call could not be read" in step["output"]


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (("SUBMIT", '{"answer": "Paris"}'), "Paris"),
        (("python", '{"code": "SUBMIT(answer=\'Paris\')"}'), "Paris"),
        (("python", '{"code": "print(len(question))"}'), None),
    ],
)
def test_a_call_in_place_of_the_outputs_is_read_as_its_code(call: tuple[str, str], answer: str | None) -> None:
    prediction = run((block("1"), call, call), 1)
    assert (prediction.answer, prediction.stop) == (answer, "extracted" if answer else "unanswered")
