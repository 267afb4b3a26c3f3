"""Calls of a session share a REPL and a conversation, whatever becomes of each."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, InvalidInputs, LimitExceeded, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from pathlib import Path

    from rlm_dspy.sessions import Session

FIND = "hits = context.count('a')\nSUBMIT(answer=hits)"
TWICE = "SUBMIT(answer=2 * hits)"


def rlm(**options: Any) -> RLM:
    return RLM("context, question -> answer: int", **{"interpreter_factory": LocalPythonInterpreter, **options})


def ask(session: Session, how: str = "blocking", **inputs: Any) -> Any:
    return session(**inputs) if how == "blocking" else asyncio.run(session.acall(**inputs))


def last(lm: ScriptedLM) -> str:
    """Return the newest message of the last call of a model."""
    return lm.script.calls[-1][-1]["content"]


def test_a_call_finds_the_variables_of_the_calls_before(how: str) -> None:
    lm = ScriptedLM([block("def twice(n): return 2 * n"), block(FIND), block("SUBMIT(answer=twice(hits))")])
    with dspy.context(lm=lm), rlm().session(context="banana") as session:
        first = ask(session, how, question="How many a?")
        second = ask(session, how, question="And twice that?")
    assert (first.answer, second.answer) == (3, 6)
    assert [len(each.trajectory) for each in (first, second)] == [2, 1]
    assert [each.usage["calls"] for each in (first, second)] == [2, 1]
    assert session.usage.calls == 3
    assert len(session.trajectory) == 3


def test_messages_are_only_appended() -> None:
    """So the provider's prompt cache serves the whole session."""
    lm = ScriptedLM([block(FIND), block("print(hits)"), block(TWICE)])
    with dspy.context(lm=lm), rlm().session(context="banana") as session:
        session(question="How many a?")
        session(question="And twice that?")
    shortest, *_, longest = lm.script.calls
    assert longest[: len(shortest)] == shortest
    assert "'And twice that?'" in lm.script.calls[1][-1]["content"]
    assert "SUBMIT: {'answer': 3}\n\nThe answer was accepted." in lm.script.calls[1][-1]["content"]


def test_inputs_are_bound_anew_for_each_call() -> None:
    codes = ["context = globals = 1", FIND.replace("context", "INPUTS['context']"), "SUBMIT(answer=len(context))"]
    for factory in (LocalPythonInterpreter, PythonInterpreter):
        lm = ScriptedLM([block(code) for code in codes])
        with dspy.context(lm=lm), rlm(interpreter_factory=factory).session(context="banana") as session:
            session(question="How many a?")
            assert session(question="How long?").answer == 6


def test_a_call_may_give_other_inputs() -> None:
    lm = ScriptedLM([block(FIND), block(FIND)])
    with dspy.context(lm=lm), rlm().session(context="banana") as session:
        assert session(question="?").answer == 3
        assert session(question="?", context="aa").answer == 2


@pytest.mark.parametrize("error", [dspy.LMError("down"), KeyboardInterrupt()])
def test_a_call_that_fails_leaves_the_session_usable(error: BaseException, how: str) -> None:
    lm = ScriptedLM([block(FIND), block("more = hits + 1"), error, block("SUBMIT(answer=more)")])
    with dspy.context(lm=lm), rlm().session(context="banana") as session:
        ask(session, how, question="How many a?")
        with pytest.raises(type(error)):
            ask(session, how, question="And one more?")
        assert ask(session, how, question="Again: one more?").answer == 4
    assert "That call ended with an error" in last(lm)
    assert session.usage.calls == 4
    assert [each["answer"] for each in session.history.messages] == [3, 4]


def test_a_call_that_fails_before_its_first_turn_leaves_no_mark() -> None:
    lm = ScriptedLM([block(FIND), dspy.LMError("down"), block(TWICE)])
    with dspy.context(lm=lm), rlm().session(context="banana") as session:
        session(question="How many a?")
        with pytest.raises(dspy.LMError):
            session(question="Twice?")
        with pytest.raises(InvalidInputs, match="missing"):
            session()
        assert session(question="Twice, please?").answer == 6
    assert "The answer was accepted" in last(lm)
    assert "'Twice?'" not in last(lm)


async def test_code_that_is_cancelled_leaves_its_variables() -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin() -> None:
        loop.call_soon_threadsafe(started.set)

    endless = "found = 5\nbegin()\nwhile True: pass"
    lm = ScriptedLM([block(endless), block("SUBMIT(answer=found)")])
    module = rlm(interpreter_factory=PythonInterpreter, tools=[begin])
    with dspy.context(lm=lm):
        async with module.session(context="") as session:
            task = asyncio.create_task(session.acall(question="?"))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await session.acall(question="Again?")).answer == 5


def test_a_worker_that_dies_between_two_calls_is_replaced_and_the_model_is_told() -> None:
    made = []

    def factory() -> PythonInterpreter:
        made.append(PythonInterpreter(checkpoint="off"))
        return made[-1]

    lm = ScriptedLM([block(FIND), block("SUBMIT(answer=len(context))")])
    with dspy.context(lm=lm), rlm(interpreter_factory=factory).session(context="banana") as session:
        session(question="How many a?")
        made[0].shutdown()
        assert session(question="How long?").answer == 6
    assert len(made) == 2
    assert "are lost" in last(lm)


