"""The event log: what stands in it and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from typer.testing import CliRunner

from rlm_dspy import RLM, Limits
from rlm_dspy.cli.app import app
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.report.record import recorded
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step
from rlm_dspy.usage import RunUsage
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.testing import Messages, Reply
    from tests.playing import Play

QUESTION = "question -> answer: int"
LOOKED_INTO = {"input_chars", "left_out", "occurrences"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


def events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file, each line whole."""
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def plain(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event without what differs from run to run."""
    assert event["v"] == 1
    assert event["t"] >= 0
    assert event["at"].endswith("+00:00")
    left_out = {"v", "run", "parent", "t", "at", "input_tokens", "output_tokens", "usage"}
    left_out |= {"request", "id", "asked"}
    return {
        name: {"kind": value["kind"], "output": value["output"]} if name == "step" else value
        for name, value in event.items()
        if name not in left_out
    }


@contextlib.contextmanager
def listened_to(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Have caplog hear DSPy's logger, which does not propagate."""
    logger = logging.getLogger("dspy")
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


# What stands in it


def test_the_events_of_a_run_are_all_there_in_order(play: Play, path: Path) -> None:
    """Asserted whole: a reply without code, code that fails, a sub-call that fails, an answer."""
    asks = block("llm_query_batched(['a'])", "")
    replies: list[Reply] = ["Well.", block("1/0"), asks, ValueError("no"), block("SUBMIT(answer=1)")]
    rlm = RLM(QUESTION, max_iters=7)
    with RunLog(path):
        play(rlm, replies, question="?")
    model = {"model": "scripted/lm"}
    asked = {"event": "lm_started", **model, "role": "act"}
    told = {"event": "lm_ended", **model, "role": "act", "cached_input_tokens": 0, "cost": None, "cached": False}
    found = [plain(event) for event in events(path)]
    subcalls = [event.pop("subcall") for event in found if event["event"] == "subcall_ended"]
    steps = [event.pop("step") for event in found if event["event"] == "turn_ended"]
    assert found == [
        {
            "event": "run_started",
            "signature": "question: str -> answer: int",
            "instructions": "Given the fields `question`, produce the fields `answer`.",
            "inputs": {"question": "?"},
            "digests": {"question": {"size": 1, "sha256": hashlib.sha256(b"?").hexdigest(), "whole": True}},
            "output_types": {"answer": "int"},
            **model,
            "sub_model": None,
            "limits": asdict(rlm.limits),
        },
        {"event": "turn_started", "turn": 1},
        {**asked, "turn": 1, "call": 1},
        {**told, "turn": 1, "call": 1, "error": None, "outputs": ["Well."], "finish": "stop"},
        {"event": "turn_ended", "turn": 1, "calls": []},
        {"event": "turn_started", "turn": 2},
        {**asked, "turn": 2, "call": 2},
        {**told, "turn": 2, "call": 2, "error": None, "outputs": [replies[1]], "finish": "stop"},
        {"event": "cell_started", "turn": 2, "reasoning": "Next.", "code": "1/0"},
        {"event": "turn_ended", "turn": 2, "calls": []},
        {"event": "turn_started", "turn": 3},
        {**asked, "turn": 3, "call": 3},
        {**told, "turn": 3, "call": 3, "error": None, "outputs": [asks], "finish": "stop"},
        {"event": "cell_started", "turn": 3, "reasoning": "", "code": "llm_query_batched(['a'])"},
        {**asked, "turn": 3, "call": 4, "role": "query"},
        {**told, "turn": 3, "call": 4, "role": "query", "error": "[scripted/lm] no"},
        {"event": "subcall_ended", "turn": 3, "number": 1},
        {"event": "turn_ended", "turn": 3, "calls": [1]},
        {"event": "turn_started", "turn": 4},
        {**asked, "turn": 4, "call": 5},
        {**told, "turn": 4, "call": 5, "error": None, "outputs": [replies[4]], "finish": "stop"},
        {"event": "cell_started", "turn": 4, "reasoning": "Next.", "code": "SUBMIT(answer=1)"},
        {"event": "turn_ended", "turn": 4, "calls": []},
        {"event": "run_ended", "stop": "submitted", "outputs": {"answer": 1}, "final_reasoning": "Next."},
    ]
    (subcall,) = subcalls
    assert (subcall["name"], subcall["inputs"], subcall["output"]) == ("query", {"prompt": "a"}, "")
    assert subcall["error"] == "LMUnexpectedError: [scripted/lm] no"
    assert [step["kind"] for step in steps] == ["no_code", "error", "output", "submitted"]
    assert len({event["run"] for event in events(path)}) == 1


def test_a_record_read_from_the_log_is_the_record_of_the_run(play: Play, path: Path) -> None:
    """Of one that was submitted, one that was read from the trajectory, and one without an answer."""
    for replies in (
        [block("print('x' * 20_000)"), block("SUBMIT(answer='no')"), block("SUBMIT(answer=1)")],
        [block("1"), block("1"), block("1"), fields(answer="2")],
        [block("1"), block("1"), block("1"), "nothing", "nothing"],
    ):
        with RunLog(path):
            prediction = play(RLM(QUESTION, max_iters=3), replies, question="?").prediction
        record = read_log(path)[-1]
        assert (record.stop, record.usage, record.final_reasoning, record.outputs) == (
            *(prediction.stop, RunUsage(**prediction.usage), prediction.final_reasoning),
            {"answer": prediction.answer},
        )
        assert [step.model_dump() for step in record.trajectory] == prediction.trajectory
    assert [record.stop for record in read_log(path)] == ["submitted", "extracted", "unanswered"]


def test_the_command_line_keeps_the_same_record_as_its_log(path: Path) -> None:
    rlm = RLM("context, question -> answer: int", interpreter_factory=LocalPythonInterpreter)
    inputs = {"context": "é" * 30_000, "question": "?"}
    scripts: list[list[Reply]] = [
        [block("SUBMIT(answer=len(context[:1]))")],
        [block("1"), RuntimeError("gone")],
        [KeyboardInterrupt()],
    ]
    for replies in scripts:
        with RunLog(path), dspy.context(lm=ScriptedLM(replies)):
            record, _ = recorded(rlm, inputs)
        read = read_log(path)[-1]
        only_on_record = {"usage", "started_at", *LOOKED_INTO}
        assert record.model_dump(exclude=only_on_record) == read.model_dump(exclude=only_on_record)
    assert [record.stop for record in read_log(path)] == ["submitted", "failed", "interrupted"]


def test_an_error_that_ends_a_run_is_told_with_what_was_spent(play: Play, path: Path) -> None:
    with RunLog(path), pytest.raises(dspy.LMError):
        play(RLM(QUESTION), [block("1"), RuntimeError("gone")], question="?")
    turn, run = events(path)[-2:]
    assert (turn["event"], turn["turn"], turn["error"]) == ("turn_ended", 2, "[scripted/lm] gone")
    assert (run["event"], run["stop"], run["error"]) == ("run_ended", "failed", "[scripted/lm] gone")
    assert run["usage"]["by_role"]["act"]["calls"] == 2


def test_a_question_that_no_run_begins_with_leaves_no_open_run(play: Play, path: Path) -> None:
    """Inputs that do not fit are told in the log too."""
    with RunLog(path), pytest.raises(ValueError, match="question"):
        play(RLM(QUESTION), [], context="?")
    (record,) = read_log(path)
    assert (record.stop, record.trajectory) == ("failed", [])
    assert "question" in str(record.error)


def test_lm_calls_outside_a_run_are_not_logged(path: Path) -> None:
    with RunLog(path), dspy.context(lm=ScriptedLM([fields(answer="1")])):
        dspy.Predict(QUESTION)(question="?")
    assert path.read_bytes() == b""


def test_a_run_inside_a_tool_is_a_child_of_the_run_that_called_it(play: Play, path: Path) -> None:
    """Its events bear the id of the parent; the record of the parent is the only one at the top."""
    inner = RLM("n: int -> answer: int", max_iters=2)

    def ask(n: int) -> int:
        with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=n + 1)")])):
            return int(inner(n=n).answer)

    outer = RLM(QUESTION, tools=[ask])
    with RunLog(path):
        play(outer, [block("n = ask(1)\nSUBMIT(answer=n)")], question="?")
    found = events(path)
    root = found[0]["run"]
    (child,) = {event["run"] for event in found if event.get("parent")}
    assert {event["parent"] for event in found if event["run"] == child} == {root}
    assert [event["event"] for event in found if event["run"] == child] == [
        *("run_started", "turn_started", "lm_started", "lm_ended", "cell_started", "turn_ended", "run_ended"),
    ]
    times = [event["t"] for event in found]
    assert times == sorted(times)
    (record,) = read_log(path)
    assert record.outputs == {"answer": 2}


