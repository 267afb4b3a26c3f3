"""`TrajectoryFewShot`: which demos it makes of runs, which it takes, and what it keeps on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.compute import Compute
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import TrajectoryFewShot
from rlm_dspy.testing import ScriptedLM
from tests.optimize.compiling import ASK, SIX_TURNS, compiled, example
from tests.optimize.matrix_programs import Two, exact
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def code_runs_in_this_process() -> Iterator[None]:
    """Run all code of these tests in this process."""
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def test_a_demo_holds_the_first_turn_the_mended_one_and_the_last_two() -> None:
    """What was wandered through is left out, and the demo says so."""
    program, _ = compiled(SIX_TURNS, [example()])
    (demo,) = program.act.demos
    assert [step.code for step in demo.trajectory.steps] == [
        "print(len(context))",
        "missing",
        "present = 1",
        "print('yes')",
    ]
    assert demo.trajectory.steps[2].notice == "(1 turns are left out here.)"
    assert demo.code == "SUBMIT(answer='yes')"


def test_a_run_whose_answer_was_read_from_its_turns_shows_how_to_end() -> None:
    """Its last turn did not; inside another program nobody knows what it should have submitted."""
    replies = [block("x = 'yes'"), block("print(x)"), fields(answer="yes")]
    program, _ = compiled(replies, [example()], RLM(ASK, max_iters=2))
    (demo,) = program.act.demos
    assert [(step.code, step.output) for step in demo.trajectory.steps][-1] == ("print(x)", "yes")
    assert demo.code == "SUBMIT(answer='yes')"

    class Around(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rlm = RLM(ASK, max_iters=2)

        def forward(self, context: str, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=self.rlm(context=context, question=question).answer)

    program, _ = compiled(replies, [example()], Around())
    assert program.rlm.act.demos == []


def test_a_program_may_return_what_it_likes() -> None:
    class Plain(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rlm = RLM(ASK, max_iters=1)

        def forward(self, context: str, question: str) -> str:
            return str(self.rlm(context=context, question=question).answer)

    def said(example: dspy.Example, answer: str, trace: Any = None) -> bool:
        return bool(example.answer == answer)

    program, _ = compiled([block("x = 1"), fields(answer="yes")], [example()], Plain(), said)
    assert program.rlm.act.demos == []


def test_the_demos_are_in_the_prompt_as_conversations() -> None:
    """The model sees each as its turns, then its own run."""
    program, _ = compiled(SIX_TURNS, [example()])
    lm = ScriptedLM([block("SUBMIT(answer='x')")])
    with dspy.context(lm=lm):
        program(context="c", question="now")
    contents = [message["content"] for message in lm.script.calls[0]]
    assert contents[-2] == block("SUBMIT(answer='yes')", "Answer.")
    assert "'now'" in contents[-1]
    assert len(contents) == 1 + 1 + 2 * 4 + 1 + 1


def test_a_run_that_scored_too_little_gives_no_demo() -> None:
    """By default any score above 0 is enough; a threshold asks for more."""
    wrong = [block("SUBMIT(answer='no')")]
    assert compiled(wrong, [example()])[0].act.demos == []
    half = TrajectoryFewShot(lambda *_: 0.5, metric_threshold=0.6)
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer='yes')")])):
        assert half.compile(RLM(ASK), trainset=[example()]).act.demos == []


def test_a_predictor_without_new_demos_keeps_those_it_had() -> None:
    """A policy is not lost because a teacher failed."""
    rlm = RLM(ASK)
    rlm.act.demos = kept = [dspy.Example(reasoning="Kept.", code="x = 1")]
    assert compiled([block("SUBMIT(answer='no')")], [example()], rlm)[0].act.demos == kept


def test_a_compile_without_a_demo_warns_with_what_gives_one(caplog: pytest.LogCaptureFixture) -> None:
    compiled(SIX_TURNS, [example()], max_demo_chars=10, metric_threshold=0.5)
    assert "none of 1 example gave a demo" in caplog.text
    assert "its score is 0.5 or more, of turns of at most 10 characters (max_demo_chars)" in caplog.text


def test_a_compile_without_a_demo_says_if_plain_calls_may_have_answered(caplog: pytest.LogCaptureFixture) -> None:
    """They have no turns, and do not read what `act` learned."""
    compiled([fields(answer="yes")], [example()], RLM(ASK, compute=Compute(direct_below=100)))
    assert caplog.messages[0].endswith("no turns: compile without Compute(direct_below=...).")


def test_the_student_is_not_changed() -> None:
    """What is returned is another object."""
    rlm = RLM(ASK)
    program, _ = compiled([block("SUBMIT(answer='yes')")], [example()], rlm)
    assert program is not rlm
    assert rlm.act.demos == []


def test_sub_calls_give_ordinary_demos_with_cut_inputs() -> None:
    """Of `query`: the prompt it was sent and what it answered."""
    replies = [block("SUBMIT(answer=llm_query('p' * 5_000))"), "yes"]
    (demo,) = compiled(replies, [example()])[0].query.demos
    assert demo.response == "yes"
    assert len(demo.prompt) <= 400


def test_no_context_is_kept() -> None:
    """Ten megabytes, as `str` and as `Text`, printed and sent to a sub-call."""
    for context in ("x" * 10_000_000, Text("x" * 10_000_000)):
        replies = [block("print(context)\nllm_query(context)"), "r", block("SUBMIT(answer='yes')")]
        program, _ = compiled(replies, [example(context=context)])
        assert len(json.dumps(program.dump_state())) < 6_000


def test_an_lm_may_be_the_teacher() -> None:
    """The student runs with it while demos are made, and keeps no trace of it."""
    teacher, student = ScriptedLM([block("SUBMIT(answer='yes')")]), ScriptedLM([])
    with dspy.context(lm=student):
        program = TrajectoryFewShot(exact).compile(RLM(ASK), trainset=[example()], teacher=teacher)
    assert len(program.act.demos) == 1
    assert program.get_lm() is None


def test_a_program_may_be_the_teacher() -> None:
    """Its predictors have the student's names; its instructions may be others."""
    teacher = RLM(ASK, limits=Limits(max_iters=2))
    teacher.act.signature = teacher.act.signature.with_instructions("Teach.")
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer='yes')")])):
        program = TrajectoryFewShot(exact).compile(RLM(ASK), trainset=[example()], teacher=teacher)
        with pytest.raises(ValueError, match=r"differ: .*'find\.act'"):
            TrajectoryFewShot(exact).compile(RLM(ASK), trainset=[example()], teacher=Two())
    assert len(program.act.demos) == 1
    assert program.act.signature.instructions != "Teach."