def test_a_worker_that_dies_in_a_call_is_told_of_once() -> None:
    codes = ["import os\nos._exit(1)", "SUBMIT(answer=1)", "SUBMIT(answer=2)"]
    lm = ScriptedLM([block(code) for code in codes])
    factory = lambda: PythonInterpreter(checkpoint="off")  # noqa: E731
    with dspy.context(lm=lm), rlm(interpreter_factory=factory).session(context="") as session:
        assert session(question="?").trajectory[0]["kind"] == "interpreter_lost"
        assert session(question="?").answer == 2
    assert "are lost" not in last(lm)


def test_an_input_that_cannot_be_bound_and_a_crash_leave_the_variables_of_earlier_calls() -> None:
    unreadable = subprocess.TimeoutExpired(cmd="x", timeout=1)  # it does not pickle what it was given by name
    lm = ScriptedLM([block(FIND), block("import os\nos._exit(1)"), block(TWICE)])
    with dspy.context(lm=lm), rlm(interpreter_factory=PythonInterpreter).session(context="banana") as session:
        session(question="How many a?")
        with pytest.raises(dspy.CodeExecutionError, match="cannot be rebuilt"):
            session(question="And now?", context=unreadable)
        prediction = session(question="Twice?")
    assert "to their state before this cell" in prediction.trajectory[0]["output"]
    assert prediction.answer == 6


def test_children_have_repls_of_their_own() -> None:
    lm = ScriptedLM(
        act=[block("secret = 1\nSUBMIT(answer=int(rlm_query('?', 'x')))")],
        child=[block("SUBMIT(response=str(int('secret' in globals())))")],
    )
    with dspy.context(lm=lm), rlm().session(context="") as session:
        assert session(question="?").answer == 0


def test_a_budget_bounds_all_calls_together(tmp_path: Path) -> None:
    lm = ScriptedLM([block(FIND), block(TWICE)])
    path, module = tmp_path / "runs.jsonl", rlm(max_iters=7)
    with dspy.context(lm=lm), RunLog(path):
        with module.session(context="a", budget=Limits(max_output_tokens=400)) as session:
            used = session(question="?").usage["output_tokens"]
            session(question="?")
            session.save(tmp_path / "session.json")
        spent = Limits(max_output_tokens=session.usage.output_tokens)
        again = module.open_session(tmp_path / "session.json", context="a", budget=spent)
        with again, pytest.raises(LimitExceeded, match="max_output_tokens"):
            again(question="?")
    limits = [(run.limits["max_iters"], run.limits["max_output_tokens"]) for run in read_log(path)]
    assert limits == [(7, 400), (7, 400 - used)]


@pytest.mark.parametrize("budget", [Limits(max_iters=3), Limits()])
def test_a_budget_must_bound_all_calls(budget: Limits) -> None:
    with pytest.raises(ValueError, match="budget must be USD or a Limits of"):
        rlm().session(context="", budget=budget)


def test_the_conversation_is_folded_and_then_begins_with_the_newest_call() -> None:
    say = [f"print('word {number} ' * 300)" for number in range(4)]
    replies = [*map(block, [*say[:2], FIND, *say[2:], "SUBMIT(answer=len(history))"])]
    lm = ScriptedLM(act=replies, fold=lambda _: fields(summary="Nothing yet."))
    with dspy.context(lm=lm), rlm(limits=Limits(max_context_tokens=2_000)).session(context="banana") as session:
        session(question="How many a?")
        answer = session(question="How many turns?").answer
    first, *_ = [message for message in lm.script.calls[-1] if message["role"] == "user"]
    assert "How many turns?" in first["content"]
    assert "Summary of the first" in first["content"]
    assert answer >= 3


def test_history_comes_in_and_goes_out() -> None:
    said = dspy.History(messages=[{"question": "Who wrote it?", "answer": 7, "reasoning": "left out"}])
    lm = ScriptedLM([block("SUBMIT(answer=8)")])
    with dspy.context(lm=lm), rlm().session(context="", history=said) as session:
        session(question="And after that?")
    assert "question: Who wrote it?\nanswer: 7" in last(lm)
    assert session.history.messages == [
        {"question": "Who wrote it?", "answer": 7},
        {"question": "And after that?", "answer": 8},
    ]


def test_a_field_for_the_history_is_filled() -> None:
    lm = ScriptedLM([block("SUBMIT(answer=len(history.messages))")] * 3)
    module = RLM("question, history: dspy.History -> answer: int", interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=lm), module.session() as session:
        assert [session(question="?").answer for _ in range(2)] == [0, 1]
        assert session(question="?", history=dspy.History(messages=[])).answer == 0