def deep() -> ScriptedLM:
    """Play a root with two children, each with three items of a sub, and a call that is answered twice."""
    root = "print(rlm_query_batched(['one', 'two']), llm_query('x'), llm_query('x'))\nSUBMIT(answer=1)"
    return ScriptedLM(
        act=[block(root)],
        child=lambda _: block("print(claims.map(['a b', 'c', 5]))\nSUBMIT(response='done')"),
        query=["yes"],
        subs={"claims": lambda _: fields(claims="['it is']")},
    )


def test_children_and_sub_calls_are_read_as_the_trajectory_tells_them(play: Play, path: Path) -> None:
    """Each event of a child bears the id of its own run, and each of its steps is written once."""
    rlm = RLM(QUESTION, subs={"claims": "passage -> claims: list[str]"}, limits=Limits(max_concurrency=3))
    with RunLog(path):
        prediction = play(rlm, deep(), question="?").prediction
    (record,) = read_log(path)
    assert [step.model_dump() for step in record.trajectory] == prediction.trajectory
    assert record.usage.model_dump() == prediction.usage
    calls = record.trajectory[0].calls
    assert [(call.kind, len(call.steps), call.cached) for call in calls] == [
        *[("child", 1, False)] * 2,
        *[("query", 0, False), ("query", 0, True)],
    ]
    assert [len(call.steps[0].calls) for call in calls[:2]] == [3, 3]
    found = events(path)
    assert sum(event["event"] == "turn_ended" for event in found) == 3
    assert sum(event["event"] == "subcall_ended" for event in found) == 4 + 2 * 3
    roles = {event["role"] for event in found if event["event"] == "lm_ended"}
    assert roles == {"act", "query", "child.act", "child.claims"}


