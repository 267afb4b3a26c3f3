"""A run that waited for a decision goes on from its event log: what was decided is not asked again."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.approval import Pause, RunInstead
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.observe import RunLog
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.testing import ScriptedLM
from tests.approval.passing_time import clock_put_forward
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_dspy.approval import OnTool
    from rlm_dspy.testing import Reply

Events = list[dict[str, Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


class Person:
    """A hook that waits for a person, and tells later what they say.

    Attributes:
        asked: What it was asked about.
        says: The decisions by what it is asked about; for others it pauses the run.
    """

    def __init__(self, **says: Any) -> None:
        self.asked: list[str] = []
        self.says = says

    def __call__(self, *asked: Any) -> Any:
        about = str(asked[-1])
        self.asked.append(about)
        for words, verdict in self.says.items():
            if words in about:
                return verdict
        raise Pause("Ann must agree")


def small(**options: Any) -> RLM:
    return RLM("question -> answer", **{"interpreter_factory": LocalPythonInterpreter, **options})


def begin(rlm: RLM, replies: list[Reply], path: Path) -> None:
    """Run until a hook pauses the run."""
    with RunLog(path), dspy.context(lm=ScriptedLM(replies)), pytest.raises(Pause):
        rlm(question="?")


def go_on(rlm: RLM, replies: list[Reply], path: Path) -> Any:
    with dspy.context(lm=ScriptedLM(replies)):
        return rlm.resume(path, question="?")


def events(path: Path) -> Events:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cut(path: Path, is_last: Callable[[dict[str, Any]], bool]) -> None:
    """Cut a log off after the first event of this kind, as a kill at this moment leaves it."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    last = next(number for number, line in enumerate(lines) if is_last(json.loads(line)))
    path.write_text("".join(lines[: last + 1]), encoding="utf-8")


ANSWER = block("SUBMIT(answer='x')")


def test_code_that_was_agreed_to_is_not_asked_about_again(path: Path) -> None:
    """The answer after it was paused; in the third process all is decided."""
    code, answer = Person(SUBMIT=None), Person()
    begin(small(on_code=code, on_submit=answer), [ANSWER], path)
    code, answer = Person(), Person()
    with pytest.raises(Pause):
        go_on(small(on_code=code, on_submit=answer), [], path)
    assert (code.asked, answer.asked) == ([], ["{'answer': 'x'}"])
    code, answer = Person(), Person(answer=None)
    prediction = go_on(small(on_code=code, on_submit=answer), [], path)
    assert (prediction.answer, code.asked, len(answer.asked)) == ("x", [], 1)
    (record,) = read_log(path)
    assert [step.kind for step in record.trajectory] == ["submitted"]


def test_code_that_ran_instead_runs_instead_again(path: Path) -> None:
    """In the turn that had not ended; and in one that had, the model is not told of a difference."""
    code = Person(first=RunInstead("x = 2\nprint(x)"), SUBMIT=RunInstead("SUBMIT(answer=x)"))
    begin(small(on_code=code, on_submit=Person()), [block("first = 1"), ANSWER], path)
    code = Person()
    prediction = go_on(small(on_code=code, on_submit=Person(answer=None)), [], path)
    assert (prediction.answer, code.asked) == ("2", [])
    first, last = prediction.trajectory
    assert (last["code"], last["proposed"]) == ("SUBMIT(answer=x)", "SUBMIT(answer='x')")
    assert "What differs" not in first["notice"]


def test_a_decision_is_good_for_what_was_decided(path: Path) -> None:
    """An equal question in a later turn, and another one in this turn, are asked."""
    rlm = small(on_code=Person(print=None))
    begin(rlm, [block("print(1)"), block("second = 2")], path)
    code = Person(second=None, print=None, SUBMIT=None)
    go_on(small(on_code=code), [block("print(1)"), ANSWER], path)
    assert code.asked == ["second = 2", "print(1)", "SUBMIT(answer='x')"]


def test_a_refused_answer_of_an_ended_turn_stays_refused_without_a_word_of_difference(path: Path) -> None:
    answer = Person(small="Too small.")
    begin(small(on_submit=answer), [block("print('so')\nSUBMIT(answer='small')"), ANSWER], path)
    answer = Person(x=None)
    prediction = go_on(small(on_submit=answer), [], path)
    assert (prediction.answer, answer.asked) == ("x", ["{'answer': 'x'}"])
    assert prediction.trajectory[0]["kind"] == "refused"
    assert "What differs" not in prediction.trajectory[0]["notice"]


def tool_run(path: Path, factory: Any, hook: OnTool) -> tuple[RLM, list[str]]:
    """Return a module with a tool, and what the tool is called with."""
    called: list[str] = []

    def send(to: str) -> str:
        """Send a mail."""
        called.append(to)
        return f"sent to {to}"

    return small(tools=[send], on_tool=hook, interpreter_factory=factory), called