def test_calls_of_many_threads_come_one_after_the_other() -> None:
    """`dspy.Evaluate` over a session asks in any order, and every question is answered."""
    lm = ScriptedLM(lambda _: block("n = globals().get('n', 0) + 1\nSUBMIT(answer=n)"), seconds=0.01)
    examples = [dspy.Example(question=str(n)).with_inputs("question") for n in range(6)]
    seen = []

    def metric(_: dspy.Example, found: dspy.Prediction, __: object = None) -> float:
        seen.append(found.answer)
        return 1.0

    with dspy.context(lm=lm), rlm().session(context="") as session:
        dspy.Evaluate(devset=examples, metric=metric, num_threads=3)(session)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert lm.script.most_at_once == 1


async def test_awaited_calls_come_one_after_the_other() -> None:
    lm = ScriptedLM(lambda _: block("n = globals().get('n', 0) + 1\nSUBMIT(answer=n)"), seconds=0.01)
    with dspy.context(lm=lm):
        async with rlm().session(context="") as session:
            found = await asyncio.gather(*(session.acall(question=str(n)) for n in range(4)))
    assert sorted(each.answer for each in found) == [1, 2, 3, 4]


async def test_what_would_wait_for_ever_on_an_event_loop_is_refused(tmp_path: Path) -> None:
    lm = ScriptedLM([block("SUBMIT(answer=1)")], seconds=0.05)
    with dspy.context(lm=lm):
        async with rlm().session(context="") as session:
            task = asyncio.create_task(session.acall(question="?"))
            while not lm.script.calls:  # noqa: ASYNC110 (the model has no event)
                await asyncio.sleep(0.001)
            for use in (lambda: session(question="?"), lambda: session.save(tmp_path / "it"), session.close):
                with pytest.raises(RuntimeError, match="A call of this session is running"):
                    use()
    assert (await task).answer == 1


class Dialogue(dspy.Module):
    """Asks twice about one context."""

    def __init__(self) -> None:
        super().__init__()
        self.rlm = rlm()

    def forward(self, context: str) -> dspy.Prediction:
        with self.rlm.session(context=context) as session:
            session(question="How many a?")
            return session(question="Twice that?")


def test_a_program_opens_sessions_in_the_threads_of_evaluate() -> None:
    lm = ScriptedLM(lambda messages: block(TWICE if "Twice that?" in messages[-1]["content"] else FIND))
    examples = [dspy.Example(context="a" * n, answer=2 * n).with_inputs("context") for n in range(1, 5)]
    with dspy.context(lm=lm):
        result = dspy.Evaluate(devset=examples, metric=lambda of, found: of.answer == found.answer, num_threads=4)(
            Dialogue()
        )
    assert result.score == 100
    assert [name for name, _ in Dialogue().named_predictors()] == ["rlm.act", "rlm.query"]


def test_a_run_cannot_call_its_own_session(how: str) -> None:
    sessions: list[Session] = []

    def again() -> str:
        try:
            sessions[0](question="?")
        except RuntimeError as error:
            return str(error)
        return ""

    lm = ScriptedLM([block("SUBMIT(answer=len(again()))")])
    with dspy.context(lm=lm), rlm(tools=[again]).session(context="") as session:
        sessions.append(session)
        assert ask(session, how, question="?").answer == len(
            "A session cannot be called by its own run. Open another: rlm.session(...)."
        )


def test_another_rlm_that_a_tool_runs_is_no_part_of_the_session(tmp_path: Path) -> None:
    other = RLM("question -> answer", interpreter_factory=LocalPythonInterpreter)
    lm = ScriptedLM([block("SUBMIT(answer=len(look()))"), block("SUBMIT(answer=str('hits' in globals()))")])
    module = rlm(tools=[dspy.Tool(lambda: other(question="?").answer, name="look")])
    with dspy.context(lm=lm), RunLog(tmp_path / "log"), module.session(context="") as session:
        assert session(question="?").answer == len("False")
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    begun = [event for event in events if event["event"] == "run_started"]
    assert [event.get("session") for event in begun] == [session.id, None]


def test_a_closed_session_says_so() -> None:
    with rlm().session(context="") as session:
        pass
    with pytest.raises(RuntimeError, match="This session is closed"):
        session(question="?")
    with pytest.raises(RuntimeError, match="This session is closed"):
        session.save("session.json")


def test_an_unknown_input_is_refused_at_once() -> None:
    with pytest.raises(InvalidInputs, match=r"unknown: \['text'\]"):
        rlm().session(text="")


def test_an_answer_that_was_read_from_the_turns_is_told() -> None:
    lm = ScriptedLM(act=[block("n = 4"), block("SUBMIT(answer=n)")], extract=[fields(answer="4")])
    with dspy.context(lm=lm), rlm(max_iters=1).session(context="") as session:
        assert session(question="?").stop == "extracted"
        assert session(question="?").answer == 4
    assert "No SUBMIT; the answer was read from the turns: {'answer': 4}" in last(lm)
    assert "This is the last turn: call SUBMIT now." in last(lm)


def test_a_session_without_a_call_closes() -> None:
    threads = threading.active_count()
    with rlm().session(context=""):
        pass
    assert threading.active_count() <= threads  # an idle one may end
