"""A run goes on from its event log: from any line of it, without asking again what it was answered."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from typer.testing import CliRunner

from rlm_dspy import RLM, Limits
from rlm_dspy.cli.app import app
from rlm_dspy.errors import CannotResume
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.observe import RunLog
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages

BENCH = Path(__file__).parents[2] / "experiment" / "bench" / "kills.py"
SPEC = importlib.util.spec_from_file_location("kills", BENCH)
assert SPEC is not None
assert SPEC.loader is not None
kills: Any = importlib.util.module_from_spec(SPEC)
sys.modules["kills"] = kills
SPEC.loader.exec_module(kills)

INPUTS = {"context": kills.CONTEXT, "question": kills.QUESTION}
ASKED = {"question": "?"}
NOT_THE_SAME = {"seconds", "started", "spent", "calls", "tool_calls", "notice"}
"""What a request that was under way changes, and what is compared otherwise."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


def note(text: str) -> str:
    """Write a note."""
    return f"noted {text}"


def eight_turns() -> RLM:
    """Return a run of batches, a tool, and two children at once."""
    return RLM("context, question -> answer: str", tools=[note], interpreter_factory=LocalPythonInterpreter)


def small(**options: Any) -> RLM:
    return RLM("question -> answer", interpreter_factory=LocalPythonInterpreter, **options)


def logged(rlm: RLM, lm: ScriptedLM, path: Path, **inputs: Any) -> Any:
    with RunLog(path), dspy.context(lm=lm):
        return rlm(**inputs)


def resumed(rlm: RLM, lm: ScriptedLM, path: Path, **inputs: Any) -> Any:
    with dspy.context(lm=lm):
        return rlm.resume(path, **inputs)


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def cut(path: Path, is_last: Callable[[dict[str, Any]], bool]) -> None:
    """Cut a log off after the first event of this kind, as a kill at this moment leaves it."""
    lines = path.read_text().splitlines(keepends=True)
    last = next(number for number, line in enumerate(lines) if is_last(json.loads(line)))
    path.write_text("".join(lines[: last + 1]))


def after_turn(number: int) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == "turn_ended" and event["turn"] == number and "parent" not in event


def steps_of(trajectory: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: part for name, part in step.items() if name not in NOT_THE_SAME} for step in trajectory]


def check_every(path: Path, distance: int) -> None:
    """Check a resumed run from every `distance`-th line of the log of a whole one, with a torn line after it."""
    whole, again = ScriptedLM(kills.reply), path.with_name("again.jsonl")
    first = logged(eight_turns(), whole, path, **INPUTS)
    lines = path.read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines), distance):
        again.write_bytes(b"".join(lines[:count]) + lines[count][:20])
        lm, kept = ScriptedLM(kills.reply), [json.loads(line)["event"] for line in lines[:count]]
        prediction = resumed(eight_turns(), lm, again, **INPUTS)
        under_way = kept.count("lm_started") - kept.count("lm_ended")
        assert len(lm.script.calls) == len(whole.script.calls) - kept.count("lm_ended"), count
        assert (prediction.answer, prediction.stop) == (first.answer, "submitted")
        assert steps_of(prediction.trajectory) == steps_of(first.trajectory), count
        usage = {name: prediction.usage[name] - first.usage[name] for name in ("input_tokens", "output_tokens")}
        assert usage == {"input_tokens": 0, "output_tokens": 0}, count
        assert prediction.usage["calls"] - first.usage["calls"] == under_way
        assert prediction.usage["failures"] == under_way
        (record,) = read_log(again)
        assert steps_of([step.model_dump() for step in record.trajectory]) == steps_of(first.trajectory), count
        numbers = [len(step.calls) for step in record.trajectory]
        assert numbers == [len(step["calls"]) for step in first.trajectory]


def test_a_run_goes_on_from_a_line_of_its_log_as_if_nothing_had_been(path: Path) -> None:
    """Same answer, steps and usage; only what was not answered is asked; the log is of one run."""
    check_every(path, 17)


@pytest.mark.by_hand
def test_a_run_goes_on_from_every_line_of_its_log(path: Path) -> None:
    check_every(path, 1)


