"""Hooks review the code, the tool calls and the answers of a run and of its children."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.approval import HookFailed, Pause, RunInstead, ToolRefused
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.testing import ScriptedLM
from tests.approval.passing_time import clock_put_forward
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_dspy.testing import Reply

FACTORIES = [LocalPythonInterpreter, PythonInterpreter]


def run(rlm: RLM, replies: list[Reply], **inputs: Any) -> Any:
    """Run with scripted replies and code in this process."""
    if rlm.interpreter_factory is None:
        rlm.interpreter_factory = LocalPythonInterpreter
    with dspy.context(lm=ScriptedLM(replies)):
        return rlm(**inputs or {"question": "?"})


def arun(rlm: RLM, replies: list[Reply]) -> Any:
    """Do the same on an event loop."""

    async def awaited() -> Any:
        return await rlm.acall(question="?")

    rlm.interpreter_factory = LocalPythonInterpreter
    with dspy.context(lm=ScriptedLM(replies)):
        return asyncio.run(awaited())


def awaited_form(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return an async hook that decides like another one."""

    async def decide(*asked: Any) -> Any:
        await asyncio.sleep(0)
        return hook(*asked)

    return decide


FORMS: list[Any] = [lambda hook: hook, awaited_form]
WAYS: list[Any] = [run, arun]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_refused_code_is_not_run_and_costs_a_turn(form: Any, way: Any) -> None:
    """The model reads why."""
    seen: list[str] = []

    def on_code(code: str) -> str | None:
        seen.append(code)
        return "No loops, please." if "for" in code else None

    rlm = RLM("question -> answer", on_code=form(on_code))
    lm_replies: list[Reply] = [
        block("for i in range(3): found = i"),
        block("SUBMIT(answer=str('found' in globals()))"),
    ]
    prediction = way(rlm, lm_replies)
    assert (prediction.answer, len(seen)) == ("False", 2)
    first = prediction.trajectory[0]
    assert (first["kind"], first["refusals"]) == ("denied", ("No loops, please.",))
    assert first["output"] == "Your code was refused and was not run: No loops, please."
    assert first["code"] == "for i in range(3): found = i"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_other_code_runs_instead(form: Any, way: Any) -> None:
    """The trajectory has what ran as the code, and what the model wrote beside it."""

    def on_code(code: str) -> RunInstead | None:
        return RunInstead("print(2)") if "print(1)" in code else None

    rlm = RLM("question -> answer", on_code=form(on_code))
    step = way(rlm, [block("print(1)"), block("SUBMIT(answer='x')")]).trajectory[0]
    assert (step["code"], step["proposed"]) == ("print(2)", "print(1)")
    assert step["output"] == "(Your code was replaced before it ran: what ran is above.)\n2"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_a_refused_answer_costs_a_turn(form: Any, way: Any) -> None:
    """The hook gets the typed fields; the model reads the complaint."""
    rlm = RLM(
        "question -> n: int",
        on_submit=form(lambda answer: "Too small." if answer["n"] < 3 else None),
    )
    prediction = way(rlm, [block("print('so')\nSUBMIT(n='2')"), block("SUBMIT(n=3)")])
    step = prediction.trajectory[0]
    assert (prediction.n, prediction.stop) == (3, "submitted")
    assert (step["kind"], step["refusals"], step["printed"]) == ("refused", ("Too small.",), "so")
    assert step["output"] == "so\nSUBMIT was refused:\n- Too small.\nFix this and call SUBMIT(n=...) again."


def test_an_answer_that_was_read_from_the_trajectory_is_reviewed_too() -> None:
    """Nothing can be corrected then: the run has no answer."""
    rlm = RLM("question -> n: int", max_iters=1, on_submit=lambda answer: "Too small.")
    prediction = run(rlm, [block("SUBMIT(n=2)"), fields(n="2")])
    assert (prediction.n, prediction.stop) == (None, "unanswered")
    assert prediction.final_reasoning.endswith("was refused: Too small.")


