import io
import linecache
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_dspy.interpreters.worker import cell
from rlm_dspy.interpreters.worker.cell import Cells, Outcome, submitted
from rlm_dspy.interpreters.worker.streams import Capped

NAMES = st.lists(st.sampled_from(["answer", "evidence", "score", "claims"]), min_size=1, unique=True)


def run(cells: Cells, code: str, **options: Any) -> tuple[Outcome, str]:
    output = Capped()
    return cells.run(code, output, **options), output.text()


def test_it_needs_nothing_but_the_standard_library() -> None:
    """A confined worker loads the folder by itself."""
    code = (
        "import sys\nsys.path.append(sys.argv[1])\nimport worker.cell\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(Path(cell.__file__).resolve().parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "['__main__', 'worker']\n"


@given(st.lists(st.text(max_size=40)), st.integers(2, 60))
def test_output_up_to_the_cap_is_kept_whole(writes: list[str], cap: int) -> None:
    """In one write or in many."""
    capped = Capped(cap)
    assert [capped.write(text) for text in writes] == [len(text) for text in writes]
    whole = "".join(writes)
    assert capped.written == len(whole)
    assert (capped.text() == whole) is (len(whole) <= cap)


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1), st.integers(2, 60))
def test_output_over_the_cap_keeps_its_ends(writes: list[str], cap: int) -> None:
    """And says how many characters are missing between them."""
    whole = "".join(writes) + "x" * cap + "y"
    capped = Capped(cap)
    for text in [*writes, "x" * cap, "y"]:
        capped.write(text)
    head, tail = whole[: cap - cap // 2], whole[len(whole) - cap // 2 :]
    assert capped.text() == f"{head}\n... [{len(whole) - cap} characters left out] ...\n{tail}"


def test_reading_the_output_changes_nothing() -> None:
    """It may be read while it is written."""
    capped = Capped(4)
    for number in range(10):
        capped.write(str(number))
        assert capped.text() == capped.text()
    assert capped.text() == "01\n... [6 characters left out] ...\n89"


@settings(max_examples=20)
@given(st.integers(2, 50), st.integers(1, 5_000))
def test_output_takes_memory_in_proportion_to_the_cap(cap: int, writes: int) -> None:
    """However much is written, and in however small pieces."""
    capped = Capped(cap)
    for _ in range(writes):
        capped.write("é")
    assert sum(map(len, capped._head)) + sum(map(len, capped._tail)) <= 2 * cap


def test_a_cap_leaves_room_for_both_ends() -> None:
    """Nothing at all cannot be asked for."""
    with pytest.raises(ValueError, match="at least 2"):
        Capped(1)


def test_only_text_is_written() -> None:
    """As to any text stream."""
    with pytest.raises(TypeError, match="not bytes"):
        Capped().write(b"x")  # type: ignore[arg-type]


def test_the_output_is_a_text_stream() -> None:
    """Nothing that code does to `sys.stdout` breaks it."""
    capped = Capped()
    assert isinstance(capped, io.TextIOBase)
    assert (capped.encoding, capped.isatty()) == ("utf-8", False)
    with capped:
        capped.writelines(["a", "b"])
    capped.close()
    capped.flush()
    print("c", file=capped, flush=True)
    assert capped.text() == "abc\n"


@given(NAMES, st.data())
def test_submit_maps_positions_and_names(names: list[str], data: st.DataObject) -> None:
    """The first fields by position, the others by name in any order; the very values."""
    values = {name: object() for name in names}
    by_position = data.draw(st.integers(0, len(names)))
    by_name = data.draw(st.permutations(names[by_position:]))
    if by_position + len(by_name):
        args = tuple(values[name] for name in names[:by_position])
        assert submitted(names, args, {name: values[name] for name in by_name}) == values


@given(NAMES, st.data())
def test_submit_takes_one_dict_apart(names: list[str], data: st.DataObject) -> None:
    """If it has exactly the fields, in any order; they come in the order of the fields."""
    values = {name: object() for name in data.draw(st.permutations(names))}
    assert list(submitted(names, (values,), {}).items()) == [(name, values[name]) for name in names]


@given(NAMES, NAMES)
def test_submit_refuses_other_names(names: list[str], given_names: list[str]) -> None:
    """And says how to call it."""
    if set(names) != set(given_names):
        with pytest.raises(TypeError, match="Call it as SUBMIT") as caught:
            submitted(names, (), dict.fromkeys(given_names, 1))
        assert all(f"{name}=..." in str(caught.value) for name in names)


def test_a_submission_passes_except_exception() -> None:
    """A model's own error handling does not swallow it."""
    outcome, output = run(Cells(), "try:\n    SUBMIT(1)\nexcept Exception:\n    print('swallowed')")
    assert (outcome.kind, outcome.values, output) == ("submitted", {"output": 1}, "")


@pytest.mark.parametrize(
    "kept",
    [
        "done = SUBMIT",
        "def done(output):\n    SUBMIT(output)",
        "import functools\ndone = functools.partial(SUBMIT)",
        "done = dict(by_name=SUBMIT)['by_name']",
    ],
)
def test_a_submit_that_an_earlier_cell_kept_ends_a_later_cell(kept: str) -> None:
    cells = Cells()
    for code in (kept, "pass"):
        assert run(cells, code)[0].kind == "done"
    assert run(cells, "done(output=1)")[0] == Outcome("submitted", {"output": 1})
    assert run(cells, "pass")[0].kind == "done"


def test_an_outcome_has_the_exception_itself() -> None:
    """So that the caller can tell whose it is."""
    error = KeyError("k")

    def tool() -> None:
        raise error

    outcome, _ = run(Cells(), "tool()", functions={"tool": tool})
    assert outcome.kind == "raised"
    assert outcome.exception is error


def test_an_interrupt_is_an_outcome_too() -> None:
    """The worker shows it to the model; the host may raise it."""
    outcome, _ = run(Cells(), "raise KeyboardInterrupt")
    assert "KeyboardInterrupt\nThe session and its variables are kept" in outcome.error
    assert isinstance(outcome.exception, KeyboardInterrupt)


def test_functions_are_bound_for_their_cell() -> None:
    """What a cell put under the name of a function that is gone stays."""
    cells = Cells()
    run(cells, "kept = gone = mine", functions={"mine": str, "gone": int, "kept": int})
    run(cells, "", functions={"mine": str})
    assert cells.namespace["mine"] is str
    assert "SUBMIT" in cells.namespace
    outcome, _ = run(cells, "mine", functions={})
    assert "NameError" in outcome.error
    assert cells.namespace["kept"] is str


def test_a_traceback_has_the_markers_of_python() -> None:
    """Under the right characters, also in a last line without newline."""
    outcome, _ = run(Cells(), "d = {'a': {}}\nx = d['a']['b'] + 1")
    assert outcome.error.splitlines()[2:4] == ["    x = d['a']['b'] + 1", "        ~~~~~~^^^^^"]


def test_lines_are_counted_as_python_counts_them() -> None:
    """Other line separators inside a string end no line."""
    outcome, _ = run(Cells(), "x = '\u2028 \x0c'\r\n1 / 0  # here")
    assert "1 / 0  # here" in outcome.error


def test_a_group_shows_each_error_with_the_lines_of_the_model() -> None:
    """And no other lines."""
    code = (
        "import json\nerrors = []\nfor text in '{', 'x':\n    try:\n        json.loads(text)\n"
        "    except ValueError as error:\n        errors.append(error)\nraise ExceptionGroup('all', errors)"
    )
    outcome, _ = run(Cells(), code)
    assert outcome.error.count("json.loads(text)") == 2
    assert "decoder.py" not in outcome.error


def test_future_features_last_for_the_session() -> None:
    """As in a notebook, until the name is taken for something else."""
    cells = Cells()
    run(cells, "from __future__ import annotations")
    assert run(cells, "def f(x: Unknown): pass")[0].kind == "done"
    run(cells, "annotations = []")
    assert "Unknown" in run(cells, "def f(x: Unknown): pass")[0].error


def test_sources_can_be_read_until_the_session_closes() -> None:
    """`linecache` knows them, also while another session counts from one; then they are gone."""
    first, second = Cells(), Cells()
    run(first, "def f(): return 'first'")
    run(second, "def f(): return 'second'")
    run(first, "import inspect\nsource = inspect.getsource(f)")
    assert first.namespace["source"] == "def f(): return 'first'\n"
    second.close()
    assert linecache.getline("<cell 1>", 1) == "def f(): return 'first'\n"
    first.close()
    assert "<cell 1>" not in linecache.cache


def test_sessions_of_two_threads_end_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one removes the sources of its own, whose names are the same."""

    class Shared(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            found = super().get(key, default)
            self.pop(key, None)
            return found

    monkeypatch.setattr(linecache, "cache", Shared())
    cells = Cells()
    run(cells, "1")
    cells.close()
    assert linecache.cache == {}


def test_json_constants_are_no_variables() -> None:
    """They are builtins of the cell, and of no other module."""
    cells = Cells()
    outcome, output = run(cells, "true, [name for name in dir() if name in ('true', 'null')]")
    assert (outcome.kind, output) == ("done", "(True, [])\n")
    assert not hasattr(__builtins__, "true")


def test_a_long_text_is_not_copied_to_be_shown() -> None:
    """Its two ends are, and how much is between."""
    output = Capped(300_000)
    Cells().run("b'a' * 500_000", output)
    assert "... [400000 left out] ..." in output.text()


def test_what_cannot_be_shown_is_an_error_of_the_cell() -> None:
    """A `__repr__` is code like any other."""
    outcome, output = run(Cells(), "class C:\n    def __repr__(self): return 1 / 0\nC()")
    assert "in __repr__" in outcome.error
    assert not output


def test_an_error_without_words_has_its_name() -> None:
    """Even if nothing about it can be formatted."""
    code = (
        "class Meta(type):\n    __module__ = property(lambda cls: 1 / 0)\n"
        "class Bad(Exception, metaclass=Meta): pass\nraise Bad"
    )
    outcome, _ = run(Cells(), code)
    assert outcome.kind == "raised"
    assert "Bad" in outcome.error
