"""`rlm-dspy optimize`: the program, the examples, the metric and the options that it is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlm_dspy.optimize.datasets import read_examples
from rlm_dspy.testing import ScriptedLM
from tests.cli.optimizing import PROGRAM, optimize, program_folder  # noqa: F401  # a fixture
from tests.optimize.matrix_programs import ScriptedActor

pytestmark = pytest.mark.usefixtures("program_folder")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer", "magic"], "choose one of trajectories, labeled"),
        (["--metric", "missing"], "No function 'missing'"),
        (["--dev", "nothing.jsonl"], "nothing.jsonl"),
        (["--inputs", "pages"], "line 1: the input 'pages' is missing"),
        (["--inputs", "context,question,answer"], "example 1: the labels []"),
        (["--inputs", "context"], "the program's outputs ['answer']"),
        (["--held-out", "train.jsonl"], "were seen before"),
        (["--out", "train.jsonl"], "already exists"),
        (["--out", "train.jsonl", "--held-out", "test.jsonl"], "Invalid policy"),
        (["--state", "train.jsonl"], "this is an input file"),
        (["--state", "no/such/folder/state.json"], "does not exist"),
        (["--out", "text.txt/mine.json"], "cannot create its folder"),
        (["--predictor", "other.act"], "name one of ['act']"),
        (["--log-dir", "train.jsonl"], "--log-dir train.jsonl: cannot create the folder"),
    ],
)
def test_bad_usage_is_told_in_a_line(arguments: list[str], said: str) -> None:
    """Before anything was paid."""
    lm = ScriptedActor()
    done = optimize("--yes", *arguments, lm=lm)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert lm.script.calls == []
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("program = 1", "no dspy.Module named"),
        ("import dspy\nprogram = dspy.Predict('a -> b')", "contains no RLM"),
        ("program = 1 / 0", "program.py failed: ZeroDivisionError"),
        (
            f"{PROGRAM}\ndef metric(gold, pred, trace, name, more): return 1.0",
            "missing a required argument: 'name'",
        ),
        (f"{PROGRAM}\nclass P(dspy.Module):\n    pass", "name 'dspy' is not defined"),
    ],
)
def test_a_file_without_a_program_is_refused(content: str, said: str) -> None:
    """The message says what is missing."""
    Path("program.py").write_text(content)
    assert said in optimize("--yes").stderr


PARAMETERS = """
import dspy
from rlm_dspy import RLM

class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.find = RLM("context, question -> answer", policy=None)

    def forward(self, {parameters}):
        return self.find(context=context, question=question)

program = Program()
"""


def test_the_inputs_are_what_a_program_cannot_do_without() -> None:
    """What it names alone is no input; what it does not name has to be told."""
    Path("program.py").write_text(PARAMETERS.format(parameters="context, question, topic=None, **more"))
    assert "3 pilot runs scored" in optimize("--yes").stderr
    Path("program.py").write_text(PARAMETERS.format(parameters="**given"))
    assert "pass --inputs" in optimize("--yes", "--out", "other.json").stderr


WITH_DEFAULT = """
import dspy

signature = program.signature.append("sep", dspy.InputField(default=","), str)
program = RLM(signature, limits=program.limits, policy=None)
"""


def test_an_input_with_a_default_may_be_left_out() -> None:
    """As in a call of the RLM; where it is given, it is an input and no label."""
    Path("program.py").write_text(PROGRAM + WITH_DEFAULT)
    line = Path("train.jsonl").read_text().splitlines()[0]
    with Path("train.jsonl").open("a") as data:
        data.write(json.dumps({**json.loads(line), "question": "key k5", "answer": "v5", "sep": ";"}) + "\n")
    done = optimize("--yes")
    assert done.exit_code == 0, done.output
    Path("train.jsonl").write_text('{"question": "key k5", "answer": "v5"}\n')
    assert "the input 'context' is missing" in optimize("--yes", "--out", "other.json").stderr


def test_names_of_inputs_may_have_spaces_between() -> None:
    assert "3 pilot runs scored" in optimize("--yes", "--inputs", "context, question").stderr


def test_a_folder_of_another_job_is_not_gone_on_with() -> None:
    """GEPA would take the other's candidates for this one's."""
    given = ["--yes", "--pilots", "1", "--log-dir", "log", "--optimizer", "gepa"]
    assert "another job" not in optimize(*given).stderr
    Path("mine.json").unlink(missing_ok=True)
    assert "another job" not in optimize(*given).stderr
    Path("mine.json").unlink(missing_ok=True)
    Path("program.py").write_text(PROGRAM.replace("-> answer", "-> answer, why: str | None"))
    done = optimize(*given)
    assert (done.exit_code, "another job" in done.stderr) == (2, True)


def test_a_file_that_is_not_utf_8_is_told_by_name() -> None:
    Path("train.jsonl").write_bytes('{"context": "caf\u00e9"}'.encode("latin-1"))
    assert "train.jsonl is not UTF-8" in optimize("--yes").stderr


@pytest.mark.parametrize(
    "written", ["\ufeff{0}\n{0}", "{0}\n\n{0}\n", '{0}\n{{"context": "a\u2028b", "question": "?"}}']
)
def test_lines_of_json_are_read_whatever_stands_around_and_in_them(written: str) -> None:
    """A byte order mark, blank lines, and Unicode's own line separators."""
    Path("some.jsonl").write_text(written.format('{"context": "c", "question": "q"}'), encoding="utf-8")
    assert len(read_examples("some.jsonl", ["context", "question"])) == 2


@pytest.mark.parametrize(
    ("gives", "said"), [("40.0", "returned 40; it must return scores"), ("float('nan')", "returned nan")]
)
def test_a_metric_that_is_of_no_use_is_told_after_the_pilots(gives: str, said: str) -> None:
    """Not when all is paid for."""
    Path("program.py").write_text(f"{PROGRAM}\ndef metric(example, prediction, trace=None):\n    return {gives}\n")
    lm = ScriptedActor()
    done = optimize("--yes", "--pilots", "1", lm=lm)
    assert (done.exit_code, sum(lm.runs.values())) == (2, 1), done.output
    assert said in done.stderr


def test_labels_are_read_into_the_types_of_the_outputs() -> None:
    """A label that has another type would never be equal."""
    Path("program.py").write_text(PROGRAM.replace("-> answer", "-> answer: int"))
    Path("train.jsonl").write_text('{"context": "a", "question": "b", "answer": "3"}\n')
    four = ScriptedLM(lambda _: "```python\nSUBMIT(answer=3)\n```")
    assert "1 pilot runs scored 1" in optimize("--yes", lm=four).stderr
    Path("train.jsonl").write_text('{"context": "a", "question": "b", "answer": "x"}\n')
    assert "train.jsonl, example 1: expected int" in optimize("--yes", lm=four).stderr
