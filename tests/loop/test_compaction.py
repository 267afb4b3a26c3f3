"""A conversation that nears the model's window is folded: a summary replaces the older turns."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.budget.metered_lm import role
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Trajectory
from tests.playing import block
from tests.playing import fields as reply_of

if TYPE_CHECKING:
    from rlm_dspy.testing import Messages
    from tests.playing import Play

TURNS = 12
TOO_LONG = dspy.lm15.ContextLengthError("too long")


class Long:
    """A scripted model: prints a lot each turn, then submits what it finds in `history`."""

    def __init__(self) -> None:
        self.turn = 0

    def __call__(self, messages: Messages) -> str:
        if role() != "act":
            return reply_of(summary="Found: the number is 7.")
        self.turn += 1
        if self.turn <= TURNS:
            return block(f"print('line {self.turn} ' * 200)")
        return block("SUBMIT(answer=history[0]['code'] + ' | ' + str(len(history)))")


def test_a_long_conversation_is_folded_once_it_nears_the_window(play: Play) -> None:
    """The run goes on; all of its turns are in `history` and in the trajectory, and so is the summary."""
    played = play(RLM("q -> answer", limits=Limits(max_context_tokens=3_000)), Long(), q="?")
    prediction = played.prediction
    assert prediction.answer.startswith("print('line 1 ' * 200) | ")
    folded = [step for step in prediction.trajectory if step["kind"] == "folded"]
    assert folded
    assert "the number is 7" in folded[0]["output"]
    assert len(prediction.trajectory) == TURNS + 1 + len(folded)
    assert prediction.usage["by_role"]["fold"]["calls"] == len(folded)
    assert max(sum(len(m["content"].split()) for m in call) for call in played.calls_as("act")) < 3_000


def test_between_foldings_messages_only_grow(play: Play) -> None:
    """A provider's cache is lost once a folding, not once a turn."""
    played = play(RLM("q -> answer", limits=Limits(max_context_tokens=3_000)), Long(), q="?")
    acts = played.calls_as("act")
    breaks = sum(after[: len(before)] != before for before, after in itertools.pairwise(acts))
    assert breaks == len(played.calls_as("fold")) > 0
    assert all(a["role"] != b["role"] for call in acts for a, b in itertools.pairwise(call[1:]))


def test_a_window_that_is_not_known_folds_nothing(play: Play) -> None:
    """No call is made that nobody asked for."""
    replies = [*(block(f"print('long {n} ' * 1000)") for n in range(5)), block("SUBMIT(answer='a')")]
    assert play(RLM("q -> answer"), replies, q="?").prediction.usage["by_role"].keys() == {"act"}


def test_an_error_of_the_window_folds_and_goes_on(play: Play) -> None:
    """The turn is taken again with fewer messages."""
    replies = [block("print('seen')"), block("2"), block("3"), TOO_LONG, reply_of(summary="We saw it.")]
    played = play(RLM("q -> answer"), [*replies, block("SUBMIT(answer=history[0]['output'])")], q="?")
    assert (played.prediction.answer, played.prediction.stop) == ("seen", "submitted")
    assert "We saw it." in played.calls[-1][1]["content"]
    assert played.kinds == ["output", "output", "output", "folded", "submitted"]


def test_foldings_are_bounded(play: Play) -> None:
    """If even the shortest form is too long, the answer is read from the trajectory."""
    replies = [block("1"), block("2"), block("3"), *[TOO_LONG, reply_of(summary="a")] * 3, TOO_LONG]
    played = play(RLM("q -> answer"), [*replies, reply_of(answer="read")], q="?")
    assert (played.prediction.answer, played.prediction.stop) == ("read", "extracted")


@pytest.mark.parametrize("failure", ["[" * 5_000, "-" * 20_000 + "1", "no form", dspy.LMServerError("down")])
def test_a_model_that_gives_no_summary_does_not_end_the_run(play: Play, failure: str | Exception) -> None:
    """What the turns printed, shortened, takes its place."""

    class Fails(Long):
        def __call__(self, messages: Messages) -> str:
            if role() == "act":
                return super().__call__(messages)
            if isinstance(failure, Exception):
                raise failure
            return failure

    prediction = play(RLM("q -> answer", limits=Limits(max_context_tokens=3_000)), Fails(), q="?").prediction
    assert prediction.stop == "submitted"
    assert "line 1" in next(step["output"] for step in prediction.trajectory if step["kind"] == "folded")


def test_a_folded_trajectory_is_read_back_from_json(play: Play) -> None:
    """As part of a demo."""
    rlm = RLM("q -> answer", limits=Limits(max_context_tokens=3_000), policy=None)
    trace: list[tuple[dspy.Module, dict[str, Trajectory], dspy.Prediction]] = []
    with dspy.context(trace=trace):
        play(rlm, Long(), q="?")
    given = [inputs["trajectory"] for module, inputs, _ in trace if module is rlm.act]
    folded = [trajectory for trajectory in given if any(step.kind == "folded" for step in trajectory.steps)]
    assert folded
    assert Trajectory.model_validate_json(folded[-1].model_dump_json()) == folded[-1]
    assert {name for name, _ in rlm.named_predictors()} == {"act", "query"}


def test_history_does_not_hide_an_input_of_that_name_and_outlives_the_worker() -> None:
    """It takes another name then; a fresh interpreter has it too."""
    replies = [
        block("1"),
        block("2"),
        block("3"),
        TOO_LONG,
        reply_of(summary="a"),
        block("import os\nos._exit(1)"),
    ]
    last = block("SUBMIT(answer=history + str(len(history_)))")
    rlm = RLM("history -> answer", interpreter_factory=lambda: PythonInterpreter(checkpoint="off"), policy=None)
    with dspy.context(lm=ScriptedLM([*replies, last])):
        assert rlm(history="mine").answer == "mine3"
