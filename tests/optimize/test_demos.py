"""Which turns of a run a demo shows, and which demos are taken."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import TrajectoryFewShot
from rlm_dspy.optimize.demos import Demo, choose, from_run
from rlm_dspy.optimize.traced_runs import TracedRun, traced_runs
from rlm_dspy.signatures import Environment
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.text import cut
from rlm_dspy.trajectory import Step, Trajectory
from tests.optimize.compiling import ASK
from tests.playing import block, fields


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


def test_a_demo_keeps_the_turns_that_bind_what_its_code_uses() -> None:
    """Shown without them, its code teaches names that do not exist."""
    codes = [
        "print(context[:9])",
        "rows = context.split()",
        "print(len(context))",
        "found = rows[:3]\nprint(found)",
    ]
    steps = tuple(Step(reasoning="", code=code, output="o", kind="output") for code in codes)
    run = TracedRun(RLM(ASK).act, Environment(text="e"), steps, "r", "SUBMIT(answer=len(found))")
    kept = from_run(run, 1.0).example.trajectory.steps
    assert [each.code for each in kept] == [codes[0], codes[1], codes[3]]
    assert "1 turns are left out here" in kept[1].notice


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


def test_a_demo_of_a_question_about_a_picture_is_copied_with_its_program() -> None:
    """Optimizers copy programs, and a program is saved whole."""
    picture = dspy.Image("data:image/png;base64,AAAA")
    lm = ScriptedLM(act=[block("SUBMIT(answer=llm_query(['Who?', picture]))")], query=["a cat"])
    with dspy.context(lm=lm):
        found = TrajectoryFewShot(lambda *_: True).compile(
            RLM("picture: dspy.Image -> answer"),
            trainset=[dspy.Example(picture=picture).with_inputs("picture")],
        )
    prompt = found.query.demos[0].prompt
    for copied in (copy.deepcopy(found.query.demos[0]).prompt, pickle.loads(pickle.dumps(prompt))):
        assert (copied, copied.content()) == (prompt, prompt.content())