def send(to: str, text: str = "Hello", *more: str) -> str:
    """Send a mail."""
    return f"sent {text} to {to}"


async def fetch(page: str) -> str:
    """Fetch a page."""
    return f"content of {page}"


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("form", FORMS)
def test_a_refused_tool_call_raises_in_code(form: Any, factory: Any) -> None:
    """The tool is not called. The trajectory has the reason; arguments are named."""
    asked: list[Any] = []
    called: list[str] = []

    def note(to: str, text: str = "Hello") -> str:
        called.append(to)
        return text

    def on_tool(name: str, arguments: dict[str, Any]) -> str | None:
        asked.append((name, arguments))
        return "Not to Bob." if arguments.get("to") == "Bob" else None

    code = """
print(note("Ann", text="Hi"), fetch("a"))
try:
    note("Bob")
except Exception as error:
    print(type(error).__name__, error)
"""
    rlm = RLM("question -> answer", tools=[note, fetch], on_tool=form(on_tool), interpreter_factory=factory)
    step = run(rlm, [block(code), block("SUBMIT(answer='x')")]).trajectory[0]
    assert called == ["Ann"]
    assert asked == [("note", {"to": "Ann", "text": "Hi"}), ("fetch", {"page": "a"}), ("note", {"to": "Bob"})]
    assert step["output"].splitlines()[0] == "Hi content of a"
    assert "note was refused: Not to Bob." in step["output"]
    calls = step["tool_calls"]
    assert [call["refused"] for call in calls] == ["", "", "note was refused: Not to Bob."]
    assert calls[2]["error_type"] == "ToolRefused"


def test_arguments_without_names_are_reviewed_together() -> None:
    asked: list[Any] = []
    rlm = RLM("question -> answer", tools=[send], on_tool=lambda *given: asked.append(given))
    run(rlm, [block("send('a', 'b', 'c', 'd')\nSUBMIT(answer='x')")])
    assert asked == [("send", {"to": "a", "text": "b", "args": ("c", "d")})]


def test_tools_of_a_react_that_code_makes_are_reviewed() -> None:
    """They are the run's tools on another way."""
    called: list[str] = []

    def note(to: str) -> str:
        called.append(to)
        return "done"

    act = fields(next_thought="I write.", next_tool_name="note", next_tool_args='{"to": "Bob"}')
    end = fields(next_thought="Done.", next_tool_name="finish", next_tool_args="{}")
    replies: list[Reply] = [
        block("print(dspy.ReAct('task -> report', tools=[note])(task='Write').report)"),
        *(act, end, fields(reasoning="r", report="refused, it seems")),
        block("SUBMIT(answer='x')"),
    ]
    rlm = RLM("question -> answer", tools=[note], on_tool=lambda name, arguments: "No mail.")
    prediction = run(rlm, replies)
    assert (called, prediction.answer) == ([], "x")
    assert "refused, it seems" in prediction.trajectory[0]["output"]


CHILD = "print(rlm_query('Count.'))"


def test_the_code_and_answers_of_children_are_reviewed() -> None:
    seen: list[Any] = []
    rlm = RLM("question -> answer", on_code=seen.append, on_submit=seen.append)
    run(rlm, [block(CHILD), block("SUBMIT(response='3')"), block("SUBMIT(answer='4')")])
    assert seen == [CHILD, "SUBMIT(response='3')", {"response": "3"}, "SUBMIT(answer='4')", {"answer": "4"}]


def hooked(name: str, hook: Any) -> RLM:
    """Return a module with a tool and one hook."""
    options: dict[str, Any] = {name: hook}
    return RLM("question -> answer", tools=[send], **options)


def boom(*_: Any) -> None:
    """Fail as a hook."""
    raise KeyError("no such rule")


SENDS = "try:\n    send('a')\nexcept Exception:\n    while True: pass"


