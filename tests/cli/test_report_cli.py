"""The commands `report` and `diff`, and `ask --report`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dspy
import pytest
from typer.testing import CliRunner

from rlm_dspy.artifacts import Artifacts
from rlm_dspy.cli.app import app
from rlm_dspy.cli.options import OutputOptions
from rlm_dspy.cli.user.answer import give_answer
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.observe.load import load_record
from rlm_dspy.report.record import Record
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.text import write_whole
from rlm_dspy.trajectory import Step

if TYPE_CHECKING:
    from typer.testing import Result

LOOK = "I look first.\n```python\nprint(context[:40])\n```"
SUBMIT_42 = "```python\nSUBMIT(answer='42, as ever')\n```"
TEXT = "The first line has nothing to say. The answer is 42, as ever.\n"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    Path("notes.txt").write_text(TEXT, encoding="utf-8")


def invoke(*arguments: str) -> Result:
    with dspy.context(lm=ScriptedLM([LOOK, SUBMIT_42]), interpreter_factory=LocalPythonInterpreter):
        return CliRunner().invoke(app, list(arguments))


def test_ask_writes_a_report_with_coverage_and_says_where() -> None:
    result = invoke("ask", "How much?", "notes.txt", "--report", "run.html")
    assert (result.exit_code, result.stdout) == (0, "42, as ever\n")
    assert result.stderr.endswith("The report is in run.html.\n")
    page = Path("run.html").read_text(encoding="utf-8")
    assert "I look first." in page
    assert "at 49 of context (79 %); not printed, not sent to a sub-call" in page


PLOT = (
    "import pathlib\nfolder = pathlib.Path('output/charts')\nfolder.mkdir(parents=True)\n"
    "(folder / 'a.png').write_bytes(b'drawn')\n(folder / 'a.csv').write_text('1,2')\nSUBMIT(answer='done')"
)


def test_files_of_a_run_are_written_shown_and_named() -> None:
    """By `--output-dir`, as pictures of the report, and in a saved run; without the option the user is told."""
    lm = ScriptedLM([f"```python\n{PLOT}\n```"] * 2)
    with dspy.context(lm=lm, interpreter_factory=PythonInterpreter):
        result = CliRunner().invoke(
            app, ["ask", "?", "notes.txt", "--output-dir", "made/here", "--save", "r.json"]
        )
        untold = CliRunner().invoke(app, ["ask", "?", "notes.txt"])
    assert result.exit_code == untold.exit_code == 0
    assert result.stderr.endswith("In made/here: 2 files of the run (charts/a.csv, charts/a.png).\n")
    assert Path("made/here/charts/a.png").read_bytes() == b"drawn"
    assert untold.stderr.endswith("--output-dir DIRECTORY writes such files.\n")
    assert invoke("report", "r.json").exit_code == 0
    page = Path("r.html").read_text(encoding="utf-8")
    assert 'alt="charts/a.png"' in page
    assert '<img src="data:image/png;base64,ZHJhd24="' in page
    assert "text/csv, 3 bytes" in page
    assert invoke("ask", "?", "--output-dir", "notes.txt").exit_code == 2


def test_a_saved_run_has_coverage_and_becomes_a_report_beside_it() -> None:
    assert invoke("ask", "How much?", "notes.txt", "--save", "run.json").exit_code == 0
    record = Record.load("run.json")
    assert record.input_chars["context"] == len(TEXT)
    assert record.trajectory[0].shown == (("context", 0, 40),)
    result = invoke("report", "run.json")
    assert (result.exit_code, result.stdout) == (0, "run.html\n")
    assert "How much?" in Path("run.html").read_text(encoding="utf-8")
    assert invoke("report", "run.json", "-o", "other.html").stdout == "other.html\n"
    assert Path("other.html").read_bytes() == Path("run.html").read_bytes()


def test_a_report_from_a_log_has_coverage_places_and_date_as_that_of_a_saved_run() -> None:
    assert invoke("ask", "How much?", "notes.txt", "--log", "run.jsonl").exit_code == 0
    assert invoke("report", "run.jsonl").exit_code == 0
    page = Path("run.html").read_text(encoding="utf-8")
    assert "at 49 of context (79 %); not printed, not sent to a sub-call" in page
    record = load_record("run.jsonl")
    assert record.input_chars == {"context": len(TEXT), "question": len("How much?")}
    assert record.trajectory[0].shown == (("context", 0, 40),)
    assert [place.start for place in record.occurrences["answer"]] == [49]
    assert record.started_at is not None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which nobody writes is needed")
def test_a_run_that_is_cut_short_in_a_folder_without_writing_is_kept_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its steps are paid for."""
    monkeypatch.chdir("/proc")
    record = Record(signature="question -> answer", inputs={}, model="m", stop="interrupted")
    assert give_answer(record, Artifacts(), OutputOptions(), quiet=True, log=None)
    (path,) = re.findall(r"Interrupted[.] The run is in (/.*interrupted[.]rlm[.]json)[.]", capsys.readouterr().err)
    assert Record.load(path).stop == "interrupted"


