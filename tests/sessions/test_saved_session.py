"""A saved session goes on in another process: what it keeps, and what the model is told of the rest."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from pathlib import Path

KEPT = """
import math, functools
from collections import Counter
counts = Counter(context)
text = context
@functools.cache
def half(n): return math.floor(n / 2)
double = lambda n: 2 * n
class Point:
    def __init__(self, x): self.x = x
points = [Point(1), Point(2)]
def far(point=points[1]): return point.x
rows = (row for row in [1])
SUBMIT(answer=1)
"""
USED = "SUBMIT(answer=half(double(points[1].x) + counts['a'] + far()) + (text is context))"


def module(factory: Any = PythonInterpreter, signature: str = "context, question -> answer: int") -> RLM:
    return RLM(signature, interpreter_factory=factory)


def saved(path: Path, factory: Any = PythonInterpreter) -> dict[str, str]:
    """Save a session; return what is lost."""
    with dspy.context(lm=ScriptedLM([block(KEPT)])), module(factory).session(context="banana") as session:
        session(question="?")
        return session.save(path)


@pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])
def test_variables_functions_and_classes_are_kept(factory: Any, tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    lost = saved(path, factory)
    assert list(lost) == ["rows"]
    assert "cannot pickle 'generator' object" in lost["rows"]
    lm = ScriptedLM([block(USED)])
    with dspy.context(lm=lm), module(factory).open_session(path, context="banana") as session:
        assert session(question="Go on.").answer == 5
        assert session.lost == lost
    asked = lm.script.calls[0]
    assert "class Point" in asked[-2]["content"]
    assert "The session was saved and opened again. Kept: math, functools, " in asked[-1]["content"]
    assert "Lost: rows." in asked[-1]["content"]
    says_files = "Files that code wrote are not kept." in asked[-1]["content"]
    assert says_files is (factory is PythonInterpreter)  # the other leaves them in the user's folder


def test_a_function_is_kept_behind_a_string_with_a_separator_of_lines(tmp_path: Path) -> None:
    """Python counts no line there, where `str.splitlines` does."""
    path, code = tmp_path / "session.json", "mark = 'a\u2028b\x0cc'\ndef five():\n    return 5\nSUBMIT(answer=1)"
    with dspy.context(lm=ScriptedLM([block(code)])), module().session(context="banana") as session:
        session(question="?")
        assert session.save(path) == {}
    lm = ScriptedLM([block("SUBMIT(answer=five())")])
    with dspy.context(lm=lm), module().open_session(path, context="banana") as session:
        assert session(question="Go on.").answer == 5


GO_ON = """
import sys
import dspy
from rlm_dspy import RLM
from rlm_dspy.testing import ScriptedLM
lm = ScriptedLM([f"```python\\n{sys.argv[2]}\\n```"])
with dspy.context(lm=lm):
    with RLM("context, question -> answer: int").open_session(sys.argv[1], context="banana") as session:
        print(session(question="Go on.").answer, len(session.history.messages), session.usage.calls)
        session.save(sys.argv[1])
"""


def test_it_goes_on_in_another_process_and_is_saved_again(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    saved(path)
    for number in (2, 3):
        command = [sys.executable, "-c", GO_ON, str(path), USED]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stdout.split(), done.returncode) == (["5", str(number), str(number)], 0), done.stderr


def test_a_session_that_is_saved_before_its_next_call_loses_nothing(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    with module().open_session(tmp_path / "one", context="banana") as session:
        session.save(tmp_path / "two")
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    assert one == two


def test_a_file_that_another_process_has_changed_is_not_replaced(tmp_path: Path) -> None:
    """Else its answers were lost; what this session holds is saved to another file."""
    path = tmp_path / "one"
    saved(path)
    with (
        module().open_session(path, context="banana") as mine,
        module().open_session(path, context="banana") as other,
    ):
        other.messages.append({"question": "?", "answer": 7})
        other.save(path)
        other.save(path)
        with pytest.raises(FileExistsError, match="Save to another file"):
            mine.save(path)
        mine.save(tmp_path / "two")
        path.unlink()
        mine.save(path)


class _Pid:
    def __reduce__(self) -> Any:
        return os.getpid, ()


def test_pickles_are_read_by_the_confined_worker_alone(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    saved(path)
    file = json.loads(path.read_text())
    file["variables"]["values"]["pid"] = base64.b64encode(pickle.dumps(_Pid())).decode()
    path.write_text(json.dumps(file))
    lm = ScriptedLM([block("SUBMIT(answer=pid)")])
    with dspy.context(lm=lm), module().open_session(path, context="banana") as session:
        assert session(question="?").answer != os.getpid()


def test_an_input_that_has_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    saved(path)
    lm = ScriptedLM([block("SUBMIT(answer=len(context))")])
    with dspy.context(lm=lm), module().open_session(path, context="bananas") as session:
        assert session(question="?").answer == 7
    assert "context: another value than when the session was saved." in lm.script.calls[0][-1]["content"]


def test_what_another_interpreter_cannot_give_is_told(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    lm = ScriptedLM([block("n = 1\nSUBMIT(answer=n)")])
    with dspy.context(lm=lm), module(dspy.LocalInterpreter).session(context="") as session:
        session(question="?")
        assert "LocalInterpreter does not give or take Python objects" in session.save(path)["all variables"]


def test_a_file_that_is_no_session_is_refused(tmp_path: Path) -> None:
    for text in ("", "{}", "[1]", '{"version": 2}', "\x00"):
        (tmp_path / "file").write_text(text)
        with pytest.raises(ValueError, match="is not a saved session"):
            module().open_session(tmp_path / "file", context="")
    with pytest.raises(FileNotFoundError):
        module().open_session(tmp_path / "missing", context="")


def test_a_session_of_another_signature_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "file")
    with pytest.raises(ValueError, match="of the signature 'context: str, question: str -> answer: int'"):
        module(signature="text -> title").open_session(tmp_path / "file", text="")
