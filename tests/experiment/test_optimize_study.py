"""The study of policies and optimizers with a small model: its questions, its mechanics, its tables."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiment" / "study"))

import optimize  # scripts of that folder are run, not installed
import optimize_report
import starter
import starter_rows
import study_questions
from wordings import WORDINGS

from rlm_dspy.signatures import read_policy
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from family_words import Split

    from rlm_dspy.testing import Messages


def solver(*splits: Split) -> ScriptedLM:
    """Return a model that knows the answers of some splits, and has one idea for all instructions."""
    known = {q.task.question: q.task.answer for split in splits for q in study_questions.questions(split, 24, 3)}

    def reply(messages: Messages) -> str:
        asked = str(messages[-1]["content"])
        wanted = re.findall(r"\[\[ ## (\w+) ## \]\]", asked.partition("Respond with")[2])
        if wanted and "code" not in wanted:  # an optimizer's question, not a turn
            return "\n\n".join(f"[[ ## {name} ## ]]\nLook closely." for name in wanted)
        answer = next((gold for question, gold in known.items() if question in asked), "?")
        block = f"```python\nSUBMIT(answer={answer!r} + context[:0])\n```"
        return f"[[ ## reasoning ## ]]\nx\n\n[[ ## code ## ]]\n{block}" if wanted else f"I know it.\n{block}"

    return ScriptedLM(reply)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the study write into a folder of the test, over short texts and few training questions."""
    file = tmp_path / "results" / "optimize.jsonl"
    for module in (optimize, optimize_report):
        monkeypatch.setattr(module, "RESULTS", file)
    for name, value in {"TRAIN": 4, "DEV": 2, "DEMOS": 2}.items():
        monkeypatch.setattr(optimize, name, value)
    starter.main(tmp_path / "candidate.json")
    monkeypatch.setitem(optimize.POLICIES, "candidate", tmp_path / "candidate.json")
    monkeypatch.setattr(study_questions, "CHARS", dict.fromkeys(study_questions.CHARS, 3_000))
    return file


def test_an_early_end_leaves_kinds_and_wordings_balanced() -> None:
    """After any number of questions."""
    asked = [
        (question.kind, question.wording) for question in study_questions.questions("final", 40, len(WORDINGS))
    ]
    assert len(set(asked)) == 12
    for end in range(12, len(asked) + 1):
        kinds, wordings = (Counter(names) for names in zip(*asked[:end], strict=True))
        assert max(kinds.values()) - min(kinds.values()) <= 1
        assert max(wordings.values()) - min(wordings.values()) <= 4


def test_each_question_is_asked_in_each_wording_with_one_answer() -> None:
    """Of the same text."""
    asked = list(study_questions.questions("final", 8, len(WORDINGS)))
    for number in range(8):
        same = [question for question in asked if question.number == number]
        assert {question.wording for question in same} == set(WORDINGS)
        assert len({(question.task.context, question.task.answer) for question in same}) == 1
        assert len({question.task.question for question in same}) == 3


def test_held_out_questions_share_no_wording_with_those_that_are_trained_on() -> None:
    """Nor with each other."""
    asked = [{q.task.question for q in study_questions.questions(s, 24, 3)} for s in study_questions.FIRST_SEED]
    assert sum(map(len, asked)) == len(set.union(*asked)) == 3 * 72


def test_no_condition_is_measured_twice() -> None:
    """Each is a row of the table of its split; a compiled one has a file of its own."""
    every = [(condition, part.split) for part in optimize.PARTS.values() for condition in part.conditions]
    assert len(set(every)) == len(every)
    compiled = [condition for condition, _ in every if condition.optimizer != "none"]
    assert len({condition.file for condition in compiled}) == len(compiled)