def test_two_rlms_get_their_own_demos() -> None:
    """By name, also where their signatures are alike."""
    answer = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"
    replies = [block("SUBMIT(fact='f')"), block("SUBMIT(answer='y')"), answer]
    program, _ = compiled(replies, [example()], Two())
    assert [demo.code for demo in program.find.act.demos] == ["SUBMIT(fact='f')"]
    assert [demo.code for demo in program.read.act.demos] == ["SUBMIT(answer='y')"]
    assert program.polish.demos[0].draft == "y"


class Asks(dspy.Module):
    """A `dspy.ReAct` that has an RLM as a tool."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = RLM("question -> answer", policy=None)
        self.agent = dspy.ReAct("question -> answer", tools=[self.read])

    def read(self, question: str) -> str:
        """Read."""
        return str(self.reader(question=question).answer)

    def forward(self, question: str) -> dspy.Prediction:
        """Let the agent answer."""
        return self.agent(question=question)


@pytest.mark.parametrize("make", [lambda: dspy.ReAct("question -> answer", tools=[]), Asks], ids=["alone", "RLM"])
def test_a_react_agent_gets_demos_whose_trajectory_is_its_own(make: Any) -> None:
    """Only a demo of `act` has turns of Python in its field `trajectory`."""

    def reply(messages: list[dict[str, Any]]) -> str:
        if not (asked := messages[-1]["content"]).startswith("[["):
            return block("SUBMIT(answer='2')")
        if "next_thought" not in asked:
            return fields(reasoning="r", answer="2")
        name = "finish" if "observation_0" in asked or "read" not in messages[0]["content"] else "read"
        arguments = '{"question": "?"}' if name == "read" else "{}"
        return fields(next_thought="t", next_tool_name=name, next_tool_args=arguments)

    train = [dspy.Example(question=f"q{n}", answer="2").with_inputs("question") for n in range(2)]
    program, _ = compiled(reply, train, make(), lambda *_: True)
    assert all(predictor.demos for name, predictor in program.named_predictors() if "query" not in name)


def test_an_example_that_fails_is_left_out_and_too_many_are_raised() -> None:
    """As many as `max_errors` may fail."""
    replies = [dspy.LMError("down"), block("SUBMIT(answer='yes')")]
    assert len(compiled(replies, [example(), example()])[0].act.demos) == 1
    with pytest.raises(dspy.LMError):
        compiled([dspy.LMError("down")], [example()], max_errors=0)


def test_an_empty_trainset_is_refused() -> None:
    """Nothing could be learned."""
    with pytest.raises(ValueError, match="empty"):
        compiled([], [])


def test_the_same_seed_gives_the_same_demos_whatever_the_threads() -> None:
    """The order of the examples decides between equals, not which run ended first."""
    train = [example(question=f"q{n}") for n in range(6)]
    states = [
        compiled(lambda _: block("SUBMIT(answer='yes')"), train, max_demos=2, num_threads=threads, seed=seed)[0]
        for threads, seed in [(1, 1), (3, 1), (1, 3)]
    ]
    one, threaded, other = ([demo.environment for demo in state.act.demos] for state in states)
    assert one == threaded
    assert one != other


def test_a_trainset_may_be_read_once() -> None:
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer='yes')")])):
        program = TrajectoryFewShot(exact).compile(RLM(ASK), trainset=(each for each in [example()]))
    assert len(program.act.demos) == 1


@pytest.mark.parametrize("name", ["max_runs", "num_threads"])
def test_a_number_below_one_is_refused(name: str) -> None:
    number: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        TrajectoryFewShot(exact, **number).compile(RLM(ASK), trainset=[example()])


def test_an_error_begins_no_more_runs_in_any_thread() -> None:
    """Each of them is paid for."""
    lm = ScriptedLM(lambda _: dspy.LMError("down"), seconds=0.01)
    with dspy.context(lm=lm), pytest.raises(dspy.LMError):
        TrajectoryFewShot(exact, max_errors=0, num_threads=2).compile(
            RLM(ASK), trainset=[example(question=f"q{n}") for n in range(60)]
        )
    assert len(lm.script.calls) < 30


def test_a_log_dir_that_cannot_be_made_is_told_before_anything_is_paid(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    lm = ScriptedLM([])
    with dspy.context(lm=lm), pytest.raises(OSError, match="file"):
        TrajectoryFewShot(lambda *_: 1.0, log_dir=tmp_path / "file" / "log").compile(
            RLM("q -> a"), trainset=[dspy.Example(q="?", a="!").with_inputs("q")]
        )
    assert lm.script.calls == []


@pytest.mark.parametrize("metric", ["exact", None, lambda example, prediction: 1.0])
def test_a_metric_that_cannot_take_three_arguments_is_refused_before_a_run(metric: Any) -> None:
    with pytest.raises(TypeError, match=r"it must be a function metric\(example, prediction, trace\)"):
        compiled([], [example()], metric=metric)


def test_examples_without_inputs_are_refused_before_a_run() -> None:
    with pytest.raises(ValueError, match=r"An example has no inputs set; set them with example.with_inputs"):
        compiled([], [example(), dspy.Example(context="c", question="?", answer="yes")])


def test_the_error_of_every_example_is_raised_and_no_teacher_is_blamed(caplog: pytest.LogCaptureFixture) -> None:
    def metric(example: dspy.Example, prediction: Any, trace: Any) -> float:
        return float(example.missing == prediction.answer)

    with pytest.raises(AttributeError, match="missing"):
        compiled([block("SUBMIT(answer='yes')")] * 2, [example(), example("no")], metric=metric)
    assert "teacher" not in caplog.text


def test_a_program_without_predictors_is_refused() -> None:
    """Such as one that makes its RLM in `forward`."""
    with pytest.raises(ValueError, match="has no predictors, so none can get demos; make its RLM an attribute"):
        compiled([], [example()], dspy.Module())


def test_a_program_whose_predictors_are_frozen_is_told_how_to_thaw_them() -> None:
    """DSPy freezes a compiled module inside another one."""
    ok = [block("SUBMIT(answer='yes')")]
    outer = dspy.Module()
    outer.inner, _ = compiled(ok, [example()])
    outer.inner._compiled = True
    outer.forward = outer.inner.forward
    with pytest.raises(ValueError, match=r"are frozen.* first: program\.inner\._compiled = False\.$"):
        compiled([], [example()], outer)
    outer.inner._compiled = False
    assert compiled(ok, [example()], outer)[0].inner.act.demos
