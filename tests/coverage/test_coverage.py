"""Coverage of the input: what code reads, what the model is shown, and where the answer stands."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.coverage.tracker import Watch, watched, watching
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.report.coverage_shares import coverage_of
from rlm_dspy.report.record import Record, recorded
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step, SubCall

if TYPE_CHECKING:
    from tests.playing import Play

TEXT = "".join(f"Line {n} tells of the number {n * n}.\n" for n in range(500))


@pytest.mark.parametrize(
    ("code", "read"),
    [
        ("print(len(context), type(context), isinstance(context, str))", []),
        ("print(context[:500])", [(0, 500)]),
        ("print(context[-100:], context[200:300])", [(200, 300), (len(TEXT) - 100, len(TEXT))]),
        ("context[7]", [(7, 8)]),
        ("context[10:20:2]", [(10, 19)]),
        ("context[20:10]", []),
        ("f'{context[:10]}'", [(0, 10)]),
        ("len(context[5:9])", [(5, 9)]),
        ("n = 9\ncontext[:n]", [(0, len(TEXT))]),
        ("re.findall('x', context)", [(0, len(TEXT))]),
        ("def f():\n    return context.splitlines()", [(0, len(TEXT))]),
        ("context = 'another'", []),
        ("docs[1]", []),
        ("this is no Python", []),
        ("context[10**9]", [(0, len(TEXT))]),
        ("(" * 500, []),
        ("x = '\x00'", []),
    ],
)
def test_what_code_reads_is_told_from_its_source(code: str, read: list[tuple[int, int]]) -> None:
    assert [span[1:] for span in Watch({"context": TEXT, "number": 5}).read(code)] == read


@pytest.mark.parametrize(
    ("code", "read"),
    [
        ("docs[0]", "first"),
        ("docs[-1]", "third"),
        ("docs[:2]", "first\nsecond"),
        ("for d in docs: print(d)", "first\nsecond\nthird"),
        ("docs[5]", "first\nsecond\nthird"),
        ("len(docs)", ""),
        ("by_id['b']", "bee"),
    ],
)
def test_items_of_lists_and_dicts_are_parts_of_their_text(code: str, read: str) -> None:
    texts = {"docs": "first\nsecond\nthird", "by_id": "ay\nbee"}
    watch = Watch({"docs": ["first", "second", "third"], "by_id": {"a": "ay", "b": "bee"}})
    assert "".join(texts[name][start:end] for name, start, end in watch.read(code)) == read


def test_nothing_is_looked_at_unless_somebody_wants_to_know(play: Play) -> None:
    code = "print(context[:400])\nprint(llm_query(context[:400]))"
    (call,) = (step := run(play, code, "reply", "SUBMIT(answer='x')")[0])["calls"]
    assert (step["read"], step["shown"], call["sent"], watching()) == ((), (), (), False)
    with watched():
        (call,) = (step := run(play, code, "reply", "SUBMIT(answer='x')")[0])["calls"]
        assert (step["read"], call["sent"], watching()) == ((("context", 0, 400),), (("context", 0, 400),), True)
        assert step["shown"] == (("context", 0, 400),)


def test_what_a_sub_call_is_sent_is_found_in_all_its_fields() -> None:
    watch = Watch({"context": TEXT, "question": "Which number is told of?"})
    sent = watch.sent({"passage": f"Read this: {TEXT[1000:1200]}", "parts": [TEXT[3000:3200]], "k": 3})
    assert sent == (("context", 1000, 1200), ("context", 3000, 3200))
    assert watch.sent({"prompt": "Which number is told of? Think."}) == (("question", 0, 24),)


def run(play: Play, *codes: str) -> list[dict[str, Any]]:
    """Return the steps of a run whose replies are these blocks of code."""
    rlm = RLM("context, question -> answer: str", interpreter_factory=LocalPythonInterpreter)
    replies = [f"```python\n{code}\n```" for code in codes]
    steps: list[dict[str, Any]] = play(
        rlm, replies, context=TEXT, question="Which line tells of 400?"
    ).prediction.trajectory
    return steps


def test_each_step_tells_what_was_read_and_shown(play: Play) -> None:
    search = "hits = [l for l in context.splitlines() if ' 400.' in l]\nhits"
    with watched():
        first, second, last = run(play, "print(context[:2000])", search, "SUBMIT(answer='400')")
    assert (first["read"], first["shown"]) == ((("context", 0, 2000),), (("context", 0, 2000),))
    assert second["read"] == (("context", 0, len(TEXT)),)
    (shown,) = second["shown"]
    assert TEXT[slice(*shown[1:])] == "Line 20 tells of the number 400."
    assert (last["read"], last["shown"]) == ((), ())


def test_a_run_that_nobody_watches_has_empty_coverage(play: Play) -> None:
    (step,) = run(play, "print(context)\nSUBMIT(answer=context[:1])")
    assert (step["read"], step["shown"]) == ((), ())


def test_an_answer_that_repeats_the_input_does_not_count_as_shown(play: Play) -> None:
    """The output of an accepted SUBMIT echoes the answer, and no model reads it."""
    with watched():
        (step,) = run(play, "SUBMIT(answer=context[:200])")
    assert (step["read"], step["shown"]) == ((("context", 0, 200),), ())


def test_an_input_that_cannot_be_read_does_not_end_a_watched_run(play: Play) -> None:
    rlm = RLM("context, question -> answer", interpreter_factory=LocalPythonInterpreter)
    with watched():
        played = play(rlm, ["```python\nSUBMIT(answer='x')\n```"], context=object(), question="?")
    assert played.prediction.answer == "x"
    watch = Watch({"context": object()})
    assert watch.left_out == {"context": "a object without text"}


# Where the answer stands


def test_an_answer_is_found_wherever_the_input_says_it() -> None:
    text = f"{TEXT}Ovid Systems was founded by Maren Tolliver.\n{TEXT}Maren Tolliver left in 2021.\n"
    answer = {"answer": "Maren Tolliver.", "year": 2021, "names": ["Tolliver", "xy"]}
    found = Watch({"context": text}).occurrences(answer)
    first, second = found["answer"]
    assert (first.value, text[first.start : first.end]) == ("Maren Tolliver", "Maren Tolliver")
    assert first.before.endswith("was founded by ")
    assert second.after.startswith(" left in 2021.")
    assert len(first.before) == 60
    assert found["year"] == []
    assert [one.value for one in found["names"]] == ["Tolliver", "Tolliver"]


def test_an_answer_inside_another_word_or_number_is_not_found() -> None:
    found = Watch({"context": "4000, 1400, a400 and 400."}).occurrences({"answer": "400"})
    assert [one.start for one in found["answer"]] == [21]


def test_an_answer_that_quotes_is_found_in_its_parts() -> None:
    answer = f"The text says: {TEXT[5000:5100]}~ and so on"
    (part,) = Watch({"context": TEXT}).occurrences({"answer": answer})["answer"]
    assert (part.start, part.end) == (5000, 5100)


def test_an_answer_that_stands_everywhere_is_told_twenty_times() -> None:
    assert len(Watch({"context": TEXT}).occurrences({"answer": "number"})["answer"]) == 20


# In a record


def record_of_run(replies: list[str]) -> Record:
    rlm = RLM("context, question -> answer: str", interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=ScriptedLM(replies)):
        record, _ = recorded(rlm, {"context": TEXT, "question": "Which line tells of 400?"})
    return record


def test_a_watched_record_tells_sizes_shares_and_where_the_answer_stands() -> None:
    with watched():
        record = record_of_run(
            ["```python\nprint(context[:2000])\n```", "```python\nSUBMIT(answer='the number 400')\n```"]
        )
    assert record.input_chars == {"context": len(TEXT), "question": 24}
    assert coverage_of(record)["context"] == {"read": 2000 / len(TEXT), "shown": 2000 / len(TEXT), "sent": 0}
    (place,) = record.occurrences["answer"]
    assert TEXT[place.start : place.end] == "the number 400"
    assert record.started_at is not None
    assert Record.model_validate_json(record.as_json()) == record


def test_a_record_of_a_run_that_was_not_watched_tells_of_no_coverage() -> None:
    record = record_of_run(["```python\nSUBMIT(answer='the number 400')\n```"])
    assert (record.input_chars, record.occurrences, coverage_of(record)) == ({}, {}, {})


def test_a_record_written_before_there_was_coverage_still_loads() -> None:
    old = '{"version": 1, "signature": "a -> b", "inputs": {"a": "x"}, "model": "m", "stop": "submitted"}'
    record = Record.model_validate_json(old)
    assert (record.started_at, coverage_of(record)) == (None, {})


def test_shares_count_each_place_once_and_what_sub_calls_were_sent() -> None:
    call = SubCall(name="query", kind="query", sent=(("context", 0, 30), ("context", 50, 60)))
    steps = [
        Step(read=(("context", 0, 100),), shown=(("context", 0, 10),), calls=(call, call)),
        Step(shown=(("context", 5, 20),)),
    ]
    record = Record(
        signature="context -> answer",
        inputs={},
        model="m",
        stop="submitted",
        trajectory=steps,
        input_chars={"context": 100, "empty": 0},
    )
    assert coverage_of(record) == {"context": {"read": 1.0, "shown": 0.2, "sent": 0.4}}


class _Cycle:
    """Garbage that only the collector frees, in Python: there another thread gets its turn to parse."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        for _ in range(3):
            pass


def test_code_is_read_in_many_threads_at_once() -> None:
    """CPython 3.11 raises SystemError now and then if the collector lets another thread parse meanwhile."""
    code = "print(context[:9])\n" + "+".join(f"f({n}, [1, {{'a': (1,)}}])" for n in range(30))

    def read(_: int) -> set[tuple[int, int]]:
        watch = Watch({"context": TEXT})
        seen = set()
        for _ in range(25):
            _Cycle()
            seen |= {span[1:] for span in watch.read(code)}
        return seen

    before = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(16) as pool:
            assert set.union(*pool.map(read, range(16))) == {(0, 9)}
    finally:
        gc.set_threshold(*before[1])
        sys.setswitchinterval(before[0])
