"""`TrajectoryFewShot`: which demos it makes of runs, which it takes, and what it keeps on disk."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.compute import Compute
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import TrajectoryFewShot, with_feedback
from rlm_dspy.optimize.demos import Demo, choose, from_run
from rlm_dspy.optimize.traced_runs import TracedRun, traced_runs
from rlm_dspy.signatures import Environment
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.text import cut
from rlm_dspy.trajectory import Step, Trajectory
from tests.optimize.matrix_programs import Two, exact
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ASK = "context, question -> answer"
SIX_TURNS = [
    block("print(len(context))", "Size."),
    block("missing", "Try."),
    block("present = 1", "Mend."),
    block("print('no')", "Wander."),
    block("print('yes')", "Find."),
    block("SUBMIT(answer='yes')", "Answer."),
]


@pytest.fixture(autouse=True)
def code_runs_in_this_process() -> Iterator[None]:
    """Run all code of these tests in this process."""
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def example(answer: str = "yes", context: Any = "c", question: str = "?") -> dspy.Example:
    """Return an example of the task."""
    return dspy.Example(context=context, question=question, answer=answer).with_inputs("context", "question")


def compiled(
    replies: Any, train: list[dspy.Example], program: Any = None, metric: Any = exact, **options: Any
) -> tuple[Any, ScriptedLM]:
    """Compile a program with scripted replies."""
    lm = ScriptedLM(replies)
    with dspy.context(lm=lm):
        return TrajectoryFewShot(metric, **options).compile(program or RLM(ASK), trainset=train), lm


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


def test_a_killed_compile_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was finished is read from disk; what failed is run again."""
    train = [example(question=f"q{n}") for n in range(3)]
    ok = block("SUBMIT(answer='yes')")
    with pytest.raises(KeyboardInterrupt):
        compiled([ok, ok, KeyboardInterrupt()], train, log_dir=tmp_path)
    resumed, lm = compiled([ok], train, log_dir=tmp_path)
    assert len(lm.script.calls) == 1
    assert compiled([], train, log_dir=tmp_path)[1].script.calls == [], "what was resumed is kept too"
    assert resumed.dump_state() == compiled([ok] * 3, train)[0].dump_state()
    assert len(compiled([ok] * 3, train, log_dir=tmp_path, output_chars=100)[1].script.calls) == 3


def other(example: Any, prediction: Any, trace: Any = None) -> bool:
    """A metric of other source than the usual one."""
    return bool(prediction.answer)