def test_a_failed_run_has_a_report_too() -> None:
    with dspy.context(
        lm=ScriptedLM([LOOK, RuntimeError("the line is dead")]), interpreter_factory=LocalPythonInterpreter
    ):
        result = CliRunner().invoke(app, ["ask", "How much?", "notes.txt", "--report", "run.html"])
    assert result.exit_code == 3
    page = Path("run.html").read_text(encoding="utf-8")
    assert "the line is dead" in page
    assert "I look first." in page


def test_a_report_that_cannot_be_written_is_refused_before_a_model_is_asked() -> None:
    lm = ScriptedLM([])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        result = CliRunner().invoke(app, ["ask", "How much?", "notes.txt", "--report", "missing/run.html"])
    assert (result.exit_code, lm.script.calls) == (2, [])
    assert "--report missing/run.html: directory missing does not exist" in result.stderr


def test_a_byte_that_is_not_utf8_does_not_lose_the_answer() -> None:
    """Python hands such a byte of the command line on as half of a surrogate pair."""
    half = "\udcff"
    turns = [f"{half}\n```python\nprint(question)\n```", "```python\nSUBMIT(answer=question)\n```"]
    with dspy.context(lm=ScriptedLM(turns), interpreter_factory=LocalPythonInterpreter):
        arguments = ["ask", f"How {half}?", "notes.txt", "--save", "run.json", "--report", "run.html"]
        result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (0, "How ??\n"), result.stderr
    assert Record.load("run.json").inputs["question"] == "How ??"
    assert "How ??" in Path("run.html").read_text(encoding="utf-8")


def test_halves_of_surrogate_pairs_anywhere_in_a_record_are_saved_as_question_marks() -> None:
    half = "\udcff"
    steps = [Step(reasoning=half, code=half, output=half)]
    record = Record(signature="a -> b", model="m", inputs={"a": half}, error=half, stop="failed", trajectory=steps)
    record.save("run.json")
    record = Record.load("run.json")
    assert (record.inputs, record.error, record.trajectory[0].output) == ({"a": "?"}, "?", "?")


@pytest.mark.parametrize("option", ["--save", "--report"])
def test_an_answer_is_printed_even_if_a_file_cannot_be_written(option: str) -> None:
    """Its directory is there at first; the code of the run removes it."""
    Path("out").mkdir()
    code = "```python\nimport os\nos.rmdir('out')\nSUBMIT(answer='42')\n```"
    with dspy.context(lm=ScriptedLM([code]), interpreter_factory=LocalPythonInterpreter):
        result = CliRunner().invoke(app, ["ask", "How much?", "notes.txt", option, "out/run"])
    assert (result.exit_code, result.stdout) == (3, "42\n")
    assert "Error: [Errno 2] There is no such folder" in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--save", "a", "--report", "./a"], "--report a: this is also the file of --save;"),
        (["--report", "a", "--log", "link"], "--log link: this is also the file of --report;"),
        (["--save", "notes.txt"], "--save notes.txt: this is an input file;"),
        (["--log", "there"], "--log there: the path is a directory;"),
    ],
)
def test_a_file_that_would_be_lost_is_refused_before_a_model_is_asked(options: list[str], told: str) -> None:
    Path("there").mkdir()
    Path("link").symlink_to("a")
    lm = ScriptedLM([])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        result = CliRunner().invoke(app, ["ask", "How much?", "notes.txt", *options])
    assert (result.exit_code, lm.script.calls, result.stdout) == (2, [], "")
    assert told in result.stderr
    assert Path("notes.txt").read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize("arguments", [["run.html"], ["run.html", "-o", "run.html"]])