def killed(*options: str) -> None:
    done = subprocess.run([sys.executable, str(BENCH), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_that_is_killed_ends_the_same_over_http_with_a_scripted_model() -> None:
    killed("--runs", "1", "--kills", "1", "--seed", "2", "--seconds", "0.1")


@pytest.mark.by_hand
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_twenty_runs_killed_at_random_moments_end_the_same_over_http_with_a_scripted_model() -> None:
    killed("--runs", "20", "--kills", "1")


@pytest.mark.by_hand
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_that_is_killed_twenty_times_ends_the_same_over_http_with_a_scripted_model() -> None:
    killed("--runs", "1", "--kills", "20")


def test_a_run_that_fails_at_every_turn_is_resumed_until_it_ends(path: Path) -> None:
    """Its model answers once in each process; what it said is not asked again."""
    turns = [block(f"x{number} = {number}\nprint(x{number})") for number in range(6)]
    turns.append(block("SUBMIT(answer=x0 + x1 + x2 + x3 + x4 + x5)"))
    sent: list[Messages] = []
    for number, turn in enumerate(turns):
        lm = ScriptedLM([turn, RuntimeError("gone")])
        if number == len(turns) - 1:
            prediction = resumed(small(), lm, path, **ASKED)
            break
        with pytest.raises(dspy.LMError):
            (resumed if number else logged)(small(), lm, path, **ASKED)
        sent.append(lm.script.calls[0])
    assert (prediction.answer, len(prediction.trajectory)) == ("15", 7)
    assert prediction.usage["calls"] == 13
    assert [sum(message["role"] == "assistant" for message in each) for each in sent] == list(range(6))
    (record,) = read_log(path)
    assert (record.stop, len(record.trajectory)) == ("submitted", 7)


def test_an_awaited_run_goes_on_too(path: Path) -> None:
    first = logged(small(), ScriptedLM([block("x = 1"), block("SUBMIT(answer=x)")]), path, **ASKED)
    cut(path, after_turn(1))

    async def go_on() -> Any:
        with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=x)")])):
            return await small().aresume(path, **ASKED)

    assert asyncio.run(go_on()).answer == first.answer


def test_the_log_that_is_open_already_gets_each_event_once(path: Path) -> None:
    logged(small(), ScriptedLM([block("x = 1"), block("SUBMIT(answer=x)")]), path, **ASKED)
    cut(path, after_turn(1))
    with RunLog(path):
        resumed(small(), ScriptedLM([block("SUBMIT(answer=x)")]), path, **ASKED)
    names = [event["event"] for event in events(path)]
    assert (names.count("run_resumed"), names.count("run_ended"), names.count("turn_ended")) == (1, 1, 2)


# What cannot be made again


def test_a_tool_that_was_running_is_not_called_again_and_the_code_is_told(path: Path) -> None:
    calls: list[str] = []

    def send(to: str) -> str:
        calls.append(to)
        return f"sent to {to}"

    code = block("print(send('a'))\nprint(send('b'))")
    logged(small(tools=[send]), ScriptedLM([code, block("SUBMIT(answer='yes')")]), path, **ASKED)
    started = [event["asked"] for event in events(path) if event["event"] == "tool_started"]
    cut(path, lambda event: event["event"] == "tool_started" and event["asked"] == started[1])
    lm = ScriptedLM([block("SUBMIT(answer='no')")])
    prediction = resumed(small(tools=[send]), lm, path, **ASKED)
    assert calls == ["a", "b"]
    output = prediction.trajectory[0]["output"]
    assert "sent to a" in output
    assert "send was running when the process was gone" in output
    assert prediction.answer == "no"


def test_tools_of_ended_turns_give_what_they_gave_then(path: Path) -> None:
    """Values of Python's types and errors alike."""
    calls: list[int] = []

    def look(number: int) -> Any:
        calls.append(number)
        if number == 2:
            raise ValueError("no such number")
        return {"number": number, "pair": [1.5, None]}

    first = "found = look(1)\ntry:\n    look(2)\nexcept ValueError as error:\n    told = str(error)"
    turns = [block(first), block("SUBMIT(answer=f'{found} {told}')")]
    whole = logged(small(tools=[look]), ScriptedLM(turns), path, **ASKED)
    cut(path, after_turn(1))
    assert resumed(small(tools=[look]), ScriptedLM(turns[1:]), path, **ASKED).answer == whole.answer
    assert calls == [1, 2]


def test_the_model_is_told_what_code_did_otherwise_when_it_was_run_again(path: Path) -> None:
    turns = [block("import time\nprint(time.time_ns())"), block("x = 2\nprint(x)"), block("SUBMIT(answer=x)")]
    whole = logged(small(), ScriptedLM(turns), path, **ASKED)
    cut(path, after_turn(2))
    lm = ScriptedLM(turns[2:])
    prediction = resumed(small(), lm, path, **ASKED)
    told = lm.script.calls[0][-1]["content"]
    assert "- turn 1: it gave" in told
    assert "turn 2" not in told
    assert whole.trajectory[0]["output"] in lm.script.calls[0][-3]["content"]
    assert prediction.answer == "2"


def test_a_sub_call_that_was_not_made_then_fails_and_the_model_is_told(path: Path) -> None:
    turns = [block("import time\nx = llm_query_batched([f'{time.time_ns()}'])"), block("SUBMIT(answer=str(x))")]
    logged(small(), ScriptedLM(act=turns, query=["yes"]), path, **ASKED)
    cut(path, after_turn(1))
    lm = ScriptedLM(act=turns[1:])
    prediction = resumed(small(), lm, path, **ASKED)
    assert "- turn 1: 1 call of query had no recorded answer, and failed" in lm.script.calls[0][-1]["content"]
    assert "NotRecorded" in prediction.answer


def test_an_answer_that_is_too_long_for_a_trajectory_is_in_the_log(path: Path) -> None:
    turns = [block("x = llm_query('long?')"), block("SUBMIT(answer=str(len(x)))")]
    logged(small(), ScriptedLM(act=turns, query=["x" * 50_000]), path, **ASKED)
    cut(path, after_turn(1))
    assert resumed(small(), ScriptedLM(act=turns[1:]), path, **ASKED).answer == "50000"


def test_an_earlier_answer_still_serves_an_identical_sub_call(path: Path) -> None:
    turns = [block("x = llm_query('?')"), block("SUBMIT(answer=llm_query('?'))")]
    logged(small(), ScriptedLM(act=turns, query=["yes"]), path, **ASKED)
    cut(path, after_turn(1))
    prediction = resumed(small(), ScriptedLM(act=turns[1:]), path, **ASKED)
    assert (prediction.answer, prediction.usage["reused"]) == ("yes", 1)


# Interrupted


BATCH = "found = llm_query_batched(['a', 'b', 'c'])\nprint(found)\nSUBMIT(answer=' '.join(map(str, found)))"
CHILDREN = BATCH.replace(
    "llm_query_batched(['a', 'b', 'c'])", "rlm_query_batched([(f'Read {n}', n * 40) for n in 'abc'])"
)
CHILD = "said = llm_query(context[:1])\nSUBMIT(response=said)"


class Interrupted:
    """A model whose sub-call about b waits until the run is interrupted.

    Attributes:
        asked: The prompts of the sub-calls.
        interrupt: What interrupts.
    """

    def __init__(self, code: str, interrupt: Callable[[], None] = lambda: None) -> None:
        self.code, self.interrupt, self.asked = code, interrupt, list[str]()

    def __call__(self, messages: Messages) -> str:
        task = str(messages[1]["content"])
        if "SUBMIT(" in task:
            return block(CHILD if "Read " in task else self.code)
        self.asked.append(str(messages[-1]["content"]).strip())
        if self.asked[-1].endswith("b"):
            self.interrupt()
        return self.asked[-1].upper()


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("code", [BATCH, CHILDREN], ids=["batch", "children"])
@pytest.mark.parametrize("interpreter", [LocalPythonInterpreter, PythonInterpreter])
@pytest.mark.parametrize("is_awaited", [False, True], ids=["ctrl-c", "cancelled"])
def test_what_an_interruption_cut_off_is_asked_again(
    path: Path, code: str, interpreter: Callable[[], Any], *, is_awaited: bool
) -> None:
    """Not taken as failed; what was answered is not asked again."""

    def rlm() -> RLM:
        return RLM("question -> answer", interpreter_factory=interpreter, limits=Limits(max_concurrency=1))

    if is_awaited:
        reached = threading.Event()

        def reach() -> None:
            reached.set()
            time.sleep(0.5)

        async def cancel() -> None:
            model = Interrupted(code, reach)
            with RunLog(path), dspy.context(lm=ScriptedLM(model)):
                run = asyncio.create_task(rlm().acall(**ASKED))
                await asyncio.to_thread(reached.wait)
                run.cancel()
                await run

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cancel())
    else:
        with pytest.raises(KeyboardInterrupt):
            logged(rlm(), ScriptedLM(Interrupted(code, press_ctrl_c)), path, **ASKED)
    model = Interrupted(code)
    assert resumed(rlm(), ScriptedLM(model), path, **ASKED).answer == "A B C"
    assert model.asked == ["b", "c"]