@pytest.mark.parametrize("part", optimize.PARTS)
def test_every_part_compiles_asks_and_goes_on_where_it_ended(
    part: str, results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All conditions answer a question before the next is asked; a second start asks and compiles nothing."""
    chosen = optimize.PARTS[part]
    lm = solver("train", chosen.split)
    optimize.run(chosen, 3, lambda _, __: lm)
    rows = optimize_report.rows()
    first, *others = (
        [each for each in chosen.conditions if each.kind in (None, kind)] for kind in study_questions.KINDS
    )
    assert [row["number"] for row in rows[: len(first)]] == [0] * len(first)
    assert len(rows) == chosen.rounds * (len(first) + sum(map(len, others[:2])))
    assert all(row["right"] and row["stop"] != "failed" for row in rows), rows
    calls = len(lm.history)
    optimize.run(chosen, 3, lambda _, __: lm)
    assert optimize_report.rows() == rows
    assert len(lm.history) == calls
    results.write_text("\n".join(results.read_text().splitlines()[:-1]) + "\n")
    optimize.run(chosen, 3, lambda _, __: lm)
    assert len(optimize_report.rows()) == len(rows)
    optimize_report.report(rows, tmp_path / "OPTIMIZE.md")
    written = (tmp_path / "OPTIMIZE.md").read_text()
    each = (1 if first[0].kind else 3) * chosen.rounds
    assert written.count(f"| {each} of {each} |") >= len(first)
    assert written in capsys.readouterr().out


def test_demos_come_from_the_models_own_right_runs(results: Path) -> None:
    """As many as a run shows, or a pool of which each run shows the nearest."""
    del results
    lm = solver("train")
    few, nearest, bootstrap = (
        optimize.compiled(condition, lambda _, __: lm) for condition in optimize.PARTS["own-teacher"].conditions
    )
    assert (len(few.act.demos), len(nearest.act.demos), len(bootstrap.act.demos)) == (2, 4, 2)
    assert (few.demos_per_run, nearest.demos_per_run) == (None, 2)


def test_an_optimizer_that_fails_is_told_and_the_others_are_asked(
    results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once, however often the study is begun."""
    del results

    def fail(_: optimize.Compile) -> None:
        raise RuntimeError("no room")

    monkeypatch.setitem(optimize.OPTIMIZERS, "bootstrap", fail)
    lm = solver("train", "final")
    for _ in range(2):
        optimize.run(optimize.PARTS["dspy.RLM"], 2, lambda _, __: lm)
    rows = optimize_report.rows()
    assert [row["number"] for row in rows] == [None, 0, 1]
    optimize_report.report(rows, tmp_path / "OPTIMIZE.md")
    written = (tmp_path / "OPTIMIZE.md").read_text()
    assert "- dspy.RLM, qwen2.5-coder-1.5b, none, bootstrap: RuntimeError: no room" in written


def test_the_command_names_the_parts_that_there_are() -> None:
    """Instead of a KeyError."""
    script = Path(optimize.__file__)
    done = subprocess.run([sys.executable, str(script), "gepa"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "own-teacher" in done.stderr


@pytest.mark.parametrize(
    "row", [pytest.param("RLM, MIPROv2", marks=pytest.mark.by_hand), "RLM, TrajectoryFewShot"]
)
def test_the_bench_of_compiles_plays_its_script_to_the_end(row: str) -> None:
    """Its scripted model tells turns from an optimizer's questions, which quote turns."""
    bench = Path(__file__).parents[2] / "experiment" / "bench" / "compile.py"
    command = [sys.executable, str(bench), "--row", row, "--count", "40", "--chars", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["longest_prompt_chars"] < 30_000


def test_the_starters_runs_submit_what_they_printed() -> None:
    """One demo each; a run that submits anything else raises."""
    assert len(starter.program().act.demos) == sum(
        map(len, (starter.RUNS, starter_rows.ROWS_RUNS, starter_rows.ENTRIES_RUNS))
    )
    wrong = dataclasses.replace(starter.RUNS[0], answer="Rosa Roth")
    with pytest.raises(ValueError, match=r"Expected Rosa Roth, saw Which people .* -> Tove, Ravi"):
        starter.demos((wrong,))


def test_the_starter_writes_the_policy_that_is_shipped_for_the_coders(tmp_path: Path) -> None:
    """A change of its runs is shipped, or is not kept."""
    starter.main(tmp_path / "policy.json")
    assert read_policy(tmp_path / "policy.json")["act"] == read_policy("small-coders")["act"]
