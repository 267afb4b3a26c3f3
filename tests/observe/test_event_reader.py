"""What can be read of an event log: of a killed process, a torn file, other lines."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from pathlib import Path

    from tests.playing import Play

QUESTION = "question -> answer: int"
LOOKED_INTO = {"input_chars", "left_out", "occurrences"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


KILLED = """
import os, signal, sys
import dspy
from rlm_dspy import RLM
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM

def die() -> str:
    os.kill(os.getpid(), signal.SIGKILL)

code = "I look.\\n```python\\nprint(len(context))\\n```"
last = "Then I die.\\n```python\\nllm_query('?'); die()\\n```"
dspy.configure(lm=ScriptedLM([code, last, "yes"]), callbacks=[RunLog(sys.argv[1])])
RLM("context -> answer", tools=[die], interpreter_factory=LocalPythonInterpreter)(context="abc")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_leaves_a_log_with_all_that_it_had_done(path: Path) -> None:
    """A real SIGKILL in the middle of a cell: the turn before is whole, the code of this one is there."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    (record,) = read_log(path)
    assert (record.stop, record.answered, record.outputs) == ("killed", False, {})
    first, last = record.trajectory
    assert (first.code, first.output, first.kind) == ("print(len(context))", "3", "output")
    assert (last.reasoning, last.code, last.kind) == ("Then I die.", "llm_query('?'); die()", "killed")
    assert record.usage.calls == 3
    assert record.usage.by_role["query"].calls == 1
    assert last.spent.calls == 2
    assert record.usage.output_tokens == 13


KILLED_IN_A_CHILD = """
import os, signal, sys
import dspy
from rlm_dspy import RLM
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM

def die() -> str:
    os.kill(os.getpid(), signal.SIGKILL)

root = "```python\\nprint(llm_query('?'))\\nrlm_query('first')\\nrlm_query('second')\\n```"
ends = "```python\\nSUBMIT(response='ok')\\n```"
dies = "```python\\nllm_query('!')\\ndie()\\n```"
replies = [root, "yes", ends, "```python\\n1\\n```", dies, "no"]
dspy.configure(lm=ScriptedLM(replies), callbacks=[RunLog(sys.argv[1])])
RLM("context -> answer", tools=[die], interpreter_factory=LocalPythonInterpreter)(context="abc")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_process_killed_inside_a_child_leaves_the_childs_turns_too(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_IN_A_CHILD, str(path)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    (record,) = read_log(path)
    (last,) = record.trajectory
    query, first, second = last.calls
    assert (query.output, first.output, first.stop, second.stop) == ("yes", "ok", "submitted", "killed")
    assert [step.kind for step in first.steps] == ["submitted"]
    assert [step.kind for step in second.steps] == ["output", "killed"]
    assert [call.output for call in second.steps[1].calls] == ["no"]
    assert record.usage.calls == 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a log of two runs that stand mixed."""
    path = tmp_path_factory.mktemp("log") / "runs.jsonl"
    rlm = RLM("n: int -> answer: int", interpreter_factory=LocalPythonInterpreter)

    async def both() -> None:
        await asyncio.gather(*(rlm.acall(n=n) for n in range(2)))

    replies = [block("print('é')"), block("print(n)"), block("SUBMIT(answer=n)"), block("SUBMIT(answer=n)")]
    with RunLog(path), dspy.context(lm=ScriptedLM(replies, seconds=0.01)):
        asyncio.run(both())
    return path.read_bytes()


@settings(deadline=None)
@given(data=st.data())
def test_a_log_torn_anywhere_can_be_read(data: st.DataObject, written: bytes, tmp_path_factory: Any) -> None:
    """Cut at any byte behind the first line, and with any bytes behind the cut."""
    first = written.index(b"\n") + 1
    cut = data.draw(st.integers(first, len(written)))
    junk = data.draw(st.binary(max_size=40))
    path = tmp_path_factory.getbasetemp() / "torn.jsonl"
    path.write_bytes(written[:cut] + junk)
    records = read_log(path)
    assert 1 <= len(records) <= 2
    assert all(record.stop in ("submitted", "killed") for record in records)
    whole = written[:cut].count(b'"event":"turn_ended"')
    assert sum(step.kind != "killed" for record in records for step in record.trajectory) <= whole


@settings(max_examples=30)
@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.dictionaries(st.text(), v))))
def test_lines_of_other_things_are_passed_over(written: bytes, tmp_path_factory: Any, values: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "mixed.jsonl"
    others = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    path.write_bytes(others + written + others)
    assert [record.stop for record in read_log(path)] == ["submitted", "submitted"]


def test_a_file_without_runs_or_of_another_version_is_refused(path: Path) -> None:
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a log of runs"):
        read_log(path)
    path.write_text('{"v": 2, "event": "run_started"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="version 2"):
        read_log(path)


@pytest.mark.parametrize(
    ("event", "changed", "stops"),
    [
        ("run_started", {"v": 2}, ["submitted"]),
        ("lm_ended", {"input_tokens": "many", "output_tokens": [], "cost": "much"}, ["submitted", "submitted"]),
        ("run_ended", {"usage": 7}, ["killed", "submitted"]),
        ("run_started", {"at": "once"}, ["submitted", "submitted"]),
    ],
)
def test_a_corrupt_line_does_not_hide_the_other_runs(
    play: Play, path: Path, event: str, changed: dict[str, Any], stops: list[str]
) -> None:
    with RunLog(path):
        for _ in range(2):
            play(RLM(QUESTION), [block("SUBMIT(answer=1)")], question="?")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    next(line for line in lines if line["event"] == event).update(changed)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    records = read_log(path)
    assert [record.stop for record in records] == stops
    assert all(len(record.trajectory) == 1 for record in records)


def test_a_call_with_an_odd_field_counts_in_the_usage_of_a_killed_run(play: Play, path: Path) -> None:
    """What its other fields say is kept."""
    with RunLog(path):
        play(RLM(QUESTION), [block("SUBMIT(answer=1)")], question="?")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ended = next(line for line in lines if line["event"] == "lm_ended")
    ended.update(input_tokens="many", cost=None)
    kept = [line for line in lines if line["event"] != "run_ended"]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    (record,) = read_log(path)
    usage = record.usage
    assert (usage.calls, usage.input_tokens, usage.output_tokens) == (1, 0, ended["output_tokens"])
    assert ended["output_tokens"] > 0