@pytest.mark.parametrize("factory", [PythonInterpreter])
@pytest.mark.parametrize(
    ("hook", "code"), [("on_code", "SUBMIT(answer='x')"), ("on_submit", "SUBMIT(answer='x')"), ("on_tool", SENDS)]
)
def test_a_hook_that_raises_ends_the_run_and_keeps_its_trajectory(hook: str, code: str, factory: Any) -> None:
    """Also code that goes on after a tool whose hook raised is stopped."""
    rlm = RLM("question -> answer", tools=[send], interpreter_factory=factory)
    replies: list[Reply] = [block("print(1)"), block(code)]

    def later(*asked: Any) -> None:
        if asked != ("print(1)",):
            boom()

    setattr(rlm, hook, later)
    with pytest.raises(HookFailed, match=rf"^{hook} raised KeyError: 'no such rule'") as raised:
        run(rlm, replies)
    assert isinstance(raised.value.__cause__, KeyError)
    steps = raised.value.prediction.trajectory  # type: ignore[attr-defined]
    assert [step["code"] for step in steps] == ["print(1)", code]
    assert steps[-1]["kind"] == "error"
    assert raised.value.prediction.stop == "failed"  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [dspy.LMRateLimitError("slow down", model="m"), RuntimeError("x")])
def test_an_error_of_a_model_that_a_hook_asks_is_the_hooks(error: Exception) -> None:
    """The loop does not take it for one of its own."""

    def on_code(code: str) -> None:
        raise error

    with pytest.raises(HookFailed) as raised:
        run(RLM("question -> answer", on_code=on_code), [block("SUBMIT(answer='x')")])
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("hook", ["on_code", "on_submit", "on_tool"])
def test_a_hook_that_returns_no_verdict_ends_the_run(hook: str) -> None:
    """`True` may mean either: nothing runs."""
    rlm = hooked(hook, lambda *_: True)
    with pytest.raises(HookFailed, match=rf"^{hook} returned True\. It must return None to allow, a str"):
        run(rlm, [block("send('a')\nSUBMIT(answer='x')")])


def test_a_refusal_without_words_gets_some() -> None:
    prediction = run(
        RLM("question -> answer", max_iters=1, on_code=lambda code: ""),
        [block("SUBMIT(answer='x')"), fields(answer="")],
    )
    assert prediction.trajectory[0]["output"].endswith("No reason was given.")


