"""The study of optimizers with the embedded model: its teacher, its conditions, its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiment" / "study"))

import optimize_report  # scripts of that folder are run, not installed
from optimize import ALL, ENGINES, FAMILIES, SIGNATURE, conditions, examples, right, tasks_of
from scripted_teacher import scripted_teacher

from rlm_dspy.optimize import TrajectoryFewShot


@pytest.mark.parametrize("engine", ENGINES)
def test_the_teacher_finds_the_answers_of_training_tasks_by_code(engine: str) -> None:
    """One of each family, through either library; it never sees an answer."""
    found = examples(tasks_of(ALL, "train", len(FAMILIES), 3_000), engine)
    with dspy.context(lm=scripted_teacher()):
        answers = [ENGINES[engine](SIGNATURE)(**example.inputs()) for example in found]
    assert [right(example, answer) for example, answer in zip(found, answers, strict=True)] == [True] * 4


def test_a_compile_on_all_families_shows_each_way_of_solving() -> None:
    """Four demos, four programs: not four times the shortest."""
    optimizer = TrajectoryFewShot(right, max_demos=4)
    with dspy.context(lm=scripted_teacher()):
        compiled = optimizer.compile(
            ENGINES["ours"](SIGNATURE), trainset=examples(tasks_of(ALL, "train", 8, 3_000), "ours")
        )
    assert len({demo.trajectory.steps[0].code for demo in compiled.act.demos}) == 4


def test_held_out_tasks_share_no_question_with_those_that_are_trained_on() -> None:
    """Nor with each other."""
    asked = [{task.question for task in tasks_of(ALL, split, 24, 3_000)} for split in ("train", "dev", "final")]
    assert sum(map(len, asked)) == len(set.union(*asked))


def test_no_condition_is_measured_twice() -> None:
    """Each is a row of the table."""
    every = list(conditions())
    assert len(every) == len(set(every))


def test_the_table_has_intervals_and_names_what_does_not_compile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row a condition, also of an optimizer that raised."""
    condition = {"engine": "ours", "optimizer": "none", "teacher": "itself", "trained_on": "count"}
    condition |= {"family": "count", "signature": SIGNATURE}
    told: dict[str, Any] = {
        "chars": 10,
        "prompt_chars": 5,
        "seconds": 1.0,
        "compile_seconds": 0.0,
        "stop": "submitted",
    }
    rows = [{"condition": condition, "task": n, "right": n < 3, **told} for n in range(4)]
    failed = {
        "condition": {**condition, "optimizer": "mipro"},
        "task": None,
        "chars": 10,
        "error": "ValueError: no",
    }
    optimize_report.report([failed, *rows], tmp_path / "OPTIMIZE.md")
    written = (tmp_path / "OPTIMIZE.md").read_text()
    assert "| 3 of 4 | 30% to 95% |" in written
    assert "| does not compile |" in written
    assert written.strip() == capsys.readouterr().out.strip()


@pytest.mark.parametrize("row", ["RLM, MIPROv2", "RLM, TrajectoryFewShot"])
def test_the_bench_of_compiles_plays_its_script_to_the_end(row: str) -> None:
    """Its scripted model tells turns from an optimizer's questions, which quote turns."""
    bench = Path(__file__).parents[2] / "experiment" / "bench" / "compile.py"
    command = [sys.executable, str(bench), "--row", row, "--count", "40", "--chars", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["longest_prompt_chars"] < 30_000
