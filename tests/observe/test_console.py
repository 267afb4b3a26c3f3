"""A terminal shows each line of a reply when it is written, and none twice."""

from __future__ import annotations

import io
import re

import dspy
import pytest
from rich.console import Console

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.observe.console import Reporter, Terminal
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step
from tests.playing import block

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Screen(Terminal):
    """A terminal whose text can be read."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        super().__init__(Console(file=self.file, force_terminal=True, width=100, color_system=None))

    def lines(self) -> list[str]:
        """Return the printed lines, without the live line."""
        text = _CONTROL.sub("", re.sub(r"[^\n]*\r\x1b\[2K", "", self.file.getvalue()))
        return [
            line.strip() for line in text.splitlines() if line.strip() and not re.match(r"^\W* ?turn \d", line)
        ]


def shown(*replies: str) -> list[str]:
    """Return what is shown of a run with these replies."""
    screen = Screen()
    with dspy.context(lm=ScriptedLM(replies), callbacks=[Reporter(screen, 3)]):
        RLM("context -> answer", max_iters=3, policy=None, interpreter_factory=LocalPythonInterpreter)(context="x")
    screen.close()
    return [line for line in screen.lines() if not line.startswith("──") and "tokens in" not in line]


def test_a_streamed_turn_shows_reasoning_code_and_output_once() -> None:
    assert shown(block("a = 'é'\n\nprint(a)", "I look."), block("SUBMIT(answer='b')", "Done.")) == [
        *("I look.", "code a = 'é'", "print(a)", "output é"),
        *("Done.", "code SUBMIT(answer='b')", "SUBMIT SUBMIT: {'answer': 'b'}"),
    ]


def test_a_turn_that_is_interrupted_has_shown_its_last_line() -> None:
    """What runs for ever is often there."""
    screen = Screen()

    def stop() -> None:
        raise KeyboardInterrupt

    rlm = RLM("context -> answer", tools=[stop], policy=None, interpreter_factory=LocalPythonInterpreter)
    lm = ScriptedLM([block("n = 1\nstop()")])
    with dspy.context(lm=lm, callbacks=[Reporter(screen, 3)]), pytest.raises(KeyboardInterrupt):
        rlm(context="x")
    screen.end("interrupted", answered=False)
    assert screen.lines()[1:3] == ["code n = 1", "stop()"]


def test_code_that_had_to_be_repaired_is_shown_as_it_ran() -> None:
    assert shown("```python\n>>> SUBMIT(answer='b')\n```")[:2] == [
        "code >>> SUBMIT(answer='b')",
        "code SUBMIT(answer='b')",
    ]


def test_a_reply_without_code_is_shown_once() -> None:
    told = shown("I do not know.", block("SUBMIT(answer='b')"))
    assert told.count("I do not know.") == 1


@pytest.mark.parametrize("field", ["code", "reasoning", "thinking"])
def test_what_a_model_writes_cannot_control_the_terminal(field: str) -> None:
    screen = Screen()
    screen.busy("turn 1 of 3: the model writes")
    screen.write(1, field, "a\x1b]0;title\x07\u202eb\nc\x1b[2J")
    screen.step(1, Step(code="x", output="y"), "")
    screen.close()
    assert "\x1b]0" not in screen.file.getvalue()
    assert "\x1b[2J" not in screen.file.getvalue()
    assert "\u202e" not in screen.file.getvalue()


def test_thinking_is_shown_in_the_live_line_only() -> None:
    screen = Screen()
    screen.busy("turn 1 of 3: the model thinks")
    screen.write(1, "thinking", "first thought\nsecond thought")
    screen._live.refresh()
    assert "second thought" in screen.file.getvalue()
    screen.write(1, "code", "x = 1")
    screen.step(1, Step(code="x = 1", output="y"), "")
    screen.close()
    assert [line for line in screen.lines() if "thought" in line and "turn" not in line] == []
    assert "code x = 1" in screen.lines()