# Limits


def test_the_limits_count_what_was_paid_before(path: Path) -> None:
    turns = [block("x = llm_query_batched(['a', 'b'])"), block("y = llm_query_batched(['c', 'd'])\nprint(y)")]
    limits = Limits(max_llm_calls=3)
    script = ScriptedLM(act=[*turns, block("SUBMIT(answer='no')")], query=["1", "2", "3"])
    whole = logged(small(limits=limits), script, path, **ASKED)
    cut(path, after_turn(1))
    lm = ScriptedLM(act=[turns[1], block("SUBMIT(answer='no')")], query=["3"])
    prediction = resumed(small(limits=limits), lm, path, **ASKED)
    assert lm.script.roles.count("query") == 1
    for run in (prediction, whole):  # either of the two gets the last call
        output = run.trajectory[1]["output"]
        assert ("'3'" in output, output.count("0 of 3 model calls are left")) == (True, 1)
    assert prediction.usage["limit"] == whole.usage["limit"] == "max_llm_calls"


def test_a_run_whose_last_turn_had_ended_goes_on_with_the_extraction(path: Path) -> None:
    rlm = small(max_iters=2)
    replies = [block("print(1)"), block("print(2)"), fields(answer="three")]
    logged(rlm, ScriptedLM(replies), path, **ASKED)
    cut(path, after_turn(2))
    lm = ScriptedLM(replies[2:])
    prediction = resumed(small(max_iters=2), lm, path, **ASKED)
    assert (prediction.answer, prediction.stop, lm.script.roles) == ("three", "extracted", ["extract"])