def test_sub_calls_that_a_limit_refuses_are_told(play: Play, path: Path) -> None:
    code = "try:\n    llm_query_batched(['a', 'b', 'c'])\nexcept SubCallError as e:\n    SUBMIT(answer=7)"
    with RunLog(path):
        play(RLM(QUESTION, limits=Limits(max_llm_calls=1)), [block(code)], question="?")
    errors = [event["subcall"]["error"] for event in events(path) if event["event"] == "subcall_ended"]
    assert len(errors) == 3
    assert all("1 of 1 model calls are left" in error or "1 are left" in error for error in errors)
    (record,) = read_log(path)
    assert [call.error for call in record.trajectory[0].calls] == errors


class Accounting(RLM):
    """Keeps a step that no turn gave before its first turn, and another when it fails."""

    async def _converse(self, port: Any, run: Any) -> dspy.Prediction:
        run.add(Step(output="an account"))
        try:
            return await super()._converse(port, run)
        except dspy.LMError:
            run.add(Step(output="what is left"))
            raise


def test_steps_that_no_turn_gave_stand_where_they_were_added(play: Play, path: Path) -> None:
    replies: list[Reply] = [block("print(1)"), RuntimeError("gone")]
    with RunLog(path), pytest.raises(dspy.LMError) as raised:
        play(Accounting(QUESTION), replies, question="?")
    (record,) = read_log(path)
    assert [step.output for step in record.trajectory] == ["an account", "1", "what is left"]
    assert [step.model_dump() for step in record.trajectory] == raised.value.trajectory
    assert sum(event["event"] == "step_added" for event in events(path)) == 2