SENDS = """
told = []
for to in ('Ann', 'Bob', 'Cy'):
    try:
        told.append(send(to))
    except Exception as error:
        told.append(str(error))
SUBMIT(answer=str(told))
"""


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
def test_a_tool_call_that_waited_is_asked_about_and_made(path: Path, factory: Any) -> None:
    """The made one before it is not made again, and the refused one stays refused."""
    rlm, called = tool_run(path, factory, Person(Ann=None, Bob="Not to Bob."))
    begin(rlm, [block(SENDS)], path)
    assert called == ["Ann"]
    for _ in range(2):  # still no decision
        hook = Person()
        rlm, called = tool_run(path, factory, hook)
        with pytest.raises(Pause):
            go_on(rlm, [], path)
        assert (called, hook.asked) == ([], ["{'to': 'Cy'}"])
    hook = Person(Cy=None)
    rlm, called = tool_run(path, factory, hook)
    prediction = go_on(rlm, [], path)
    assert (called, hook.asked) == (["Cy"], ["{'to': 'Cy'}"])
    assert "sent to Ann" in prediction.answer
    assert "Not to Bob." in prediction.answer
    assert "sent to Cy" in prediction.answer


@pytest.mark.parametrize(("moment", "asks"), [("review_started", True), ("review_ended", False)])
def test_a_kill_while_a_person_decides_on_a_tool_call(path: Path, moment: str, asks: bool) -> None:
    """Before the decision it is asked about; after it, the tool may have done its work."""
    rlm, called = tool_run(path, LocalPythonInterpreter, Person(to=None))
    with RunLog(path), dspy.context(lm=ScriptedLM([block(SENDS)])):
        rlm(question="?")
    cut(path, lambda event: event["event"] == moment)
    hook = Person(to=None)
    rlm, called = tool_run(path, LocalPythonInterpreter, hook)
    prediction = go_on(rlm, [], path)
    assert ("send was running when the process was gone" in prediction.answer) is not asks
    assert called == (["Ann"] if asks else []) + ["Bob", "Cy"]
    assert len(hook.asked) == len(called)


@pytest.mark.parametrize("hook", ["on_code", "on_submit"])
def test_a_pause_in_a_child_is_gone_on_with_in_the_child(path: Path, hook: str) -> None:
    """What the child had done before is not asked again."""
    child = [block("print('begun')"), block("SUBMIT(response='3')")]
    root = block("SUBMIT(answer=rlm_query('Count.'))")
    says = Person(Count=None, begun=None)
    begin(small(**{hook: says}, interpreter_factory=PythonInterpreter), [root, *child], path)
    says = Person(response=None, answer=None)
    prediction = go_on(small(**{hook: says}, interpreter_factory=PythonInterpreter), [], path)
    assert prediction.answer == "3"
    about = {"on_code": ["SUBMIT(response='3')"], "on_submit": ["{'response': '3'}", "{'answer': '3'}"]}
    assert says.asked == about[hook]


def test_the_clock_does_not_count_how_long_a_hook_was_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events_too = ("rlm_dspy.events.listener.time", "rlm_dspy.events.event_types.time")
    put_forward = clock_put_forward(monkeypatch, *events_too)

    def slow(code: str) -> None:
        put_forward(1000)

    begin(small(on_code=slow, on_submit=Person()), [block("x = 1"), ANSWER], path)
    assert max(event["t"] for event in events(path)) > 2000
    usage = go_on(small(on_code=slow, on_submit=Person(x=None)), [], path).usage
    assert 2000 <= usage["waited"] < 2001
    assert usage["seconds"] - usage["waited"] < 100


PROCESS = '''
"""A program that asks a person who decides later: `decided` is a file with their decisions, one a line."""
import json, sys
from pathlib import Path
import dspy
from rlm_dspy import RLM
from rlm_dspy.approval import Pause
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.observe import RunLog
from rlm_dspy.testing import ScriptedLM

log, decided, replies = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
decisions = json.loads(decided.read_text()) if decided.exists() else {}
asked = []

def send(to: str) -> str:
    """Send a mail."""
    with decided.with_name("sent").open("a") as file:
        file.write(to + "\\n")
    return f"sent to {to}"

def approved(*about):
    asked.append(str(about[-1]))
    if asked[-1] not in decisions:
        raise Pause(asked[-1])
    return decisions[asked[-1]]

rlm = RLM("question -> answer", tools=[send], on_code=approved, on_tool=approved, on_submit=approved)
rlm.interpreter_factory = PythonInterpreter
dspy.configure(lm=ScriptedLM(replies))
try:
    if log.exists():
        prediction = rlm.resume(log, question="?")
    else:
        with RunLog(log):
            prediction = rlm(question="?")
    print(json.dumps({"answer": prediction.answer, "asked": asked, "calls": prediction.usage["calls"]}))
except Pause as pause:
    print(json.dumps({"waits": str(pause), "asked": asked}))
'''


def test_a_person_decides_between_processes(path: Path, tmp_path: Path) -> None:
    """Each process ends with a pause; the next one is asked only about what is undecided, and sends one mail."""
    code = "found = send(to='Ann')\nSUBMIT(answer=found)"
    replies = [f"```python\n{code}\n```"]
    program, decided = tmp_path / "program.py", tmp_path / "decided"
    program.write_text(PROCESS, encoding="utf-8")
    questions = [code, "{'to': 'Ann'}", "{'answer': 'sent to Ann'}"]
    for number in range(4):
        command = [sys.executable, str(program), str(path), str(decided), json.dumps([] if number else replies)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told = json.loads(done.stdout)
        decided.write_text(json.dumps(dict.fromkeys(questions[: number + 1])), encoding="utf-8")
        if number < 3:
            assert told["waits"] == questions[number]
    assert (told["answer"], told["calls"]) == ("sent to Ann", 1)
    assert told["asked"] == questions[2:]
    assert (tmp_path / "sent").read_text(encoding="utf-8").splitlines() == ["Ann"]