@pytest.mark.parametrize("name", ["on_code", "on_tool", "on_submit"])
def test_a_hook_must_be_callable(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a function, such as {name}=lambda"):
        hooked(name, "yes")
    rlm = RLM("question -> answer")
    with pytest.raises(TypeError, match=name):
        setattr(rlm, name, True)


@pytest.mark.parametrize("code", ["", " \n", 3])
def test_run_instead_takes_code(code: Any) -> None:
    with pytest.raises(ValueError, match=r"^RunInstead takes Python code as a str"):
        RunInstead(code)


def test_the_time_of_a_hook_is_not_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hooks take 1000 seconds each; the run has 100."""

    put_forward = clock_put_forward(monkeypatch)

    def slow(*_: Any) -> None:
        put_forward(1000)

    limits = Limits(max_seconds=100, max_cell_seconds=90)
    rlm = RLM("question -> answer", tools=[send], limits=limits, on_code=slow, on_tool=slow, on_submit=slow)
    prediction = run(rlm, [block("print(send('a'))"), block("print(2)"), block("SUBMIT(answer='x')")])
    assert (prediction.stop, prediction.usage["limit"]) == ("submitted", None)
    assert 5000 <= prediction.usage["waited"] <= prediction.usage["seconds"] < 5100
    assert "s." in prediction.trajectory[0]["notice"]
    assert not any("last turn" in step["notice"] for step in prediction.trajectory)


@pytest.mark.parametrize("hook", ["on_code", "on_tool", "on_submit"])
def test_a_pause_leaves_the_run_with_what_there_is(hook: str, tmp_path: Path) -> None:
    """The log has the question without a decision."""

    def wait(*_: Any) -> None:
        raise Pause("Ann must agree")

    rlm = hooked(hook, wait)
    with RunLog(tmp_path / "log.jsonl"), pytest.raises(Pause, match=r"^Ann must agree") as raised:
        run(rlm, [block("send('a')\nSUBMIT(answer='x')")])
    prediction = raised.value.prediction  # type: ignore[attr-defined]
    assert (prediction.stop, prediction.answer) == ("paused", None)
    assert [step["kind"] for step in prediction.trajectory] == ["paused"]
    assert prediction.trajectory[0]["output"] == "The run was paused: Ann must agree"
    (record,) = read_log(tmp_path / "log.jsonl")
    assert (record.stop, record.error) == ("paused", "Ann must agree")
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if '"review_ended"' in line]
    assert len(asked) == 1
    assert '"error":"Ann must agree"' in asked[0]


@pytest.mark.parametrize("hook", ["on_code", "on_tool"])
def test_a_pause_in_a_child_pauses_the_whole_run(hook: str) -> None:
    """No sibling goes on, and code that catches the failed call does not either."""

    def wait(*asked: Any) -> None:
        if str(asked[0]).startswith("send"):
            raise Pause("Ann must agree")

    child = block("send('a')\nSUBMIT(answer='1')")
    code = "got = rlm_query_batched(['1', '2', '3'])\nwhile True: pass"
    rlm = hooked(hook, wait)
    rlm.interpreter_factory = PythonInterpreter
    with pytest.raises(Pause, match=r"^Ann must agree") as raised:
        run(rlm, [block(code), child, child, child])
    prediction = raised.value.prediction  # type: ignore[attr-defined]
    assert prediction.stop == "paused"
    assert prediction.trajectory[-1]["code"] == code


def test_events_log_and_report_show_what_was_refused(tmp_path: Path) -> None:
    """And who was asked about what."""
    verdicts = iter(["Not so.", RunInstead("print('mine')"), None])
    rlm = RLM("question -> answer", on_code=lambda code: next(verdicts))
    with RunLog(tmp_path / "log.jsonl"):
        prediction = run(rlm, [block("print('first')"), block("print('second')"), block("SUBMIT(answer='x')")])
    (record,) = read_log(tmp_path / "log.jsonl")
    assert [step.kind for step in record.trajectory] == ["denied", "output", "submitted"]
    assert record.trajectory[1].proposed == "print('second')"
    page = prediction.report().html
    assert "code refused" in page
    assert "The model wrote other code, which was replaced" in page
    log = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert '"hook":"on_code","asked":{"code":"print(\'first\')"},"refused":"Not so."' in log
    assert '"run_instead":"print(\'mine\')"' in log


def test_a_process_killed_while_somebody_decides_leaves_the_code_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    texts: list[str] = []
    rlm = RLM("question -> answer", on_code=lambda code: texts.append(path.read_text(encoding="utf-8")))
    with RunLog(path):
        run(rlm, [block("SUBMIT(answer='x')")])
    path.write_text(texts[0], encoding="utf-8")
    (record,) = read_log(path)
    assert (record.stop, record.trajectory[-1].code) == ("killed", "SUBMIT(answer='x')")


class Desk:
    """A hook that cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def decide(self, fields: dict[str, Any]) -> None:
        with self.lock:
            assert fields


def test_a_hook_that_cannot_be_copied_is_shared_by_copies() -> None:
    rlm = RLM("question -> answer", on_submit=Desk().decide)
    copied = copy.deepcopy(rlm)
    assert copied.on_submit is rlm.on_submit
    assert copied.act is not rlm.act
    assert run(copied, [block("SUBMIT(answer='1')")]).answer == "1"


def test_copies_keep_the_hooks_and_a_saved_state_does_not_have_them(tmp_path: Path) -> None:
    rlm = RLM("question -> answer", on_code=boom)
    assert copy.deepcopy(rlm).on_code is rlm.deepcopy().on_code is boom
    assert pickle.loads(pickle.dumps(ToolRefused("x"))).args == ("x",)
    rlm.save(tmp_path / "state.json")
    assert "boom" not in (tmp_path / "state.json").read_text(encoding="utf-8")
    other = RLM("question -> answer")
    other.load(tmp_path / "state.json")
    assert other.on_code is None
