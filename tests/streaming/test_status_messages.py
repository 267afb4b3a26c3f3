"""What status messages of a run say under `dspy.streamify`."""

from __future__ import annotations

import time
from typing import Any

import dspy

from rlm_dspy import Limits
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields
from tests.streaming.speaking import (
    Speaks,
    rlm,
)


class Statuses(dspy.streaming.StatusMessageProvider):
    """Says everything that it is told."""

    def tool_start_status_message(self, instance: Any, inputs: Any) -> str:
        return f"tool {instance.name} {inputs}"

    def tool_end_status_message(self, outputs: Any) -> str:
        return f"tool gave {outputs}"

    def module_start_status_message(self, instance: Any, inputs: Any) -> str:
        return f"module {type(instance).__name__}"

    def lm_start_status_message(self, instance: Any, inputs: Any) -> str:
        return "lm"


def upper(text: str) -> str:
    """Return the text in capitals."""
    return text.upper()


CALLS = ["print(upper(gist('a').strip()))", "SUBMIT(answer='a')"]


async def test_a_status_provider_hears_code_tools_and_sub_calls(speak: Speaks) -> None:
    lm = ScriptedLM([*map(block, CALLS)], subs={"gist": [fields(gist="b")]})
    program = rlm(tools=[upper], subs={"gist": "text -> gist"})
    items = await speak(program, [], lm, status_message_provider=Statuses())
    told = [item.message for item in items if isinstance(item, dspy.streaming.StatusMessage)]
    assert told[told.index("module Turn") :] == [
        *("module Turn", "module Act", "lm"),
        f"tool python {{'code': {CALLS[0]!r}}}",
        *("tool gist {'text': 'a'}", "module Predict", "lm", "tool gave [{'value': 'b'}]"),
        *("tool upper {'text': 'b'}", "tool gave B"),
        "tool gave B",
        *("module Turn", "module Act", "lm"),
        f"tool python {{'code': {CALLS[1]!r}}}",
        "tool gave ",
    ]


async def test_the_default_messages_name_what_is_called(speak: Speaks) -> None:
    lm = ScriptedLM([*map(block, CALLS)], subs={"gist": [fields(gist="b")]})
    items = await speak(rlm(tools=[upper], subs={"gist": "text -> gist"}), [], lm)
    assert [item.message for item in items if isinstance(item, dspy.streaming.StatusMessage)] == [
        "Calling tool python...",
        "Calling tool gist...",
        "Calling tool upper...",
        "Tool calling finished! Querying the LLM with tool calling results...",
        "Calling tool python...",
    ]


async def test_many_status_messages_do_not_block_the_run() -> None:
    """DSPy sends them from callbacks that block the event loop, into a stream that holds 16."""
    code = "SUBMIT(answer=str(len(gist.map([str(n) for n in range(60)]))))"
    lm = ScriptedLM([block(code)], subs={"gist": lambda _: fields(gist="b")})
    program = rlm(subs={"gist": "text -> gist"}, limits=Limits(max_llm_calls=100))
    started = time.monotonic()
    items = await Speaks(awaited=True, sync=False)(program, [], lm, status_message_provider=Statuses())
    assert items[-1].answer == "60"
    assert time.monotonic() - started < 60
