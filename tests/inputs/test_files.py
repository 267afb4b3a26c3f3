"""A folder as an input: what is read, what is not, and how code and a model see it."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from pydantic import TypeAdapter, ValidationError

from rlm_dspy import RLM, Files, InvalidInputs, Text
from rlm_dspy.cache.sub_call_cache import digest
from rlm_dspy.coverage import watched
from rlm_dspy.inputs import describe, opened
from rlm_dspy.inputs.file_mapping import PIECE_BYTES, fits
from rlm_dspy.interpreters import CellLimits, PythonInterpreter
from rlm_dspy.repl.value_codec import received
from rlm_dspy.replay.replay import replay
from rlm_dspy.report.coverage_shares import coverage_of
from rlm_dspy.report.record import Record, digest_of, recorded
from rlm_dspy.testing import ScriptedLM
from tests.crossing import answer, every_interpreter, run
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two texts, a binary file, and entries that are no files."""
    root = tmp_path / "corpus"
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "tides.md").write_text("# Tides\nThe moon pulls.\nA NEEDLE\n", encoding="utf-8")
    (root / "notes.txt").write_text("first\nneedle é\n", encoding="utf-8")
    (root / "logo.png").write_bytes(b"\x89PNG\xff\n")
    (root / ".git").mkdir()
    (tmp_path / "secret").write_text("a secret", encoding="utf-8")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    if sys.platform != "win32":
        os.mkfifo(root / "pipe")
    return root


def test_a_folder_is_a_mapping_from_names_to_texts(folder: Path) -> None:
    """Regular files alone: links, pipes and hidden entries are counted."""
    files = Files.open(folder)
    assert list(files) == ["docs/tides.md", "logo.png", "notes.txt"]
    assert files["notes.txt"] == "first\nneedle é\n"
    assert files.sizes["notes.txt"] == 16
    assert files.left_out["links"] == 2
    assert files.left_out["hidden"] == 1
    assert files.glob("**/*.md") == ["docs/tides.md"]
    assert list(files.lines("docs/tides.md")) == ["# Tides", "The moon pulls.", "A NEEDLE"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*", ["a.md", "d/b.md", "d/e/c.txt"]),
        ("*", ["a.md"]),
        ("**/*.md", ["a.md", "d/b.md"]),
        ("d/**", ["d/b.md", "d/e/c.txt"]),
        ("d/**/c.*", ["d/e/c.txt"]),
        ("?.md", ["a.md"]),
        ("d/*/*", ["d/e/c.txt"]),
    ],
)
def test_patterns_are_those_of_glob(pattern: str, names: list[str]) -> None:
    """A star stays inside a folder."""
    assert [name for name in ("a.md", "d/b.md", "d/e/c.txt") if fits(name, pattern)] == names


def test_a_list_of_files_and_folders_is_named_from_the_folder_of_all(folder: Path) -> None:
    """As the shell gives them to a command."""
    assert list(Files.open([folder / "notes.txt", folder / "docs"])) == ["docs/tides.md", "notes.txt"]
    assert list(Files.open([folder / "docs" / "tides.md"])) == ["tides.md"]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (lambda folder: Files.open(folder / "none"), FileNotFoundError, "does not exist"),
        (lambda folder: Files.open(folder / "notes.txt"), NotADirectoryError, r"Text\.open"),
        (lambda folder: Files.open([]), ValueError, "empty"),
        (lambda folder: Files.open(folder, "*.rst"), ValueError, r"matches '\*\.rst'"),
        (lambda folder: Files.open(folder, max_entries=3), ValueError, "more than 3 files and folders"),
    ],
)
def test_what_cannot_be_opened_is_said(
    folder: Path, given: Callable[[Path], Any], error: type[Exception], says: str
) -> None:
    """With what to do."""
    with pytest.raises(error, match=says):
        given(folder)


