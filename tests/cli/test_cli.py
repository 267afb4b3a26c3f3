"""The command line: what it prints where, what it reads, how it ends."""

from __future__ import annotations

import io
import json
import re
from importlib.metadata import version
from pathlib import Path

import dspy
import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.interpreters import ScriptedInterpreter
from rlm_dspy.observe.console import Lines, shortened, view_on
from rlm_dspy.report.record import Record
from rlm_dspy.text import printable
from tests.commands import (
    LOOK,
    SUBMIT_42,
    ask,
    record_of,
)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # as `main` does
    Path("notes.txt").write_text("The answer is 42.\n", encoding="utf-8")


# What is printed where


def test_the_answer_goes_to_standard_output_and_the_steps_to_standard_error() -> None:
    result = ask("How much?", "notes.txt")
    assert (result.exit_code, result.stdout) == (0, "42\n")
    assert result.stderr.splitlines()[:2] == [
        "How much?",
        "(18 characters of notes.txt, scripted/lm, up to 20 turns)",
    ]
    assert re.search(
        r"--- turn 1: output \(.*\)\nI look first\.\n>>> print\(len\(context\)\)\n18\n", result.stderr
    )
    assert re.search(r"--- submitted after 2 turns: .* tokens in, \d+ out, 2 model calls\n$", result.stderr)


def test_several_outputs_are_a_line_each_with_their_names() -> None:
    reply = "```python\nSUBMIT(names=['Ada', 'Bö'], count=2)\n```"
    result = ask(
        "Who?", "notes.txt", "--signature", "context, question -> names: list[str], count: int", replies=[reply]
    )
    assert result.stdout == 'names: ["Ada", "Bö"]\ncount: 2\n'


def test_json_is_one_object_and_nothing_else() -> None:
    result = ask("How much?", "notes.txt", "--json")
    told = json.loads(result.stdout)
    assert result.stderr == ""
    assert (told["outputs"], told["stop"], told["usage"]["calls"]) == ({"answer": "42"}, "submitted", 2)
    assert [step["kind"] for step in told["trajectory"]] == ["output", "submitted"]


def test_a_saved_run_can_be_read_again() -> None:
    result = ask("How much?", "notes.txt", "--save", "run.json")
    record = Record.load("run.json")
    assert result.stderr.endswith("The run is in run.json.\n")
    assert (record.signature, record.model) == ("context: str, question: str -> answer: str", "scripted/lm")
    assert record.inputs["context"].startswith("Text(18 characters of notes.txt")
    assert [step.code for step in record.trajectory] == ["print(len(context))", "SUBMIT(answer='42')"]
    assert list(Path().glob("*.part")) == []


def test_typed_outputs_are_saved_as_json() -> None:
    reply = "```python\nSUBMIT(days={'2025-03-14': 1.5})\n```"
    result = ask(
        "When?",
        "notes.txt",
        "--json",
        "--signature",
        "context, question -> days: dict[str, float]",
        replies=[reply],
    )
    assert record_of(result).outputs == {"days": {"2025-03-14": 1.5}}


def test_the_sub_calls_of_a_turn_are_counted() -> None:
    code = "```python\nprint(llm_query_batched(['a', 'b']))\n```"
    result = ask("How much?", "notes.txt", replies=[code, "one", "two", SUBMIT_42])
    assert re.search(r"turn 1: output \(.* out, 2 sub-calls\)", result.stderr)
    assert "4 model calls" in result.stderr


def test_control_characters_of_the_text_do_not_reach_the_terminal() -> None:
    code = "```python\nprint(chr(27) + '[2J' + chr(7))\n```"
    result = ask("How much?", "notes.txt", replies=[code, SUBMIT_42])
    assert "\x1b" not in result.output
    assert "\N{REPLACEMENT CHARACTER}[2J" in result.stderr
    assert printable("a\tb\r\nc\xa0d\x9b") == "a\tb\nc\xa0d\N{REPLACEMENT CHARACTER}"


def test_a_terminal_shows_the_ends_of_a_long_output() -> None:
    shown = shortened("\n".join(map(str, range(100)))).splitlines()
    assert (shown[0], shown[11], shown[-1], len(shown)) == ("0", "... [85 lines]", "99", 16)


def test_what_is_no_terminal_gets_lines() -> None:
    assert isinstance(view_on(io.StringIO()), Lines)


# What is read


def test_several_files_are_one_text_with_their_names_as_headers() -> None:
    Path("b.md").write_text("second", encoding="utf-8")
    result = ask("?", "notes.txt", "b.md", replies=["```python\nprint(context)\n```", SUBMIT_42])
    assert "=== notes.txt ===\nThe answer is 42.\n\n\n=== b.md ===\nsecond\n" in result.stderr
    assert "characters of notes.txt, b.md, " in result.stderr


