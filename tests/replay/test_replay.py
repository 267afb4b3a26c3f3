"""Running a recorded run's code again without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.cli.app import app
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.load import load_records
from rlm_dspy.replay.replay import replay
from rlm_dspy.report.record import digest_of, recorded
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step
from tests.playing import block, fields

if TYPE_CHECKING:
    from pathlib import Path

    from rlm_dspy.report.record import Record
    from rlm_dspy.testing import Messages

CONTEXT = "the tide rises\nstocks fall\nthe tide falls"
TURNS = [
    "I think first.",
    block("lines = context.splitlines()\nprint(len(lines))"),
    block("print(lines[9])"),
    block("import re\nfound = [l for l in lines if 'tide' in l]\nprint(found)"),
    block("answers = llm_query_batched(['is: ' + l for l in found])\nprint(answers)\nprint(bool(answers[1]))"),
    block("claims_of = claims.map(found)\nprint(claims_of[0].claims, judge(claim='x', topic='t'))"),
    block("print(dspy.Predict('text -> tone: str, n: int')(text=found[0]))\nprint(rlm_query('Say ok', found))"),
    block("SUBMIT(answer='no number')"),
    block("SUBMIT(answer=len(found))"),
]


class Claims(dspy.Signature):
    """List the claims."""

    passage: str = dspy.InputField()
    claims: list[str] = dspy.OutputField()
    certain: bool = dspy.OutputField()


def scripted() -> ScriptedLM:
    """Return an LM that plays `TURNS`, and answers each kind of sub-call."""

    def query(messages: Messages) -> str:
        if "falls" in messages[-1]["content"]:
            raise RuntimeError("no")
        return "yes, it is" * 200

    return ScriptedLM(
        act=TURNS,
        child=[block("SUBMIT(response='ok')")],
        query=query,
        subs={
            "claims": lambda _: fields(claims="['rises']", certain="True"),
            "judge": [fields(verdict="7")],
            "ad_hoc": [fields(tone="calm", n="3")],
        },
    )


def rlm() -> RLM:
    return RLM(
        "context, question -> answer: int",
        subs={"claims": Claims, "judge": "claim, topic -> verdict: int"},
        interpreter_factory=LocalPythonInterpreter,
        limits=Limits(max_iters=12),
    )


INPUTS: dict[str, Any] = {"context": Text(CONTEXT), "question": "How many?"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path, Path]:
    """Return the record of a run with every kind of sub-call, its file, and its log."""
    folder = tmp_path_factory.mktemp("run")
    log, saved = folder / "run.jsonl", folder / "run.json"
    module = rlm()
    with RunLog(log), dspy.context(lm=scripted()):
        record, error = recorded(module, INPUTS)
    assert error is None
    record.save(saved)
    return record, saved, log


def test_a_replayed_run_does_the_same(both: tuple[Record, Path, Path]) -> None:
    """From the record, its file and its log; without an LM."""
    record, saved, log = both
    assert record.outputs == {"answer": 2}
    kinds = {call.kind for step in record.trajectory for call in step.calls}
    assert kinds == {"query", "sub", "ad_hoc", "child"}
    for one in (record, *load_records(saved), *load_records(log)):
        steps = replay(one, INPUTS, LocalPythonInterpreter)
        assert [step.difference() for step in steps] == [""] * len(TURNS)
        assert all(step.same for step in steps)
        kinds_again = [call.kind for step in steps for call in step.replayed.calls]
        assert kinds_again == [call.kind for step in record.trajectory for call in step.calls]


def test_a_run_is_replayed_in_another_interpreter(both: tuple[Record, Path, Path]) -> None:
    steps = replay(both[0], INPUTS, PythonInterpreter)
    assert [step.number for step in steps if not step.same] == []


def test_a_changed_input_is_seen_where_it_first_matters(both: tuple[Record, Path, Path]) -> None:
    """The sub-call that the changed text leads to is not in the record and says so."""
    changed = {**INPUTS, "context": CONTEXT.replace("falls", "stays") + "\nthe tide turns"}
    steps = replay(both[0], changed, LocalPythonInterpreter)
    assert [step.number for step in steps if step.same] == [1, 3, 8]
    assert "-3\n+4" in steps[1].difference()
    assert [len(step.missing) for step in steps] == [0, 0, 0, 0, 2, 2, 1, 0, 0]
    assert steps[4].missing[0] == "query(prompt='is: the tide stays'): it was not made then"
    assert "NotInRecord" in steps[4].replayed.output
    assert steps[-1].answered_otherwise


def test_the_same_question_asked_in_two_turns_is_answered_as_it_was_in_each() -> None:
    module = RLM("question -> answer: str", interpreter_factory=LocalPythonInterpreter, cache=False)
    asks = block("print(llm_query('?'))")
    with dspy.context(lm=ScriptedLM([asks, "one", asks, "two", block("SUBMIT(answer=llm_query('?'))"), "three"])):
        record, _ = recorded(module, {"question": "?"})
    steps = replay(record, {"question": "?"}, LocalPythonInterpreter)
    assert [step.replayed.output for step in steps] == ["one", "two", "SUBMIT: {'answer': 'three'}"]
    assert all(step.same for step in steps)


def test_an_answer_that_was_too_long_to_be_kept_is_not_made_up() -> None:
    module = RLM("question -> answer: int", interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=len(llm_query('?')))"), "x" * 30_000])):
        record, _ = recorded(module, {"question": "?"})
    (step,) = replay(record, {"question": "?"}, LocalPythonInterpreter)
    assert step.missing == ("query(prompt='?'): its answer was too long to be kept",)
    assert not step.same


def test_a_batch_that_was_refused_whole_is_refused_again() -> None:
    code = "try:\n    llm_query_batched(['a', 'b', 'c'])\nexcept SubCallError as e:\n    SUBMIT(answer=str(e))"
    module = RLM("question -> answer", interpreter_factory=LocalPythonInterpreter, max_llm_calls=1)
    with dspy.context(lm=ScriptedLM([block(code)])):
        record, _ = recorded(module, {"question": "?"})
    (step,) = replay(record, {"question": "?"}, LocalPythonInterpreter)
    assert step.same


class Point(BaseModel):
    """A type that only this program knows."""

    x: int


def test_a_signature_with_types_that_only_its_program_knew_is_read_without_them() -> None:
    signature = dspy.Signature(
        {"points": (list[Point], dspy.InputField()), "best": (Point, dspy.OutputField())}, "Find the best."
    )
    module = RLM(signature, interpreter_factory=LocalPythonInterpreter)
    inputs = {"points": [Point(x=1), Point(x=3)]}
    with dspy.context(lm=ScriptedLM([block("print(points[1].x)"), block("SUBMIT(best={'x': 3})")])):
        record, _ = recorded(module, inputs)
    looks, _ = replay(record, inputs, LocalPythonInterpreter)
    assert looks.same


def test_tools_are_called_for_real() -> None:
    def double(n: int) -> int:
        return 2 * n

    module = RLM("n: int -> answer: int", tools=[double], interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=double(n))")])):
        record, _ = recorded(module, {"n": 4})
    assert [step.same for step in replay(record, {"n": 4}, LocalPythonInterpreter, tools=[double])] == [True]
    (without,) = replay(record, {"n": 4}, LocalPythonInterpreter)
    assert (without.same, "double" in without.replayed.output) == (False, True)


# The command


def test_the_command_tells_each_step_and_ends_with_0_or_1(both: tuple[Record, Path, Path], tmp_path: Path) -> None:
    _, saved, log = both
    path = tmp_path / "context.md"
    path.write_text(CONTEXT, encoding="utf-8")
    for run in (saved, log):
        same = CliRunner().invoke(app, ["replay", str(run), str(path), "--interpreter", "local"])
        assert (same.exit_code, same.output.splitlines()[-1]) == (0, "9 of 9 steps did the same.")
    path.write_text(CONTEXT + "\nmore", encoding="utf-8")
    other = CliRunner().invoke(app, ["replay", str(saved), str(path), "--interpreter", "local"])
    assert (other.exit_code, other.output.splitlines()[-1]) == (1, "8 of 9 steps did the same.")
    assert "step 2: different\n  --- recorded\n  +++ replayed\n" in other.output


def test_a_long_input_must_be_given_again(both: tuple[Record, Path, Path]) -> None:
    result = CliRunner().invoke(app, ["replay", str(both[1]), "--interpreter", "local"])
    assert (result.exit_code, "only a shortened 'context'" in result.output) == (2, True)


def test_one_of_several_runs_is_chosen_and_short_inputs_are_in_the_record(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    module = RLM("n: int, word -> answer: str", interpreter_factory=LocalPythonInterpreter)
    with RunLog(path), dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(answer=word * n)"))):
        for n in (2, 3):
            module(n=n, word="ab")
    several = CliRunner().invoke(app, ["replay", str(path)])
    assert (several.exit_code, "--run 1 to --run 2" in several.output) == (2, True)
    second = CliRunner().invoke(app, ["replay", str(path), "--run", "2", "--interpreter", "local"])
    assert (second.exit_code, second.output) == (0, "step 1: same\n1 of 1 step did the same.\n")
    none = CliRunner().invoke(app, ["replay", str(path), "--run", "3"])
    assert (none.exit_code, "there is no run 3" in none.output) == (2, True)


def test_a_run_with_an_input_that_is_no_text_is_refused_with_a_file(tmp_path: Path) -> None:
    path, text = tmp_path / "run.json", tmp_path / "text"
    text.write_text("some words", encoding="utf-8")
    module = RLM("context, exact: bool -> answer: str", interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=context)")])):
        record, _ = recorded(module, {"context": "some words", "exact": True})
    record.save(path)
    result = CliRunner().invoke(app, ["replay", str(path), str(text), "--interpreter", "local"])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "'exact' is not a text" in result.stderr


def test_a_run_without_a_turn_that_ended_is_not_called_the_same(
    both: tuple[Record, Path, Path], tmp_path: Path
) -> None:
    path, text = tmp_path / "run.json", tmp_path / "text"
    text.write_text(CONTEXT, encoding="utf-8")
    last = Step(code="1", kind="killed")
    both[0].model_copy(update={"trajectory": [last], "stop": "killed"}).save(path)
    result = CliRunner().invoke(app, ["replay", str(path), str(text), "--interpreter", "local"])
    assert (result.exit_code, result.stdout) == (2, "")
    cut, nothing = result.stderr.splitlines()
    assert ("it is left out" in cut, "nothing to replay" in nothing) == (True, True)


def test_two_texts_that_differ_only_in_the_middle_are_two_texts(tmp_path: Path) -> None:
    """Which their short forms, the size and the ends, do not tell."""
    one, other = "a" * 20_000, "a" * 9_000 + "b" + "a" * 10_999
    (tmp_path / "large").write_text(other, encoding="utf-8")
    digests = [digest_of(value, 10_000) for value in (one, other, Text(other), Text.open(tmp_path / "large"))]
    assert digests[0].sha256 != digests[1].sha256
    assert {digest.sha256 for digest in digests[1:]} == {digests[1].sha256}
    assert {(digest.size, digest.whole) for digest in digests} == {(20_000, False)}
    assert digest_of("short", 10_000).whole


def test_a_file_too_large_to_be_held_has_the_digest_of_its_text(tmp_path: Path) -> None:
    large = "The tide rises, it says.\n" * 800_000
    (tmp_path / "large").write_text(large, encoding="utf-8")
    assert digest_of(Text.open(tmp_path / "large"), 100) == digest_of(Text(large), 100)


def test_another_text_than_the_recorded_one_is_warned_of(both: tuple[Record, Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "text"
    told = []
    for content in (CONTEXT, CONTEXT + "!"):
        text.write_text(content, encoding="utf-8")
        told.append(CliRunner().invoke(app, ["replay", str(both[1]), str(text), "--interpreter", "local"]).stderr)
    assert told == ["", "Warning: the input 'context' is not the one that was recorded.\n"]