@pytest.mark.parametrize("command", ["report", "diff"])
def test_a_page_does_not_overwrite_the_run_that_it_shows(command: str, arguments: list[str]) -> None:
    assert invoke("ask", "How much?", "notes.txt", "--save", "run.html").exit_code == 0
    both = ["run.html", *arguments, *(["-o", "run.html"] if "-o" not in arguments else [])]
    result = invoke(command, *(both if command == "diff" else arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "run.html: this is an input file;" in result.stderr
    assert Record.load("run.html").outputs == {"answer": "42, as ever"}


def test_a_symlink_stays_and_what_it_points_to_is_written() -> None:
    Path("old.json").write_text("old", encoding="utf-8")
    Path("link.json").symlink_to("old.json")
    write_whole("new", "link.json")
    assert (Path("link.json").is_symlink(), Path("old.json").read_text(encoding="utf-8")) == (True, "new")
    assert sorted(path.name for path in Path().iterdir()) == ["link.json", "notes.txt", "old.json"]


def test_a_pipe_is_written_to_and_stays() -> None:
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        write_whole("through\n", "pipe")
        assert reader.communicate(timeout=120)[0] == "through\n"
    assert Path("pipe").is_fifo()


def test_a_file_of_another_process_that_writes_the_same_is_left_alone() -> None:
    Path("run.json.part").write_text("another's", encoding="utf-8")
    write_whole("ours", "run.json")
    assert Path("run.json.part").read_text(encoding="utf-8") == "another's"


def test_diff_tells_and_draws_what_differs() -> None:
    assert invoke("ask", "How much?", "notes.txt", "--save", "a.json").exit_code == 0
    assert invoke("ask", "How many?", "notes.txt", "--save", "b.json").exit_code == 0
    result = invoke("diff", "a.json", "b.json", "-o", "d.html")
    assert result.exit_code == 0
    assert "input question\n    a How much?\n    b How many?" in result.stdout
    assert result.stdout.endswith("Side by side: d.html\n")
    assert "How many?" in Path("d.html").read_text(encoding="utf-8")


def test_two_runs_of_one_log_are_chosen_by_number_and_compared() -> None:
    for question in ("How much?", "How many?"):
        assert invoke("ask", question, "notes.txt", "--log", "runs.jsonl").exit_code == 0
    result = invoke("diff", "runs.jsonl", "runs.jsonl", "--run-a", "1", "--run-b", "2")
    assert result.exit_code == 0, result.stderr
    assert "input question\n    a How much?\n    b How many?" in result.stdout
    assert "runs.jsonl (run 2)" in result.stdout
    unchosen = invoke("diff", "runs.jsonl", "runs.jsonl", "--run-a", "1")
    assert (unchosen.exit_code, "--run-b 1 to --run-b 2" in unchosen.stderr) == (2, True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "File not found: run.json."),
        ("{", "run.json contains no run that this version can read."),
        ('{"version": 2}', "run.json contains no run that this version can read."),
        (b"\xff\xfe", "run.json contains no run that this version can read."),
    ],
)
@pytest.mark.parametrize("command", [["report", "run.json"], ["diff", "run.json", "run.json"]])
def test_what_is_no_run_is_named_in_a_line(command: list[str], content: str | bytes | None, told: str) -> None:
    if content is not None:
        Path("run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    result = invoke(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_sample_run_errs_is_refused_and_submits(tmp_path: Path) -> None:
    """The script that makes a run to look at, in a process of its own."""
    script = Path(__file__).parents[2] / "experiment" / "sample_run.py"
    done = subprocess.run(
        [sys.executable, script, "s.json", "s.html"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = Record.load(tmp_path / "s.json")
    assert record.stop == "submitted"
    assert {"error", "refused", "submitted"} <= {step.kind for step in record.trajectory}
    assert [place.value for place in record.occurrences["evidence"]].count("Gantry-7") > 1
    assert (tmp_path / "s.html").stat().st_size < 200_000