@pytest.mark.parametrize("files", [["-"], []], ids=["asked for", "piped"])
def test_standard_input_is_the_text(files: list[str]) -> None:
    result = ask("?", *files, stdin="piped text", replies=["```python\nprint(context)\n```", SUBMIT_42])
    assert "piped text" in result.stderr
    assert "(10 characters of standard input, " in result.stderr


def test_with_a_signature_without_a_text_the_question_stands_alone() -> None:
    result = ask("What is 6 * 7?", "--json", "--signature", "question -> answer: str", replies=[SUBMIT_42])
    assert record_of(result).signature == "question: str -> answer: str"


def test_the_question_instructs_a_signature_that_takes_only_the_text() -> None:
    reply = "```python\nSUBMIT(summary=text[:3])\n```"
    result = ask("Shorten it.", "notes.txt", "--json", "--signature", "text -> summary: str", replies=[reply])
    record = record_of(result)
    assert (record.instructions, record.outputs) == ("Shorten it.", {"summary": "The"})


def test_a_question_by_another_name_is_the_second_input() -> None:
    reply = "```python\nSUBMIT(found=query)\n```"
    result = ask("this", "notes.txt", "--signature", "text, query -> found: str", replies=[reply])
    assert result.stdout == "this\n"


def test_max_iters_and_max_llm_calls_reach_the_run() -> None:
    code = "```python\nprint(llm_query('a'))\n```"
    result = ask("?", "notes.txt", "--max-iters", "1", "--max-llm-calls", "0", replies=[code, *["?"] * 3])
    assert "up to 1 turn)" in result.stderr
    assert "0 of 0 model calls are left" in result.stderr


def test_a_folder_is_a_mapping_and_a_table_a_table() -> None:
    Path("corpus").mkdir()
    Path("corpus/a.md").write_text("the needle", encoding="utf-8")
    Path("sales.csv").write_text("city,amount\nOslo,2\nBern,3\n", encoding="utf-8")
    found = ask("?", "corpus/", replies=["```python\nSUBMIT(answer=context.grep('needle')[0][0])\n```"])
    assert (found.exit_code, found.stdout) == (0, "a.md\n")
    assert "(1 file of corpus/, " in found.stderr
    summed = ask("?", "sales.csv", replies=["```python\nSUBMIT(answer=context.df().amount.sum())\n```"])
    assert (summed.exit_code, summed.stdout) == (0, "5\n")
    assert "(2 rows of sales.csv, " in summed.stderr


def test_a_table_without_rows_is_a_table() -> None:
    Path("empty.csv").write_text("city,amount\n", encoding="utf-8")
    read = ask("?", "empty.csv", replies=["```python\nSUBMIT(answer=str(context.columns))\n```"])
    assert (read.exit_code, read.stdout) == (0, "['city', 'amount']\n")
    assert "(0 rows of empty.csv, " in read.stderr


def test_files_that_are_too_large_to_be_joined_are_a_mapping() -> None:
    Path("large.txt").write_text("x" * 10_000_001, encoding="utf-8")
    told = ask("?", "large.txt", "notes.txt", replies=["```python\nSUBMIT(answer=', '.join(context))\n```"])
    assert told.stdout == "large.txt, notes.txt\n"