# What it survives


async def test_many_runs_at_once_do_not_mix(path: Path) -> None:
    """50 on one event loop: each line is whole, each record is its own run's."""
    rlm = RLM("n: int -> answer: int", interpreter_factory=LocalPythonInterpreter)

    def reply(messages: Messages) -> str:
        return block("SUBMIT(answer=n * 2)") if len(messages) > 3 else block("print(n, 'x' * 2_000)")

    with RunLog(path), dspy.context(lm=ScriptedLM(reply, seconds=0.01)):
        found = await asyncio.gather(*(rlm.acall(n=n) for n in range(50)))
    assert [prediction.answer for prediction in found] == [n * 2 for n in range(50)]
    assert len(events(path)) == 50 * 12
    records = read_log(path)
    assert {record.inputs["n"]: record.outputs["answer"] for record in records} == {
        str(n): n * 2 for n in range(50)
    }
    for record in records:
        assert record.trajectory[0].output.split() == [record.inputs["n"], "x" * 2_000]
        assert record.usage.calls == 2


def test_threads_write_to_one_file(path: Path) -> None:
    rlm = RLM("n: int -> answer: int", interpreter_factory=LocalPythonInterpreter)
    with RunLog(path), dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(answer=n)"), seconds=0.01)):
        dspy.Parallel(num_threads=8, disable_progress_bar=True)([(rlm, {"n": n}) for n in range(24)])
    assert sorted(record.outputs["answer"] for record in read_log(path)) == list(range(24))


def test_two_logs_hold_the_same_runs(tmp_path: Path) -> None:
    rlm = RLM(QUESTION, interpreter_factory=LocalPythonInterpreter)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    with RunLog(one), RunLog(two), dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(answer=1)"))):
        rlm(question="?")
        rlm(question="?")
    first, second = ([r.model_dump(exclude={"started_at"}) for r in read_log(path)] for path in (one, two))
    assert first == second  # each log notes the time of day for itself
    assert len(read_log(one)) == 2