def test_a_file_that_becomes_a_link_is_not_followed(folder: Path) -> None:
    """Neither a link in the place of a file, nor one in the place of its folder."""
    files = Files.open(folder)
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to(folder.parent / "secret")
    (folder / "docs").rename(folder.parent / "docs")
    (folder / "docs").symlink_to(folder.parent / "docs")
    for name in ("notes.txt", "docs/tides.md"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            files[name]


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes")
def test_a_file_that_becomes_a_pipe_does_not_hang(folder: Path) -> None:
    """It is no longer a regular file."""
    files = Files.open(folder)
    (folder / "notes.txt").unlink()
    os.mkfifo(folder / "notes.txt")
    with pytest.raises(ValueError, match="no longer a regular file"):
        files["notes.txt"]


def test_a_file_of_several_pieces_is_whole(tmp_path: Path) -> None:
    """Cut at line ends, or at a character where there is none."""
    line = "é" * 999 + "\n"
    lines = line * (2 * PIECE_BYTES // len(line.encode()) + 3)
    one_line = "x" + "é" * (PIECE_BYTES // 2 + 10)
    (tmp_path / "lines").write_text(lines + "needle", encoding="utf-8")
    (tmp_path / "one_line").write_text(one_line, encoding="utf-8")
    files = Files.open(tmp_path)
    assert files["lines"] == lines + "needle"
    assert files["one_line"] == one_line
    assert files.grep("needle") == [("lines", lines.count("\n") + 1, "needle")]
    assert sum(1 for _ in files.lines("lines")) == lines.count("\n") + 1


def test_grep_is_bounded(tmp_path: Path) -> None:
    """In matches, in the length of a line, and in time."""
    (tmp_path / "a").write_text("x" * 9_000 + "needle" + "y" * 9_000 + "\n" + "needle\n" * 500, encoding="utf-8")
    files = Files.open(tmp_path)
    found = files.grep("NEEDLE", ignore_case=True, max_matches=7)
    assert len(found) == 7
    assert found.note == "stopped after 7 matches, in a"
    assert "needle" in found[0][2]
    assert len(found[0][2]) == 300
    assert [number for _, number, _ in found] == [1, 2, 3, 4, 5, 6, 7]
    assert "stopped after 0 seconds" in files.grep("zebra", seconds=0).note
    with pytest.raises(KeyError, match="there is no file 'b'"):
        files.grep("needle", ["b"])


CODE = """
said = [len(files), *(name in files for name in ("notes.txt", "../secret", "link"))]
said += [files["docs/tides.md"].splitlines()[1], files.get("none"), files.sizes["notes.txt"]]
said += [repr(files.grep("(?i)needle"))]
for name in ("logo.png", "../secret", "link", "/etc/passwd"):
    try:
        said.append(files[name])
    except (KeyError, ValueError) as error:
        said.append(f"{type(error).__name__} {error}")
SUBMIT(answer=said)
"""


@every_interpreter
def test_code_reads_a_folder_and_nothing_else(factory: Any, folder: Path) -> None:
    """In each interpreter; the texts come from the host."""
    said = run(factory, CODE, {"files": Files.open(folder)}).answer
    assert said[:7] == [3, True, False, False, "The moon pulls.", None, 16]
    assert (
        said[7]
        == "docs/tides.md:3: A NEEDLE\nnotes.txt:2: needle é\n[1 files are not UTF-8 text or cannot be read]"
    )
    assert said[8].startswith("ValueError logo.png is not UTF-8 text (byte 0x89 at 0)")
    assert [text.partition(" ")[0] for text in said[9:]] == ["KeyError"] * 3


def test_a_large_file_is_attached_and_small_ones_are_let_go(tmp_path: Path) -> None:
    """So that what was read of a folder does not stay in memory."""
    (tmp_path / "large").write_text("0123456789" * 2_000_000, encoding="utf-8")
    (tmp_path / "small").write_text("s", encoding="utf-8")
    code = "files['large'], files['small'], SUBMIT(answer=[*files._attached, *files._cached])"
    assert run(PythonInterpreter, code, {"files": Files.open(tmp_path)}).answer == ["large", "small"]


def test_the_host_attaches_no_more_than_fits(tmp_path: Path) -> None:
    """Whatever code asks for by itself; small files are read by the thousand, not by the million."""
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(12_000_000_000)
    (tmp_path / "empty").touch()
    code = """
key, said = files.key, []
try:
    _rlm_read(key=key, whole="huge")
except ValueError as error:
    said.append(str(error))
try:
    files["huge"]
except ValueError as error:
    said.append(str(error))
SUBMIT(answer=[*said, len(_rlm_read(key=key, parts=[["empty", 0]] * 50_000))])
"""
    attached, whole, parts = run(PythonInterpreter, code, {"files": Files.open(tmp_path)}).answer
    assert "too large to be attached" in attached
    assert "12,000,000,000 bytes, too many to be read whole; use files.lines(name)" in whole
    assert parts == 1_000


def test_what_the_host_does_not_attach_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another REPL of the run has attached what fits, or as it has grown; a refused file counts nothing."""
    monkeypatch.setattr("rlm_dspy.inputs.files.ATTACHED_BYTES", 40_000_000)
    for name, size in {"first": 20_000_000, "grown": 17_000_000, "large": 30_000_000}.items():
        (tmp_path / name).write_bytes(b"a" * size)
    files = Files.open(tmp_path)
    with (tmp_path / "grown").open("ab") as file:
        file.write(b"b")
    code = "SUBMIT(answer=[*(len(files[n]) for n in ('large', 'grown', 'first')), *files._attached])"
    kept = files.of_a_run()
    kept.whole("first")
    with pytest.raises(ValueError, match="large is too large to be attached beside the other files"):
        kept.whole("large")
    with pytest.raises(ValueError, match="grown has grown since it was listed"):
        kept.whole("grown")
    found = run(PythonInterpreter, code, {"files": files}).answer
    assert found == [30_000_000, 17_000_001, 20_000_000, "large"]


def test_a_hopeless_regular_expression_ends_with_its_cell(tmp_path: Path) -> None:
    """It runs in the worker: the host does not hang."""
    (tmp_path / "a").write_text("a" * 40 + "!", encoding="utf-8")
    lm = ScriptedLM([block("files.grep('(a+)+$')"), block("SUBMIT(answer=len(files))")])
    rlm = RLM("files -> answer", interpreter_factory=lambda: PythonInterpreter(cell_limits=CellLimits(seconds=1)))
    with dspy.context(lm=lm):
        done = rlm(files=Files.open(tmp_path))
    assert "ran longer than 1 s" in done.trajectory[0]["output"]


@every_interpreter
def test_a_child_is_handed_the_folder(factory: Any, folder: Path) -> None:
    """By `rlm_query`; repeated, because a child that gets all of the input is asked for twice."""

    def act(messages: Any) -> str:
        if "Count them" in messages[-1]["content"] and "whose" not in messages[-1]["content"]:
            return block("SUBMIT(response=context['notes.txt'])")
        return block(
            "# whose\ntry:\n    rlm_query('Count them', files)\nexcept SubCallError: pass\n"
            "SUBMIT(answer=rlm_query('Count them', files))"
        )

    big = "x" * 3_000
    (folder / "big.txt").write_text(big, encoding="utf-8")
    lm = ScriptedLM(act=act)
    with dspy.context(lm=lm):
        done = RLM("files -> answer", interpreter_factory=factory, max_iters=2)(files=Files.open(folder))
    assert done.answer == "first\nneedle é\n", done.trajectory


def test_a_folder_inside_a_list_is_one_too(folder: Path) -> None:
    """Inputs may hold several."""
    assert answer(PythonInterpreter, "held[0]['notes.txt']", held=[Files.open(folder)]) == "first\nneedle é\n"


class Ask(dspy.Signature):
    """Answer from the documents."""

    docs: Files = dspy.InputField(desc="the documents")
    answer: str = dspy.OutputField()


def test_a_field_may_be_typed(folder: Path) -> None:
    """And the model is told what it has."""
    lm = ScriptedLM([block("SUBMIT(answer=docs['notes.txt'])")])
    with dspy.context(lm=lm):
        assert RLM(Ask)(docs=Files.open(folder)).answer.startswith("first")
    assert (
        "docs: Files, a read-only mapping from name to text: 3 files" in lm.history[0]["messages"][-1]["content"]
    )


def test_a_path_from_a_model_opens_nothing() -> None:
    """A field of this type takes a `Files` alone, as an input of a sub or an output."""
    for value in ("/etc", ["/etc/passwd"]):
        with pytest.raises(ValidationError):
            TypeAdapter(Files).validate_python(value)
        with pytest.raises(ValueError, match="expected Files"):
            received(value, Files)


def test_a_folder_is_not_put_into_a_prompt(folder: Path) -> None:
    """A model that is to read it needs a REPL."""
    code = "try: dspy.Predict('docs -> x')(docs=files)\nexcept Exception as error: SUBMIT(answer=str(error))"
    said = run(PythonInterpreter, code, {"files": Files.open(folder)}).answer
    assert "a Files goes to rlm_query" in said


def test_a_description_is_bounded(tmp_path: Path) -> None:
    """Whatever the number, the kinds and the names of the files."""
    for number in range(300):
        inner = tmp_path / f"{number:x}" / ("d" * 150)
        inner.mkdir(parents=True)
        (inner / f"{'n' * 200}.{number}").write_text("x", encoding="utf-8")
    line = str(describe("files", Files.open(tmp_path)))
    assert "300 files, 300 bytes" in line
    assert "292 others" in line
    assert len(line) < 2_500


def test_what_was_opened_is_covered(folder: Path, tmp_path: Path) -> None:
    """In bytes of all files; the record holds the short form, and is replayed with the folder."""
    rlm = RLM("files -> answer")
    lm = ScriptedLM([block("print(len(files['docs/tides.md']))"), block("SUBMIT(answer=files['notes.txt'][:5])")])
    with dspy.context(lm=lm), watched():
        record, error = recorded(rlm, {"files": Files.open(folder)})
    assert error is None
    assert [step.read for step in record.trajectory] == [(("files", 0, 33),), (("files", 39, 55),)]
    assert record.input_chars == {"files": 55}
    assert coverage_of(record)["files"]["read"] == pytest.approx(49 / 55)
    assert record.inputs == {"files": "Files(3 files of corpus/, 55 bytes)"}
    record.save(tmp_path / "run.json")
    steps = replay(Record.load(tmp_path / "run.json"), {"files": Files.open(folder)})
    assert [step.same for step in steps] == [True, True]


def test_equal_folders_have_equal_digests(folder: Path) -> None:
    """By names, sizes and times: the files are not read."""
    one, other = Files.open(folder), Files.open(folder)
    assert digest(one) == digest(other)
    assert digest_of(one, 0) == digest_of(other, 0)
    (folder / "notes.txt").write_text("changed", encoding="utf-8")
    assert digest(Files.open(folder)) != digest(one)
    assert one.opened == set()


def test_a_folder_is_pickled_and_saved_by_its_name(folder: Path) -> None:
    """A copy reads the same files; a saved example holds one line."""
    files = pickle.loads(pickle.dumps(Files.open(folder)))
    assert files["notes.txt"].startswith("first")
    assert json.dumps(dspy.Example(files=files).toDict()) == '{"files": "Files(3 files of corpus/, 55 bytes)"}'


def test_a_path_is_opened_as_what_it_is(folder: Path) -> None:
    """A folder, or a text; other files are refused before a model is paid."""
    assert isinstance(opened(folder), Files)
    assert isinstance(opened(folder / "notes.txt"), Text)
    assert answer(PythonInterpreter, "files['notes.txt'] + text", files=folder, text=folder / "notes.txt") == (
        2 * "first\nneedle é\n"
    )
    for path, says in {"logo.png": "not UTF-8 text .*dspy.Image", "none": "does not exist"}.items():
        with dspy.context(lm=ScriptedLM([])), pytest.raises(InvalidInputs, match=f"Input 'a': .*{says}"):
            RLM("a -> b")(a=folder / path)


@pytest.mark.parametrize("kind", ["docs", "docs: list[str]", "docs: dict"])
def test_paths_in_a_list_or_dict_are_opened_as_texts(kind: str, tmp_path: Path) -> None:
    """Code could not open them: it sees no file of the host."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    given: Any = {path.name: path for path in paths} if kind == "docs: dict" else paths
    texts = "docs.values()" if kind == "docs: dict" else "docs"
    with dspy.context(lm=ScriptedLM([f"```python\nSUBMIT(answer=' '.join(map(str, {texts})))\n```"])):
        assert RLM(f"{kind} -> answer")(docs=given).answer == "text of a.txt text of b.txt"


def test_a_folder_in_a_list_is_refused_with_the_fix(tmp_path: Path) -> None:
    """A path that the signature asks for stays one."""
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InvalidInputs, match=r"is a folder or a table. Pass it alone"):
        RLM("docs -> answer")(docs=[tmp_path])
    signature = dspy.Signature("docs -> answer").with_updated_fields("docs", type_=list[Path])
    with dspy.context(lm=ScriptedLM(["```python\nSUBMIT(answer=docs[0].name)\n```"])):
        assert RLM(signature)(docs=[tmp_path]).answer == tmp_path.name


@pytest.mark.parametrize("where", ["", " ", ["notes.md", ""]])
def test_a_folder_without_a_name_is_not_the_working_directory(where: str | list[str]) -> None:
    with pytest.raises(ValueError, match="A path is empty"):
        Files.open(where)