def look() -> str:
    """Return a page."""
    return "page"


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (RLM(ASK, tools=[look]), {}),
        (RLM("context, question -> answer: Literal['yes', 'no']"), {}),
        (RLM(ASK, max_iters=3), {}),
        (None, {"metric": other}),
    ],
)
def test_runs_of_another_program_or_metric_are_not_taken_over(
    program: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """Its signature, tools and limits tell it, and the metric's source."""
    ok, train = block("SUBMIT(answer='yes')"), [example()]
    assert len(compiled([ok], train, log_dir=tmp_path)[1].script.calls) == 1
    assert compiled([], train, log_dir=tmp_path)[1].script.calls == []
    assert len(compiled([ok], train, program, log_dir=tmp_path, **options)[1].script.calls) == 1


LEAST: Any = 1


def reads_a_global(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Score by a function that reads a global."""
    return calls_a_reader()


def calls_a_reader() -> bool:
    """Return whether the global is small."""
    return any(most > LEAST for most in (100,))


def at_least(number: Any) -> Any:
    """Return a metric that holds a number."""
    return lambda example, prediction, trace=None: bool(number) and bool(prediction.answer)


def with_default(number: Any) -> Any:
    """Return a metric with a number as default."""

    def metric(example: Any, prediction: Any, trace: Any = None, least: Any = number) -> bool:
        return bool(prediction.answer)

    return metric


def takes_least(least: Any, example: Any, prediction: Any, trace: Any = None) -> bool:
    """Score with an argument that a `partial` binds."""
    return bool(prediction.answer)


class AtLeast:
    """A metric that is an object."""

    def __init__(self, least: Any) -> None:
        self.least = least

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> bool:
        """Score."""
        return bool(prediction.answer)

    score = __call__


METRICS: dict[str, Callable[[Any], Any]] = {
    "partial": lambda value: partial(takes_least, value),
    "function of a partial": lambda value: partial([takes_least, lambda *_: True][value - 1], 1),
    "closure": at_least,
    "closure over a function": lambda value: with_feedback(at_least(value)),
    "default": with_default,
    "object": AtLeast,
    "method": lambda value: AtLeast(value).score,
    "list": lambda value: AtLeast([{"least": {value, "x"}}]),
    "global": lambda value: reads_a_global,
}


@pytest.mark.parametrize("kind", METRICS)
def test_runs_of_a_metric_with_other_values_are_not_taken_over(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound arguments, closures, defaults, attributes and globals tell a metric, and no address does."""
    ok, calls = block("SUBMIT(answer='yes')"), []
    for value in (1, 1, 2):
        monkeypatch.setitem(globals(), "LEAST", value)
        _, lm = compiled([ok], [example()], metric=METRICS[kind](value), log_dir=tmp_path)
        calls.append(len(lm.script.calls))
    assert calls == [1, 0, 1]


def test_runs_of_a_metric_that_cannot_be_identified_are_not_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says so once, with what to do."""
    metric = AtLeast([threading.Lock(), threading.Lock()])
    for _ in range(2):
        caplog.clear()
        _, lm = compiled([block("SUBMIT(answer='yes')")], [example()], metric=metric, log_dir=tmp_path)
        assert len(lm.script.calls) == 1
        (said,) = [record.getMessage() for record in caplog.records if "reused" in record.getMessage()]
        assert "an object of the type _thread.lock" in said
    compiled([block("SUBMIT(answer='yes')")], [example()], metric=metric)
    assert caplog.text.count("reused") == 1


@pytest.mark.parametrize("how", ["settings", "program", "teacher"])
def test_runs_of_another_teacher_are_not_taken_over(how: str, tmp_path: Path) -> None:
    """Wherever its LM was set."""
    for model in ("a/model", "b/model"):
        lm, program, teacher = ScriptedLM([block("SUBMIT(answer='yes')")]), RLM(ASK), RLM(ASK)
        lm.model = model
        options: dict[str, Any] = {"teacher_settings": {"lm": lm}} if how == "settings" else {}
        if how != "settings":
            (program if how == "program" else teacher).set_lm(lm)
        optimizer = TrajectoryFewShot(exact, log_dir=tmp_path, **options)
        with dspy.context(lm=ScriptedLM([])):
            optimizer.compile(program, trainset=[example()], teacher=teacher if how == "teacher" else None)
        assert len(lm.script.calls) == 1


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
        TrajectoryFewShot(other, max_errors=0, num_threads=2).compile(
            RLM(ASK), trainset=[example(question=f"q{n}") for n in range(60)]
        )
    assert len(lm.script.calls) < 30


def step(kind: Any = "output", code: str = "c") -> Step:
    """Return a turn."""
    return Step(code=code, kind=kind, output="o")


@pytest.mark.parametrize(
    ("kinds", "at"),
    [
        ([], None),
        (["output"], None),
        (["error", "output"], 0),
        (["error", "error", "output"], 1),
        (["output", "refused"], 1),
    ],
)
def test_a_run_recovered_where_a_failed_turn_is_followed_by_a_good_one(kinds: list[str], at: int | None) -> None:
    """The last turn, which submitted, is a good one."""
    run = TracedRun(RLM(ASK).act, Environment(text="e"), tuple(step(kind) for kind in kinds), "", "SUBMIT()")
    assert run.recovered_at == at


def call(act: Any, environment: str, codes: list[str], code: str) -> Any:
    """Return a call of `act` as a trace holds it."""
    steps = tuple(step(code=code) for code in codes)
    inputs = {"environment": environment, "trajectory": Trajectory(steps=steps)}
    return act, inputs, dspy.Prediction(reasoning="", code=code)


def test_children_are_runs_of_their_own_inside_their_parents() -> None:
    """Their calls lie between two calls of the parent."""
    act = RLM(ASK).act
    trace = [
        call(act, "root", [], "a"),
        call(act, "child", [], "b"),
        call(act, "child", ["b"], "c"),
        call(act, "root", ["a"], "d"),
        call(act, "root", [], "a"),
    ]
    runs = traced_runs(trace)
    assert [(run.environment.text, run.code, run.nested) for run in runs] == [
        ("root", "d", False),
        ("child", "c", True),
        ("root", "a", False),
    ]


def test_a_turn_without_a_reply_does_not_break_a_run() -> None:
    """DSPy's trace has no entry of it; the next turn was shown it all the same."""
    act = RLM(ASK).act
    (run,) = traced_runs([call(act, "root", [], "a"), call(act, "root", ["a", ""], "b")])
    assert len(run.steps) == 2


def demo(chars: int, score: float = 1.0, **kinds: bool) -> Demo:
    """Return a demo of a length."""
    return Demo(dspy.Example(code=f"{chars} {score} {kinds}"), score, chars, **kinds)


def test_the_best_and_shortest_are_taken_and_one_of_each_kind() -> None:
    """In the order in which they were found."""
    demos = [demo(50), demo(10), demo(20), demo(5, 0.5), demo(60, recovered=True), demo(70, nested=True)]
    assert [d.chars for d in choose(demos, max_demos=3, max_chars=1_000)] == [10, 60, 70]
    assert [d.chars for d in choose(demos, max_demos=4, max_chars=1_000)] == [10, 20, 60, 70]
    assert [d.chars for d in choose(demos, max_demos=4, max_chars=35)] == [10, 20, 5]


def test_what_all_demos_and_the_run_share_is_found_again_though_environments_are_long() -> None:
    """A demo looks like the run that follows; of a cut environment half a paragraph would be left in it."""
    subs = [f"text, with_a_long_name_{n}: list[str] -> with_another_long_name_{n}: list[str]" for n in range(6)]
    rlm = RLM(
        "question -> answer",
        subs={f"sub_{n}": text for n, text in enumerate(subs)},
        interpreter_factory=LocalPythonInterpreter,
    )
    lm = ScriptedLM(lambda _: block("SUBMIT(answer=question)"))
    with dspy.context(lm=lm):
        found = TrajectoryFewShot(lambda *_: 1.0, max_demos=2).compile(
            rlm, trainset=[dspy.Example(question=text).with_inputs("question") for text in "ab"]
        )
        found(question="c")
    system, *rest = lm.script.calls[-1]
    assert "with_another_long_name_5" in system["content"]
    assert [message["content"].split()[0].strip(":") for message in rest if message["role"] == "user"] == [
        "Variables,"
    ] * 3


def test_of_equal_scores_another_way_of_solving_comes_before_the_same_once_more() -> None:
    """Else the kind of task with the shortest solution takes all the places."""
    count = "print(sum('mark' in line for line in context.splitlines()))"
    table = "head, *rows = context.splitlines()\nprint(dict(zip(head.split(), rows[7].split())))"
    codes = [count, count + "  # again", count + "  # and again", table]
    made = [
        Demo(
            dspy.Example(
                environment="e", code="SUBMIT(answer=1)", trajectory={"steps": [{"reasoning": "", "code": code}]}
            ),
            1.0,
            chars,
        )
        for chars, code in enumerate(codes)
    ]
    assert [d.chars for d in choose(made, max_demos=2, max_chars=1_000)] == [0, 3]
    assert [d.chars for d in choose(made, max_demos=3, max_chars=1_000)] == [0, 1, 3]


@given(st.lists(st.builds(demo, st.integers(1, 500), st.floats(0, 1))), st.integers(0, 8), st.integers(0, 2_000))
def test_no_choice_is_larger_than_allowed(demos: list[Demo], most: int, chars: int) -> None:
    """Neither in number nor in characters; and nothing is taken twice."""
    chosen = choose(demos, max_demos=most, max_chars=chars)
    assert len(chosen) <= most
    assert sum(d.chars for d in chosen) <= chars
    assert len({id(d) for d in chosen}) == len(chosen)


@given(st.text(max_size=2_000), st.integers(100, 1_000))
def test_a_cut_text_is_within_its_length(text: str, chars: int) -> None:
    """The note of what was left out is counted; a cut text is not cut again."""
    assert len(cut(text, chars)) <= chars
    assert cut(cut(text, chars), chars) == cut(text, chars)


@given(st.lists(st.sampled_from(["output", "error", "refused", "no_code"]), max_size=12))
def test_a_demo_of_any_run_is_short_and_ends_like_the_run(kinds: list[Any]) -> None:
    """At most four turns before the last."""
    run = TracedRun(
        RLM(ASK).act, Environment(text="e" * 5_000), tuple(step(kind) for kind in kinds), "r", "SUBMIT(answer=1)"
    )
    made = from_run(run, 1.0)
    assert len(made.example.trajectory.steps) <= 4
    assert made.example.code == "SUBMIT(answer=1)"
    assert len(str(made.example.environment)) <= 4_000


def test_a_long_list_of_a_sub_call_is_shown_by_its_first_items() -> None:
    """With its type, so that the demo is one of the same signature."""
    program = RLM("context -> n: int", subs={"count": "pages: list[str], by: dict -> n: int"})
    lm = ScriptedLM(
        [
            block("n = count(pages=['p' * 3000] * 9, by={str(k): 'v' * 900 for k in range(9)})\nSUBMIT(n=n)"),
            fields(n="3"),
        ]
    )
    with dspy.context(lm=lm):
        found = TrajectoryFewShot(lambda *_: True).compile(
            program, trainset=[dspy.Example(context="c").with_inputs("context")]
        )
    (demo,) = found.subs.count.demos
    assert (type(demo.pages), len(demo.pages), type(demo.by), len(demo.by)) == (list, 4, dict, 4)
    assert len(str(demo.pages)) < 1_000


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
