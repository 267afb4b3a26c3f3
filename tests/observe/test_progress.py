"""`Progress` shows runs: as lines, numbered in threads, and in one display of a notebook."""

from __future__ import annotations

import io
from typing import Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.events import PauseEvent
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.observe.console import Lines, Reporter
from rlm_dspy.observe.progress import Pauses, Progress
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields


def lines(lm: ScriptedLM, run: Any) -> list[str]:
    file = io.StringIO()
    with dspy.context(lm=lm, callbacks=[Progress(file)]):
        run()
    return [line.partition(" (")[0] for line in file.getvalue().splitlines()]


def rlm(**options: Any) -> RLM:
    return RLM("context -> answer", policy=None, interpreter_factory=LocalPythonInterpreter, **options)


def test_a_run_is_a_line_for_each_turn_and_one_for_its_end() -> None:
    lm = ScriptedLM([block("print(1)"), block("1/0"), block("SUBMIT(answer='a')")])
    assert lines(lm, lambda: rlm(max_iters=5)(context="x")) == [
        "RLM 1: turn 1 of 5: output",
        "RLM 1: turn 2 of 5: error",
        "RLM 1: turn 3 of 5: SUBMIT",
        "RLM 1: submitted",
    ]


def test_sub_calls_and_the_turns_of_children_are_counted() -> None:
    file = io.StringIO()
    lm = ScriptedLM(
        act=[block("a = llm_query_batched(['1', '2'])\nb = rlm_query('3')\nSUBMIT(answer='a')")],
        child=[block("SUBMIT(response='c')")],
        query=["1", "2"],
    )
    with dspy.context(lm=lm, callbacks=[Progress(file)]):
        rlm(limits=Limits(max_depth=1))(context="x")
    first, last = file.getvalue().splitlines()
    assert first.endswith(", 4 sub-calls)")  # two questions, the child, and its turn
    assert last.startswith("RLM 1: submitted")


def test_a_run_in_a_tool_is_shown_by_the_progress_of_its_scope() -> None:
    file, heard = io.StringIO(), io.StringIO()
    lm = ScriptedLM([block("print(ask())"), block("SUBMIT(answer='inner')"), block("SUBMIT(answer='outer')")])

    def ask() -> str:
        """Ask another RLM."""
        with dspy.context(callbacks=[Progress(file)]):
            return str(rlm()(context="y").answer)

    with dspy.context(lm=lm, callbacks=[Progress(heard)]):
        assert rlm(tools=[ask])(context="x").answer == "outer"
    told = [line.partition(" (")[0] for line in file.getvalue().splitlines()]
    assert told == ["RLM 1: turn 1 of 20: SUBMIT", "RLM 1: submitted"]


def test_runs_of_a_batch_are_numbered() -> None:
    lm = ScriptedLM(lambda _: block("SUBMIT(answer='a')"))
    examples = [dspy.Example(context=str(n)).with_inputs("context") for n in range(4)]
    told = lines(lm, lambda: rlm().batch(examples, num_threads=4, disable_progress_bar=True))
    assert sorted(line for line in told if "submitted" in line) == [f"RLM {n}: submitted" for n in range(1, 5)]
    assert len(told) == 8


def test_a_run_that_fails_says_why_without_secrets() -> None:
    lm = ScriptedLM([dspy.LMServerError("down: Bearer abcdefghijkl")])

    def run() -> None:
        with pytest.raises(dspy.LMError):
            rlm()(context="x")

    assert lines(lm, run) == ["RLM 1: failed: LMServerError: down: Bearer ***"]


def test_an_interrupted_run_says_so() -> None:
    def reply(_: object) -> str:
        raise KeyboardInterrupt

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            rlm()(context="x")

    assert lines(ScriptedLM(reply), run) == ["RLM 1: interrupted"]


def test_an_answer_read_from_the_trajectory_is_an_end_too() -> None:
    lm = ScriptedLM([block("print(1)")], extract=[fields(answer="a")])
    assert lines(lm, lambda: rlm(max_iters=1)(context="x"))[-1] == "RLM 1: extracted"


def test_a_pause_before_a_model_call_is_repeated_is_shown_with_its_reason_but_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A provider may ask for a minute, in which nothing else is shown; in lines and in the lines of `ask`."""
    monkeypatch.setattr("rlm_dspy.budget.metered_lm.pause", lambda _: None)
    key = "sk-abcdefghijklmnopqrstuvwxyz123456"
    script = ScriptedLM([dspy.LMRateLimitError(f"{key} is slow", retry_after=7), block("SUBMIT(answer='a')")])
    lm = dspy.LM("scripted/m", engine=script.script, num_retries=2, cache=False)
    progress, asked = io.StringIO(), io.StringIO()
    with dspy.context(lm=lm, callbacks=[Progress(progress), Reporter(Lines(asked), 20)]):
        rlm()(context="x")
    waits = "a model call is repeated in 7.0 s, after *** is slow"
    assert progress.getvalue().splitlines()[0] == f"RLM 1: turn 1 of 20: {waits}"
    assert asked.getvalue().splitlines()[1] == f"--- {waits}"


@pytest.mark.parametrize(("later", "shown"), [(1, 1), (8, 2)])
def test_pauses_at_the_same_time_are_shown_once(later: float, shown: int) -> None:
    """As of a thousand sub-calls at once."""
    error, pauses = dspy.LMRateLimitError("slow"), Pauses()
    events = [PauseEvent(lm=ScriptedLM([]), pause=7, after=error, seconds=at) for at in (5.0, 5.0 + later)]
    assert sum(map(pauses.is_new, events)) == shown
