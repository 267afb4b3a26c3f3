"""Files that code writes below `output/` come back with the prediction, within bounds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.artifacts import MAX_BYTES, MAX_FILE_BYTES, MAX_FILES, Artifacts, ArtifactStore
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable

OURS: list[Callable[..., dspy.CodeInterpreter]] = [PythonInterpreter, LocalPythonInterpreter]
ours = pytest.mark.parametrize("factory", OURS)
WRITE = (
    "import os, pathlib\nos.makedirs('output/deep/er', exist_ok=True)\n"
    "def put(name, text): pathlib.Path('output', name).write_text(text)\n"
)
DONE = block("SUBMIT(answer='done')")


def run(factory: Any, *replies: str, **settings: Any) -> dspy.Prediction:
    """Run the replies of a model with one output field."""
    with dspy.context(lm=ScriptedLM(list(replies))):
        return RLM("q -> answer", interpreter_factory=factory, **settings)(q="?")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@ours
def test_a_file_that_code_leaves_open_comes_back_as_far_as_it_is_written(factory: Any) -> None:
    """A variable keeps it open: it had 0 bytes."""
    code = f"{WRITE}import csv\nfile = open('output/a.csv', 'w')\ncsv.writer(file).writerow([1, 2])"
    prediction = run(factory, block(code), block("file.close()\nSUBMIT(answer='done')"))
    assert prediction.artifacts["a.csv"].data.split() == [b"1,2"]
    assert "Kept" not in prediction.trajectory[1]["output"]  # closing it added nothing


@ours
def test_names_that_are_no_text_are_refused(factory: Any) -> None:
    """Written with marks of question, two of them were one, and a file that code removed stayed."""
    names = "for name in (b'a', b'\\xfe', b'\\xff'):\n"
    code = f"{WRITE}{names}    with open(b'output/' + name, 'wb') as file: file.write(name)"
    prediction = run(factory, block(code), DONE)
    assert list(prediction.artifacts) == ["a"]
    assert prediction.trajectory[0]["output"].count("give it a shorter name of plain characters") == 2


@ours
def test_files_below_output_come_back_with_the_prediction(factory: Any, tmp_path: Path) -> None:
    """In folders too, also of the cell that submits, as they were written last; what is removed is not kept."""
    first = WRITE + "put('a.csv', '1')\nput('gone.txt', 'x')"
    second = (
        "os.remove('output/gone.txt')\nput('a.csv', '1,2')\n"
        "pathlib.Path('output/deep/er/b.bin').write_bytes(bytes(3))\nSUBMIT(answer='done')"
    )
    prediction = run(factory, block(first), block(second))
    found = prediction.artifacts
    assert {name: artifact.data for name, artifact in found.items()} == {
        "a.csv": b"1,2",
        "deep/er/b.bin": bytes(3),
    }
    assert (found["a.csv"].media_type, found["a.csv"].size) == ("text/csv", 3)
    told = prediction.trajectory[0]["output"]
    assert "[Kept for the user: " in told
    assert "output/a.csv" in told
    assert [path.read_bytes() for path in found.save(tmp_path / "saved")] == [b"1,2", bytes(3)]
    assert (tmp_path / "saved/deep/er/b.bin").exists()
    assert "1,2" not in repr(found)
    assert json.dumps(prediction.toDict()["artifacts"]["a.csv"])


@ours
def test_a_run_without_files_says_nothing_of_them(factory: Any) -> None:
    Path("output").mkdir()
    Path("output/of_the_user.txt").write_text("before", encoding="utf-8")
    os.utime("output/of_the_user.txt", (1, 1))
    prediction = run(factory, block("print(1)"), DONE)
    assert prediction.artifacts == {}
    assert prediction.trajectory[0]["output"] == "1"


def test_interpreters_of_dspy_give_none() -> None:
    code = "import os; os.makedirs('output'); open('output/a', 'w').write('a')\nSUBMIT(answer='done')"
    assert run(dspy.LocalInterpreter, block(code)).artifacts == Artifacts()


@ours
def test_no_link_is_followed(factory: Any, tmp_path: Path) -> None:
    """Neither to a file nor to a folder."""
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "key").write_text("secret", encoding="utf-8")
    code = (
        f"{WRITE}os.symlink({str(secret / 'key')!r}, 'output/key')\nos.symlink({str(secret)!r}, 'output/folder')\n"
        "os.mkfifo('output/pipe') if hasattr(os, 'mkfifo') else None"
    )
    assert run(factory, block(code), DONE).artifacts == {}


def test_what_is_left_out_is_told_to_model_and_user() -> None:
    code = f"{WRITE}open('output/big', 'wb').truncate({MAX_FILE_BYTES + 1})\nopen('output/small', 'w').write('s')"
    prediction = run(PythonInterpreter, block(code), DONE)
    why = f"it has {MAX_FILE_BYTES + 1:,} bytes, and a file may have {MAX_FILE_BYTES:,}"
    assert prediction.artifacts.left_out == {"big": why}
    assert list(prediction.artifacts) == ["small"]
    assert f"[output/big is not kept: {why}.]" in prediction.trajectory[0]["output"]


def test_a_file_elsewhere_is_told_to_stay_in_the_repl() -> None:
    """Once."""
    wrote = [block(f"n = open('{name}', 'w').write('x')") for name in ("a.csv", "b.csv")]
    first, second, _ = run(PythonInterpreter, *wrote, DONE).trajectory
    assert first["output"] == "[a.csv stays in the REPL; only files below output/ reach the user.]"
    assert "stays in the REPL" not in second["output"]


def test_a_store_is_bounded_and_takes_no_path_out_of_its_folder() -> None:
    """Names and contents come from code."""
    store = ArtifactStore()
    for name in ("/etc/x", "../x", "a/../x", "a//b", "", ".", "a\\b", "a\nb", "n" * 300, "\ud800"):
        assert store.keep(name, b"x", 1)
    for number in range(MAX_FILES + 1):
        store.keep(f"{number}", b"x", 1)
    assert len(store.below("")) == MAX_FILES
    assert store.below("").left_out["100"] == f"{MAX_FILES} files are kept, and no more"
    full = ArtifactStore()
    assert [bool(full.keep(name, bytes(MAX_BYTES // 3), MAX_BYTES // 3)) for name in "abcda"] == [0, 0, 0, 1, 0]


def test_what_is_kept_can_be_saved(tmp_path: Path) -> None:
    """A lost worker may leave a file where the next one makes a folder; no system takes names of any length."""
    store = ArtifactStore()
    for name in ("a", "b/c", "child-1", "bc"):
        assert store.keep(name, b"", 0) == ""
    for name, other in {"a/b": "a", "b": "b/c", "child-1/x.csv": "child-1"}.items():
        why = f"give it another name: {other} is kept, and a file cannot have the name of a folder"
        assert store.keep(name, b"", 0) == why
    assert store.keep("é" * 128, b"", 0) == "give it a shorter name of plain characters"
    assert store.keep("a", b"again", 5) == ""
    store.below("").save(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"again"


def test_files_survive_a_lost_worker_and_a_crashed_cell() -> None:
    """A crash undoes what a cell did to variables, not the files it wrote."""
    one = f"{WRITE}open('output/one', 'w').write('1')"
    two = "open('output/two', 'w').write('2')\nimport ctypes; ctypes.string_at(0)"
    lost = run(lambda: PythonInterpreter(checkpoint="off"), block(one), block(two), block("print(1)"), DONE)
    assert [step["kind"] for step in lost.trajectory][1] == "interpreter_lost"
    assert list(lost.artifacts) == ["one"]
    answer = fields(answer="a")
    undone = run(
        lambda: PythonInterpreter(checkpoint="always"), block(one), block(two), answer, limits=Limits(max_iters=2)
    )
    assert (undone.stop, list(undone.artifacts)) == ("extracted", ["one", "two"])


def test_an_error_that_leaves_a_run_carries_its_files() -> None:
    def reply(messages: list[dict[str, str]]) -> str:
        if len(messages) > 3:
            raise dspy.LMError("gone")
        return block(f"{WRITE}open('output/one', 'w').write('1')")

    with pytest.raises(dspy.LMError) as caught, dspy.context(lm=ScriptedLM(reply)):
        RLM("q -> answer")(q="?")
    assert list(vars(caught.value)["artifacts"]) == ["one"]


def test_files_of_children_come_with_those_of_their_parent() -> None:
    """In a folder for each child."""
    child = block(f"{WRITE}open('output/plot', 'w').write('c')\nSUBMIT(response='r')")
    own = block(f"{WRITE}open('output/plot', 'w').write('p')\nSUBMIT(answer=rlm_query('draw'))")
    with dspy.context(lm=ScriptedLM(act=[own], child=[child])):
        found = RLM("q -> answer", limits=Limits(max_depth=1))(q="?").artifacts
    assert {name: artifact.data for name, artifact in found.items()} == {"child-1/plot": b"c", "plot": b"p"}


def test_a_shown_figure_is_a_file() -> None:
    """As in a notebook, with matplotlib's own defaults and no display."""
    code = (
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nplt.figure()\nplt.bar([1], [2])\n"
        "plt.show()\nplt.show()"
    )
    prediction = run(lambda: PythonInterpreter(packages=["matplotlib"]), block(code), DONE)
    assert list(prediction.artifacts) == ["figure-1.png", "figure-2.png"]
    assert prediction.artifacts["figure-2.png"].data.startswith(b"\x89PNG")
    assert "Figure saved as output/figure-2.png" in prediction.trajectory[0]["output"]