def test_a_summary_of_turns_is_taken_from_the_log(path: Path) -> None:
    """The next turn is asked with the same messages, and the turns before the summary are in the REPL."""
    turns = [block(f"x{number} = {number}\nprint('{number} ' * 4_000)") for number in range(4)]
    turns.append(block("SUBMIT(answer=str((x0, x3, len(history))))"))
    limits = Limits(max_context_tokens=4_000)
    whole = ScriptedLM(act=turns, fold=[fields(summary="So far.")] * 3)
    first = logged(small(limits=limits), whole, path, **ASKED)
    assert "folded" in [step["kind"] for step in first.trajectory[:4]]
    cut(path, after_turn(4))
    lm = ScriptedLM(act=turns[4:], fold=[fields(summary="So far.")] * 3)
    prediction = resumed(small(limits=limits), lm, path, **ASKED)
    assert prediction.answer == first.answer
    assert lm.script.calls[-1] == whole.script.calls[-1]


def test_a_question_of_a_session_goes_on_alone_and_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rlm = RLM("context, question -> answer", interpreter_factory=LocalPythonInterpreter)
    lm = ScriptedLM([block("SUBMIT(answer='1')"), block("x = 2"), RuntimeError("gone")])
    with RunLog(path), dspy.context(lm=lm), rlm.session(context="text") as session:
        session(question="first?")
        with pytest.raises(dspy.LMError):
            session(question="second?")
    lm = ScriptedLM([block("SUBMIT(answer=x)")])
    assert resumed(rlm, lm, path, context="text", question="second?").answer == "2"
    assert "The run was a question of a session. It goes on alone" in caplog.text


