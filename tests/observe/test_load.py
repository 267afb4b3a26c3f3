"""Opening what runs left behind: our records, our logs, the logs of rlms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.load import load_records
from rlm_dspy.observe.record import recorded
from rlm_dspy.observe.rlms_log import read_rlms_log, records_of
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from rlm_dspy.observe.record import Record

LOOKED_INTO = {"input_chars", "left_out", "occurrences"}
RLMS = Path(__file__).parents[1] / "data" / "rlms.jsonl"
"""A real log of rlms 0.1.3, made by `data/make_rlms_log.py`: the models' replies are from a script."""


@pytest.fixture
def answered(tmp_path: Path) -> tuple[Path, Path, Record]:
    """Return the event log and the saved record of one run, and the record."""
    rlm = RLM("question -> answer: int", interpreter_factory=LocalPythonInterpreter)
    log, saved = tmp_path / "one", tmp_path / "two"
    with RunLog(log), dspy.context(lm=ScriptedLM([block("SUBMIT(answer=1)")])):
        record, _ = recorded(rlm, {"question": "?"}, Ledger(rlm.limits))
    record.save(saved)
    return log, saved, record


def test_a_file_is_known_by_what_it_holds(answered: tuple[Path, Path, Record], tmp_path: Path) -> None:
    log, saved, record = answered
    assert load_records(saved) == [record]
    only_on_record = {"started_at", *LOOKED_INTO}
    (read,) = load_records(log)
    assert read.model_dump(exclude=only_on_record) == record.model_dump(exclude=only_on_record)
    on_one_line = tmp_path / "three"
    on_one_line.write_text(record.model_dump_json(), encoding="utf-8")
    assert load_records(on_one_line) == [record]
    assert len(load_records(RLMS)) == 2


@given(data=st.binary(max_size=200))
def test_a_file_that_holds_no_run_is_refused_with_what_is_taken(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "other"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="holds no run"):
        load_records(path)


@pytest.mark.parametrize("text", ['{"type": "iteration"}', '{"event": "run_started"}', '{"v": 1, "event": "x"}'])
def test_what_only_begins_like_a_log_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"rlms|version|no log"):
        load_records(path)


def test_the_iterations_of_rlms_are_steps() -> None:
    first, _ = read_rlms_log(RLMS)
    assert (first.stop, first.outputs, first.model) == ("submitted", {"answer": "blue"}, "scripted")
    assert first.instructions.startswith("Answer the following: The root asks: which colour?")
    assert first.inputs == {"context": "blue is a colour"}
    assert [(step.kind, step.reasoning) for step in first.trajectory] == [
        ("no_code", "I think before I look."),
        ("error", "Two blocks.\nand"),
        ("output", "I ask."),
        ("submitted", "Done."),
    ]
    assert first.trajectory[1].code == "print(len(context))\nword = context.split()[0]\n\n1 / 0"
    assert first.trajectory[1].output == "16\nZeroDivisionError: division by zero"
    times = [step.started for step in first.trajectory]
    assert times[0] == 0.0
    assert times == sorted(times)


def test_the_sub_calls_of_rlms_are_sub_calls_and_its_children_have_steps() -> None:
    """The failed call of the batch is not there: rlms does not log it."""
    first, _ = read_rlms_log(RLMS)
    query, child = first.trajectory[2].calls
    assert (query.kind, query.inputs, query.output, query.error) == ("query", {"prompt": "SAY blue"}, "blue", "")
    assert (child.kind, child.output, child.stop) == ("child", "7", "submitted")
    assert [step.output for step in child.steps] == ["CHILD counts", ""]
    assert child.steps[0].started >= first.trajectory[2].started
    assert (first.usage.calls, first.usage.input_tokens, first.usage.cost) == (3, 30, None)
    assert first.usage.by_role["child"].calls == 2


def test_an_answer_that_rlms_asked_for_after_the_last_turn_is_extracted() -> None:
    _, second = read_rlms_log(RLMS)
    assert (second.stop, second.outputs) == ("extracted", {"answer": "A guess at the end."})
    assert [step.kind for step in second.trajectory] == ["no_code"] * 4


def test_a_cut_log_of_rlms_gives_what_there_was(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    lines = RLMS.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:-50])
    (record,) = load_records(path)
    assert (record.stop, len(record.trajectory)) == ("killed", 2)


def test_the_metadata_of_a_completion_of_rlms_opens_too(tmp_path: Path) -> None:
    """`RLMChatCompletion.metadata`, as a child's is kept in its parent's log."""
    lines = [json.loads(line) for line in RLMS.read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "metadata"
    held: dict[str, Any] = {"run_metadata": lines[0], "iterations": lines[1:5]}
    path.write_text(json.dumps(held, indent=1), encoding="utf-8")
    assert load_records(path) == read_rlms_log(RLMS)[:1]


def test_a_failure_that_rlms_tells_in_words_is_an_error() -> None:
    call = {"prompt": ["x"], "response": "Error: LM query failed at max depth - no", "usage_summary": {}}
    block_of_code = {"code": "1", "result": {"stdout": "", "stderr": "", "rlm_calls": [call]}}
    line = {
        "type": "iteration",
        "iteration": 1,
        "timestamp": "2026-01-01T00:00:00",
        "code_blocks": [block_of_code],
    }
    ((step,),) = (record.trajectory for record in records_of({}, [line]))
    assert (step.calls[0].output, step.calls[0].error) == ("", call["response"])
