"""The converter of logs of rlms: their turns, sub-calls and children are steps of records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiment"
sys.path.insert(0, str(EXPERIMENT))

from rlms_log import read_rlms_log, records_of  # noqa: E402  # scripts of that folder are run, not installed

from rlm_dspy.observe.load import load_record  # noqa: E402

RLMS = Path(__file__).parents[1] / "data" / "rlms.jsonl"
"""A real log of rlms 0.1.3, made by `data/make_rlms_log.py`: the models' replies are from a script."""


def test_the_script_writes_a_record_for_each_run(tmp_path: Path) -> None:
    command = [sys.executable, str(EXPERIMENT / "rlms_log.py"), str(RLMS), "--folder", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    paths = [tmp_path / "runs" / f"run-{number}.json" for number in (1, 2)]
    assert done.stdout.split() == list(map(str, paths))
    assert [load_record(path) for path in paths] == read_rlms_log(RLMS)


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
    (record,) = read_rlms_log(path)
    assert (record.stop, len(record.trajectory)) == ("killed", 2)


def test_the_metadata_of_a_completion_of_rlms_opens_too(tmp_path: Path) -> None:
    """`RLMChatCompletion.metadata`, as a child's is kept in its parent's log."""
    lines = [json.loads(line) for line in RLMS.read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "metadata"
    held: dict[str, Any] = {"run_metadata": lines[0], "iterations": lines[1:5]}
    path.write_text(json.dumps(held, indent=1), encoding="utf-8")
    assert read_rlms_log(path) == read_rlms_log(RLMS)[:1]


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