# Errors


def test_a_log_without_a_run_to_go_on_with_is_refused_with_the_reason(path: Path) -> None:
    path.write_text("not a log\n")
    with pytest.raises(CannotResume, match="contains no run that this version can read"):
        small().resume(path, question="?")
    path.write_text("")
    logged(small(), ScriptedLM([block("SUBMIT(answer='1')")]), path, **ASKED)
    with pytest.raises(CannotResume, match="contains no unfinished run: 1 run, all finished"):
        small().resume(path, question="?")
    name = events(path)[0]["run"]
    with pytest.raises(CannotResume, match=r"is finished\. No run in it is unfinished"):
        small().resume(path, run=name, question="?")
    with pytest.raises(FileNotFoundError):
        small().resume(path.with_name("none.jsonl"), question="?")


def test_of_several_unfinished_runs_one_is_chosen_by_its_id(path: Path) -> None:
    for number in range(2):
        with pytest.raises(dspy.LMError):
            logged(small(), ScriptedLM([RuntimeError("gone")]), path, question=f"question {number}")
    names = [event["run"] for event in events(path) if event["event"] == "run_started"]
    with pytest.raises(CannotResume) as told:
        small().resume(path, question="question 0")
    assert all(name in str(told.value) for name in [*names, "question 0", "question 1"])
    with pytest.raises(CannotResume, match="contains no run 'none'"):
        small().resume(path, run="none", question="question 0")
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer='1')")])):
        assert small().resume(path, run=names[1][:12], question="question 1").answer == "1"


def test_the_command_line_lists_the_runs_one_on_a_line_and_names_its_option(path: Path) -> None:
    for number in range(2):
        with pytest.raises(dspy.LMError):
            logged(small(), ScriptedLM([RuntimeError("gone")]), path, question=f"question {number}")
    names = [event["run"] for event in events(path) if event["event"] == "run_started"]
    several = CliRunner().invoke(app, ["resume", str(path)])
    first, *runs = several.stderr.splitlines()
    assert several.exit_code == 2
    assert first == f"Error: {path} contains several unfinished runs. Choose one with --run ID:"
    assert [line.split()[0] for line in runs] == names
    path.write_text("not a log\n")
    none = CliRunner().invoke(app, ["resume", str(path)])
    assert (none.exit_code, "Give a file that `rlm-dspy ask --log` wrote." in none.stderr) == (2, True)


def test_another_program_and_other_inputs_are_refused_before_anything_is_asked(path: Path) -> None:
    with pytest.raises(dspy.LMError):
        logged(small(), ScriptedLM([RuntimeError("gone")]), path, **ASKED)
    before = path.read_bytes()
    with pytest.raises(CannotResume, match="its signature is 'question: str -> answer: str', not"):
        RLM("question -> other").resume(path, question="?")
    with pytest.raises(CannotResume, match="Not the inputs that the run had: question"):
        resumed(small(), ScriptedLM([]), path, question="another?")
    asks = dspy.Signature("question -> answer", "Do something else.")
    with pytest.raises(CannotResume, match="the instructions of its signature begin with"):
        RLM(asks).resume(path, question="?")
    assert path.read_bytes() == before


# The command line


def test_the_command_line_goes_on_with_a_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("banana")
    lms = iter([ScriptedLM([block("x = context.count('a')"), RuntimeError("gone")])])
    monkeypatch.setattr("rlm_dspy.models.choose_model", lambda *_, **__: next(lms))
    asked = ["ask", "How many a's?", str(text), "--log", str(path), "--interpreter", "local", "--no-history"]
    assert CliRunner().invoke(app, asked).exit_code == 3
    lms = iter([ScriptedLM([block("SUBMIT(answer=str(x))")])])
    command = ["resume", str(path), str(text), "--interpreter", "local"]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, done.stdout) == (0, "3\n")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "contains no unfinished run" in again.stderr
    missing = CliRunner().invoke(app, ["resume", str(tmp_path / "none.jsonl")])
    assert (missing.exit_code, "File not found" in missing.stderr) == (2, True)