def test_a_log_that_cannot_be_written_breaks_no_run_and_says_so_once(
    play: Play, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "there" / "runs.jsonl"
    path.parent.mkdir()
    log = RunLog(path)
    path.unlink()
    path.parent.rmdir()
    with log, caplog.at_level(logging.WARNING, "dspy"), listened_to(caplog):
        assert play(RLM(QUESTION), [block("SUBMIT(answer=1)")], question="?").prediction.answer == 1
    (said,) = [line for line in caplog.messages if "log" in line]
    assert str(path) in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_breaks_no_run_and_is_told_once(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """As an error: the command line shows no warnings."""
    with RunLog("/dev/full"):
        assert play(RLM(QUESTION), [block("SUBMIT(answer=1)")], question="?").prediction.answer == 1
    assert [record.levelname for record in caplog.records if "/dev/full" in record.message] == ["ERROR"]


def test_a_log_in_a_folder_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RunLog(tmp_path / "missing" / "runs.jsonl")


def test_a_log_goes_on_behind_a_torn_line(path: Path) -> None:
    """The first run's last line was cut; the second run's first is not glued to it."""
    rlm = RLM(QUESTION, interpreter_factory=LocalPythonInterpreter)
    for answer in (1, 2):
        with RunLog(path), dspy.context(lm=ScriptedLM([block(f"SUBMIT(answer={answer})")])):
            rlm(question="?")
        if answer == 1:
            path.write_bytes(path.read_bytes()[:-40])
    assert [(record.stop, record.outputs) for record in read_log(path)] == [
        ("killed", {}),
        ("submitted", {"answer": 2}),
    ]


def test_values_that_json_does_not_know_are_written_all_the_same(play: Play, path: Path) -> None:
    signature = dspy.Signature(
        {"x": (Any, dspy.InputField()), "ratio": (float, dspy.OutputField()), "text": (str, dspy.OutputField())}
    )
    with RunLog(path):
        play(RLM(signature), [block("SUBMIT(ratio=float('nan'), text='\\ud800\\u2028')")], x={object, 1j})
    (record,) = read_log(path)
    assert record.outputs == {"ratio": "NaN", "text": "?\u2028"}


def test_no_secret_of_an_lm_or_of_the_environment_is_written(
    play: Play, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted in the LM's settings, its headers, the environment; then told by an error and printed by code."""
    planted = ["sk-planted-1", "planted-2-planted", "planted-3-planted"]
    monkeypatch.setenv("PLANTED_API_KEY", planted[2])
    told = RuntimeError(f"wrong key {planted[0]}, or {planted[1]}")
    lm = ScriptedLM([block(f"print('{planted[2]}')"), told])
    lm.kwargs |= {"api_key": planted[0], "extra_headers": {"Authorization": f"Bearer {planted[1]}"}}
    with RunLog(path), pytest.raises(dspy.LMError):
        play(RLM(QUESTION), lm, question="?")
    written = path.read_text(encoding="utf-8")
    assert [secret for secret in planted if secret in written] == []
    assert written.count("***") >= 6
    (record,) = read_log(path)
    assert record.trajectory[0].output == "***"


def test_what_only_looks_like_a_key_is_in_no_error_of_the_log(play: Play, path: Path) -> None:
    """A server quotes a key that no LM here is set to: in the events of the call, of the turn and of the run."""
    lm = ScriptedLM([RuntimeError("refused: Bearer planted-planted-1, sk-planted-planted-planted-2")])
    with RunLog(path), pytest.raises(dspy.LMError):
        play(RLM(QUESTION), lm, question="?")
    written = path.read_text(encoding="utf-8")
    assert "planted" not in written
    assert written.count("refused: Bearer ***, ***") == 3


def test_a_child_of_a_run_with_an_output_field_named_stop_is_still_recorded(play: Play, path: Path) -> None:
    """The prediction's `stop` is the user's then; the log has both."""
    with RunLog(path):
        play(RLM("question -> stop: int, usage: str"), [block("SUBMIT(stop=1, usage='u')")], question="?")
    (record,) = read_log(path)
    assert (record.stop, record.outputs) == ("submitted", {"stop": 1, "usage": "u"})


def test_ask_writes_a_log_and_says_so_before_it_asks_if_it_cannot(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("some words", encoding="utf-8")
    log = tmp_path / "run.jsonl"
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer='42')")])):
        command = ["ask", "How much?", str(text), "--interpreter", "local", "--log"]
        done = CliRunner().invoke(app, [*command, str(log)])
        refused = CliRunner().invoke(app, [*command, str(tmp_path / "missing" / "run.jsonl")])
    assert (done.exit_code, done.stdout) == (0, "42\n")
    (record,) = read_log(log)
    assert (record.inputs["question"], record.outputs) == ("How much?", {"answer": "42"})
    assert (refused.exit_code, "--log" in refused.stderr) == (2, True)


def test_calls_of_tools_are_in_the_log_and_in_the_record_read_from_it(play: Play, path: Path) -> None:
    def double(n: int) -> int:
        return 2 * n

    code = "double(n=2)\ntry:\n    double('x', 'y')\nexcept TypeError:\n    SUBMIT(answer=1)"
    with RunLog(path):
        prediction = play(RLM(QUESTION, tools=[double]), [block(code)], question="?").prediction
    told = [event["tool"] for event in events(path) if event["event"] == "tool_ended"]
    assert [(tool["name"], tool["result"], tool["error_type"]) for tool in told] == [
        ("double", "4", ""),
        ("double", "", "TypeError"),
    ]
    (record,) = read_log(path)
    assert [step.model_dump() for step in record.trajectory] == prediction.trajectory
    assert len(record.trajectory[0].tool_calls) == 2
