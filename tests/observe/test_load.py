"""Opening what runs left behind: records and event logs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.load import load_records
from rlm_dspy.report.record import recorded
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from rlm_dspy.report.record import Record

LOOKED_INTO = {"input_chars", "left_out", "occurrences"}
RLMS = Path(__file__).parents[1] / "data" / "rlms.jsonl"
"""A log of another library, whose format is not read here."""


@pytest.fixture
def answered(tmp_path: Path) -> tuple[Path, Path, Record]:
    """Return the event log and the saved record of one run, and the record."""
    rlm = RLM("question -> answer: int", interpreter_factory=LocalPythonInterpreter)
    log, saved = tmp_path / "one", tmp_path / "two"
    with RunLog(log), dspy.context(lm=ScriptedLM([block("SUBMIT(answer=1)")])):
        record, _ = recorded(rlm, {"question": "?"})
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


@given(data=st.binary(max_size=200))
def test_a_file_that_holds_no_run_is_refused_with_what_is_taken(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "other"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="contains no run"):
        load_records(path)


def test_a_log_of_another_library_is_refused() -> None:
    with pytest.raises(ValueError, match="contains no run"):
        load_records(RLMS)


@pytest.mark.parametrize("text", ['{"type": "iteration"}', '{"event": "run_started"}', '{"v": 1, "event": "x"}'])
def test_what_only_begins_like_a_log_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"no run|version|not a log"):
        load_records(path)