# How it ends


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["gone.txt"], "File not found: gone.txt."),
        ([], "no file is named, and standard input is empty. Name a file, a folder or an address, pipe a text in"),
        (["nothing"], "has no file that matches"),
        (["pictures"], "has no text, only pictures, sounds or videos: a.png"),
        (["notes.txt", "-", "."], "Standard input cannot be joined"),
        ([".", "https://example.org/"], "Addresses cannot be joined with folders. Save the page"),
        (["broken.csv"], "broken.csv cannot be read as csv: Error tokenizing data"),
        (["empty.txt"], "empty.txt is empty."),
        (["latin.txt"], "latin.txt is not UTF-8 text (byte 0xe9 at 3)."),
        (["-"], "Standard input is empty."),
        (["notes.txt", "latin.txt"], "latin.txt is not UTF-8 text"),
        (["notes.txt", "--signature", "nothing"], "Invalid signature 'nothing'"),
        (["notes.txt", "--signature", "a, b, c -> d"], "fills a text and a question, not ['a', 'b', 'c']"),
        (["--signature", "context, question -> answer"], "but there is no text"),
        (
            ["notes.txt", "--signature", "context, question -> trajectory"],
            "conflict with attributes of the prediction",
        ),
        (["notes.txt", "--model", "no-such-model"], "Invalid model 'no-such-model': its provider is not known"),
        (["notes.txt", "--policy", "gone"], "Invalid policy 'gone'"),
        (["notes.txt", "--save", "gone/run.json"], "directory gone does not exist"),
        (["notes.txt", ""], "FILE 2 is empty: is a variable of your shell not set?"),
        (["  "], "FILE 1 is empty"),
        (["notes.txt", "--save", ""], "--save: the path is empty, or this folder"),
        (["notes.txt", "--log", " "], "--log: the path is empty"),
        (["notes.txt", "--report", ""], "--report: the path is empty"),
        (["loop"], "Cannot read loop: Too many levels of symbolic links."),
        (["loop.csv"], "Cannot read loop.csv: Too many levels of symbolic links."),
        (["notes.txt", "--save", "loop"], "--save loop: it cannot be written: Too many levels"),
        (["~nobody-of-this-name/notes.txt"], "File not found: ~nobody-of-this-name/notes.txt."),
        (["/dev/zero"], "/dev/zero is a binary file."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_one_line_that_names_the_problem_and_exit_code_2(arguments: list[str], problem: str) -> None:
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    Path("broken.csv").write_text("a,b\n1,2\n1,2,3\n", encoding="utf-8")
    Path("nothing").mkdir()
    for name in ("loop", "loop.csv"):
        Path(name).symlink_to(name)
    Path("pictures").mkdir()
    Path("pictures/a.png").write_bytes(b"\x89PNG\r\n")
    result = ask("?", *arguments, stdin="")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert problem in line


@pytest.mark.parametrize("option", ["--output-dir", "--skills"])
def test_a_folder_without_a_name_is_not_the_working_directory(option: str) -> None:
    result = ask("?", "notes.txt", option, "")
    assert (result.exit_code, "the name is empty" in result.stderr) == (2, True)


def test_a_number_out_of_range_is_bad_usage() -> None:
    assert ask("?", "notes.txt", "--max-iters", "0").exit_code == 2


def test_no_submit_and_nothing_to_read_is_exit_code_1() -> None:
    result = ask("?", "notes.txt", "--max-iters", "1", replies=lambda messages: "<think>Hm")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--- no SUBMIT in 1 turn, and no answer in the trajectory: " in result.stderr
    assert "No answer: No SUBMIT: no turns are left." in result.stderr


def test_an_answer_that_is_read_from_the_trajectory_is_an_answer() -> None:
    read = "[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]"
    result = ask("?", "notes.txt", "--max-iters", "1", replies=[LOOK, read])
    assert (result.exit_code, result.stdout) == (0, "42\n")
    assert "--- no SUBMIT in 1 turn, read from the trajectory: " in result.stderr


def test_a_model_that_fails_is_exit_code_3_and_its_steps_are_kept() -> None:
    result = ask("?", "notes.txt", "--json", replies=[LOOK, dspy.LMTransportError("the line is dead")])
    record = record_of(result)
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: ")
    assert (record.stop, len(record.trajectory), record.usage.calls) == ("failed", 1, 2)
    assert "the line is dead" in str(record.error)


def test_an_interpreter_that_does_not_start_is_exit_code_3() -> None:
    class Broken(ScriptedInterpreter):
        def _start(self) -> None:
            raise dspy.CodeInterpreterError("no room")

    result = ask("?", "notes.txt", interpreter_factory=lambda: Broken([]))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines()[-1] == "Error: no room"


def test_a_traceback_is_shown_only_on_demand() -> None:
    assert "Traceback" not in ask("?", "gone.txt").stderr
    assert "Traceback" in ask("?", "gone.txt", "--debug").stderr


def test_the_help_explains_the_exit_codes() -> None:
    told = CliRunner().invoke(app, ["ask", "--help"]).stdout
    assert [line.split()[0] for line in told.partition("Exit codes:")[2].splitlines()[1:7]] == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "130",
    ]


def test_the_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"rlm-dspy {version('dspy-recursive-lm')}\n"


@pytest.mark.usefixtures("smollm2")
def test_the_embedded_model_takes_a_turn() -> None:
    result = ask(
        "?",
        "notes.txt",
        "--max-iters",
        "1",
        "--policy",
        "none",
        "--json",
        lm=embedded_lm(max_tokens=12, cache=False),
    )
    record = record_of(result)
    assert result.exit_code == (0 if record.answered else 1)
    assert (record.model, len(record.trajectory)) == ("embedded/smollm2-135m-instruct", 1)
    assert 0 < record.usage.output_tokens <= 12 * record.usage.calls
