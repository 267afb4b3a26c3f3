"""Demos of a pool: which ones a run shows, that all its turns show the same, and that the option is kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Text
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import TrajectoryFewShot, save_policy, with_policy
from rlm_dspy.optimize.optimizer_catalog import OPTIMIZERS, Job
from rlm_dspy.prompt.nearest_demos import demos_for_run
from rlm_dspy.signatures import Environment
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step, Trajectory
from tests.loop.test_window import run as run_on
from tests.loop.test_window import told as refuses
from tests.optimize.matrix_programs import exact
from tests.optimize.test_finetune import finetuned
from tests.playing import begins, block
from tests.window_server import WindowServer

if TYPE_CHECKING:
    from pathlib import Path

    from rlm_dspy.testing import Messages
    from tests.playing import Play

ASK = "context, question -> answer"
QUESTIONS = [
    "Who founded Ovid in 2019?",
    "How many towns are there?",
    "Who led Brack in 1731?",
    "List the rivers.",
]


def environment(
    question: str, context: str = "short", *, long: bool = False, kind: str = "str", form: str = ""
) -> Environment:
    """Return the first message of a run."""
    variables = [
        {"name": "context", "type": kind, "value": context, "long": long, "form": form},
        {"name": "question", "type": "str", "value": repr(question)},
    ]
    outputs = [{"name": "answer", "type": "str"}]
    task = dspy.Signature(ASK).instructions
    return Environment.model_validate({"task": task, "variables": variables, "outputs": outputs, "turns": 4})


def demo(question: str, code: str = "SUBMIT(answer='a')", turns: int = 0, **of: Any) -> dict[str, Any]:
    """Return a demo of a run, after so many of its turns."""
    steps = tuple(Step(code=f"print({n})", output=str(n)) for n in range(turns))
    shown = {"environment": environment(question, **of), "trajectory": Trajectory(steps=steps)}
    return {**shown, "reasoning": "", "code": code}


POOL = [demo(question) for question in QUESTIONS]


def shown(question: str, count: int, pool: list[Any] = POOL) -> list[int]:
    """Return where in the pool the demos stand that a run shows."""
    act = RLM(ASK, policy=None).act
    act.demos = pool
    found = demos_for_run(act, environment(question), count)
    assert found is not None
    return [next(at for at, each in enumerate(pool) if each is one) for one in found]


def questions_in(messages: Messages) -> list[str]:
    """Return the questions of demos that are in a prompt, in their order."""
    text = "\n".join(message["content"] for message in messages)
    return [question for question in QUESTIONS if question in text]


def with_pool(count: int | None = 2) -> RLM:
    """Return an RLM with four demos, of which a run shows so many."""
    rlm = RLM(ASK, policy=None, demos_per_run=count, max_iters=4)
    rlm.act.demos = POOL
    return rlm


@pytest.mark.parametrize(
    ("question", "first", "second"),
    [("Who founded Lund in 1987?", 0, 2), ("how many rivers are there", 1, 3), ("Who led?", 2, 0)],
)
def test_the_nearest_are_those_that_are_worded_alike(question: str, first: int, second: int) -> None:
    assert shown(question, 1) == [first]
    assert shown(question, 2) == sorted([first, second])


def test_they_are_shown_in_the_order_of_the_pool_so_that_equal_choices_send_equal_messages() -> None:
    assert shown("Who led Ovid?", 2) == shown("Who founded Brack?", 2) == [0, 2]
    assert shown(QUESTIONS[3], 4) == [0, 1, 2, 3]


def test_among_equally_near_demos_the_first_of_the_pool_is_chosen() -> None:
    assert shown("zzz", 2) == [0, 1]


def test_a_second_demo_of_the_same_task_comes_after_all_other_tasks() -> None:
    pool = [*POOL, demo(QUESTIONS[0], "another = 1"), demo(QUESTIONS[0], "a_third = 1")]
    assert shown(QUESTIONS[0], 4, pool) == [0, 1, 2, 3]
    assert shown(QUESTIONS[0], 5, pool) == [0, 1, 2, 3, 4]


MIXED = [demo("How many?", long=True, kind=kind) for kind in ("str", "Table", "Files", "str")]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("str", [0, 3]), ("Table", [1]), ("Files", [2]), ("list[str]", None)],
)
def test_demos_whose_long_inputs_are_of_other_types_are_left_out_if_others_are_not(
    kind: str, expected: list[int] | None
) -> None:
    act = RLM(ASK, policy=None).act
    act.demos = MIXED
    found = demos_for_run(act, environment("How many?", long=True, kind=kind), None)
    assert found == (None if expected is None else [MIXED[at] for at in expected])


def test_texts_of_rows_of_entries_and_others_show_demos_of_their_own_if_there_are_some() -> None:
    of_rows, of_entries = (demo("How many?", long=True, form=form) for form in ("rows", "entries"))
    act = RLM(ASK, policy=None).act
    cases: list[tuple[list[dict[str, Any]], list[tuple[str, list[int]]]]] = [
        ([*MIXED, of_rows, of_entries], [("", [0, 3]), ("rows", [4]), ("entries", [5])]),
        ([*MIXED, of_rows], [("", [0, 3]), ("rows", [4]), ("entries", [0, 3, 4])]),
        (MIXED, [("rows", [0, 3]), ("entries", [0, 3])]),
        ([of_rows, of_entries], [("", [0, 1])]),
    ]
    for demos, runs in cases:
        act.demos = demos
        for form, expected in runs:
            found = demos_for_run(act, environment("How many?", long=True, form=form), 9)
            assert found == [demos[at] for at in expected], (form, len(demos))


def test_a_run_over_a_table_or_a_log_in_a_text_shows_the_demos_of_such_texts(tmp_path: Path) -> None:
    """Whether the text is given as it is, in a file or in a large one."""
    table = "name,age\n" + "\n".join(f"n{number},{number}" for number in range(99))
    path, large = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text(table, encoding="utf-8")
    large.write_text("name,age\n" + f"{'n' * 50},7\n" * 200_000, encoding="utf-8")
    rlm = RLM(ASK, policy=None)
    codes = {form: f"SUBMIT(answer='{form}')" for form in ("rows", "entries", "")}
    rlm.act.demos = [demo("How many?", code, long=True, form=form) for form, code in codes.items()]
    log = "\n".join(f"[{number}:30] {'It rained. ' * (number % 7)}" for number in range(99))
    contexts = [(table, "rows"), (Text.open(path), "rows"), (Text.open(large), "rows"), (log, "entries")]
    contexts += [("It rained. " * 99, "")]
    for context, seen in contexts:
        lm = ScriptedLM([block("SUBMIT(answer=context[:1])")])
        with dspy.context(lm=lm):
            rlm(context=context, question="How many?")
        prompt = "".join(message["content"] for message in lm.script.calls[0])
        assert [code in prompt for code in codes.values()] == [form == seen for form in codes]


def test_a_run_with_small_inputs_shows_demos_of_all_types() -> None:
    act = RLM(ASK, policy=None).act
    act.demos = MIXED
    assert demos_for_run(act, environment("How many?"), None) is None


def test_long_inputs_are_not_compared() -> None:
    pool = [demo("List the rivers.", context="Who founded it? " * 20, long=True), demo("Who founded it?")]
    assert shown("Who founded Lund?", 1, pool) == [1]


def test_turns_of_one_run_count_as_one_demo() -> None:
    """They are shown as one conversation, the longest."""
    turns = [demo(QUESTIONS[0], "SUBMIT()" if n == 2 else f"print({n})", turns=n) for n in range(3)]
    assert shown(QUESTIONS[0], 2, [*turns, *POOL[1:]]) == [2, 4]


def test_labeled_examples_are_counted_for_themselves() -> None:
    labeled = [dspy.Example(context=Text("c" * 999), question=question, answer="a") for question in QUESTIONS]
    assert shown(QUESTIONS[3], 1, [*labeled, *POOL]) == [3, 7]


def test_the_nearest_labeled_examples_are_the_same_after_they_were_saved() -> None:
    """Their long texts are not compared, neither whole nor as they are shown."""
    rlm = RLM(ASK, demos_per_run=1)
    about = [*QUESTIONS[1:], "Which of them?"]
    rlm.act.demos = [
        dspy.Example(context=f"{other} " * 200, question=question, answer="a")
        for question, other in zip(QUESTIONS, about, strict=True)
    ]
    loaded = RLM(ASK)
    loaded.load_state(rlm.dump_state())
    for question in QUESTIONS:
        here = environment(question, long=True)
        (chosen,), (saved,) = (demos_for_run(each.act, here, 1) or [] for each in (rlm, loaded))
        assert chosen["question"] == saved["question"] == question


def test_demos_that_are_known_as_text_only_are_compared_by_their_text() -> None:
    pool = [{**each, "environment": str(each["environment"])} for each in POOL]
    assert shown(QUESTIONS[3], 1, pool) == [3]


def test_every_turn_of_a_run_shows_the_same_demos(play: Play) -> None:
    replies = [block("print(1)"), block("print(2)"), block("SUBMIT(answer='x')")]
    played = play(with_pool(), replies, context="c", question="Who founded Lund?")
    assert [questions_in(messages) for messages in played.calls] == [[QUESTIONS[0], QUESTIONS[2]]] * 3
    for messages, later in zip(played.calls, played.calls[1:], strict=False):
        assert later[: len(messages)] == messages


def test_without_the_option_all_are_shown(play: Play) -> None:
    played = play(with_pool(None), [block("SUBMIT(answer='x')")], context="c", question="?")
    assert questions_in(played.calls[0]) == QUESTIONS


def test_a_child_run_shows_those_of_its_own_task(play: Play) -> None:
    replies = [
        block("answer = rlm_query('How many towns?', 'c' * 10)\nSUBMIT(answer=answer)"),
        block("SUBMIT(response='7')"),
    ]
    rlm = with_pool(1)
    rlm.max_depth = 1
    played = play(rlm, replies, context="c", question="Who founded Lund?")
    assert played.prediction.answer == "7"
    assert [questions_in(messages) for messages in played.calls] == [[QUESTIONS[0]], [QUESTIONS[1]]]


@pytest.mark.parametrize("how", ["state", "program", "policy", "with_policy", "deepcopy", "reset_copy"])
def test_the_option_is_kept(how: str, tmp_path: Path) -> None:
    rlm, plain = with_pool(), RLM(ASK, policy=None)
    if how == "state":
        rlm.save(tmp_path / "s.json")
        plain.load(tmp_path / "s.json")
    elif how == "program":
        rlm.save(tmp_path / "whole", save_program=True)
        plain = dspy.load(str(tmp_path / "whole"), allow_pickle=True)
    elif how in ("policy", "with_policy"):
        save_policy(rlm, tmp_path / "p.json", name="p", model="m")
        plain = (
            RLM(ASK, policy=tmp_path / "p.json") if how == "policy" else with_policy(plain, tmp_path / "p.json")
        )
    else:
        plain = getattr(rlm, how)()
    assert plain.demos_per_run == 2


def test_a_policy_says_how_many_unless_the_call_does(tmp_path: Path) -> None:
    save_policy(with_pool(2), tmp_path / "two.json", name="p", model="m")
    save_policy(with_pool(None), tmp_path / "all.json", name="p", model="m")
    assert RLM(ASK, policy=tmp_path / "two.json", demos_per_run=1).demos_per_run == 1
    assert RLM(ASK, policy=tmp_path / "all.json", demos_per_run=1).demos_per_run == 1
    assert with_policy(with_pool(2), tmp_path / "all.json").demos_per_run is None


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2"])
def test_a_number_that_makes_no_sense_is_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="demos_per_run must be at least 1, or None to show all demos, not"):
        RLM(ASK, demos_per_run=wrong)
    save_policy(with_pool(), tmp_path / "p.json", name="p", model="m")
    content = json.loads((tmp_path / "p.json").read_text())
    content["act"]["demos_per_run"] = -1
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"Invalid policy.*act\.demos_per_run: Input should be greater than 0"):
        RLM(ASK, policy=tmp_path / "p.json")


def solves(messages: Messages) -> str:
    """Answer with the question, at once."""
    return block("SUBMIT(answer=question)")


@pytest.mark.parametrize("optimizer", ["trajectories", "bootstrap"])
def test_optimizers_fill_the_pool(optimizer: str) -> None:
    """With more demos than a run shows, and more characters than a run may show."""
    train = [dspy.Example(context="c", question=q, answer=q).with_inputs("context", "question") for q in QUESTIONS]
    with dspy.context(lm=ScriptedLM(solves), interpreter_factory=LocalPythonInterpreter):
        rlm = RLM(ASK, policy=None, demos_per_run=1)
        if optimizer == "trajectories":
            compiled = TrajectoryFewShot(exact, max_demos=4, max_chars=1_500).compile(rlm, trainset=train)
        else:
            few_shot = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=4, max_labeled_demos=0)
            compiled = few_shot.compile(rlm, trainset=train)
    lm = ScriptedLM(solves)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        compiled(context="c", question="How many lakes are there?")
    assert (len(compiled.act.demos), questions_in(lm.script.calls[0])) == (4, [QUESTIONS[1]])


@pytest.mark.parametrize("optimizer", ["trajectories", "bootstrap"])
@pytest.mark.parametrize(("shown", "kept"), [(1, 6), (None, 4)])
def test_on_the_command_line_a_pool_gets_a_demo_of_each_example(
    optimizer: str, shown: int | None, kept: int
) -> None:
    asked = [*QUESTIONS, "Where is Lund?", "What is a fjord?"]
    train = [dspy.Example(context="c", question=q, answer=q).with_inputs("context", "question") for q in asked]
    lm = ScriptedLM(solves)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        job = Job(RLM(ASK, policy=None, demos_per_run=shown), train, train, exact, lm)
        assert len(OPTIMIZERS[optimizer].compile(job).act.demos) == kept


def test_fine_tuning_teaches_the_messages_that_were_sent() -> None:
    lm, _ = finetuned(with_pool(1))
    (job,) = lm.jobs
    chats = [chat["messages"] for chat in job if any(map(begins, chat["messages"]))]
    assert {len(questions_in(chat[:-1])) for chat in chats} == {1}
    assert all(chat["messages"][:-1] in lm.script.calls for chat in job)


def test_in_a_small_window_the_farthest_demos_are_left_out_first() -> None:
    rlm = with_pool(4)
    rlm.act.demos = [{**each, "reasoning": "r" * 6_500} for each in POOL]
    server = WindowServer(lambda _: block("SUBMIT(answer='found')"), 8_192, refuses)
    assert run_on(rlm, server, context="c", question="Who founded Lund?").answer == "found"
    assert [questions_in(request.messages) for request in server.requests] == [
        QUESTIONS,
        [QUESTIONS[0]],
    ]
    assert any(map(begins, server.requests[-1].messages))
