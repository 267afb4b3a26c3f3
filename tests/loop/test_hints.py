"""Habits of other engines and of notebooks are answered by what to do here."""

from __future__ import annotations

import pytest

from rlm_dspy.loop.hints import hint_for
from rlm_dspy.trajectory import Step, SubCall

SUBMIT = "SUBMIT(answer=...)"
FAILS = {
    "FINAL(42)": SUBMIT,
    "x = 1\nFINAL_VAR('x')": SUBMIT,
    "final_answer('Aldo')": SUBMIT,
    "print(1)\nreturn 42": SUBMIT,
    "if context:\n    return context[:3]": SUBMIT,
    "answer['ready'] = True": SUBMIT,
    "!ls -la": "Only Python",
    "x = 1\n  %time len(context)": "Only Python",
    "%%bash\nls": "Only Python",
    "name = input('Which?')": "input()",
    "import multiprocessing\nmultiprocessing.Pool(2).map(len, ['a'])": "threads",
    "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()": "threads",
    "import subprocess\nsubprocess.run(['ls'])": "threads",
    "import asyncio\nasyncio.get_event_loop().run_until_complete(main())": "`await`",
}


@pytest.mark.parametrize(("code", "told"), FAILS.items())
def test_a_cell_that_failed_by_a_habit_is_told_what_to_do_here(code: str, told: str) -> None:
    assert told in hint_for(Step(code=code, kind="error", output="it failed"), SUBMIT)


@pytest.mark.parametrize(
    "code", ["answer = {'content': 'Aldo', 'ready': True}", "answer = {}\nanswer['ready'] = True"]
)
def test_an_answer_that_is_only_marked_as_ready_is_told_how_to_end(code: str) -> None:
    assert SUBMIT in hint_for(Step(code=code, kind="output"), SUBMIT)


def test_a_join_over_failed_items_is_told_to_leave_them_out() -> None:
    failed = SubCall(name="query", kind="query", error="it failed")
    code = "replies = llm_query_batched(parts)\nprint('\\n'.join(replies))"
    assert "Leave it out" in hint_for(Step(code=code, kind="error", calls=(failed,)), SUBMIT)
    assert not hint_for(Step(code=code, kind="error"), SUBMIT)


@pytest.mark.parametrize(
    "code",
    [
        "print(context[:100])",
        "1 / 0",
        "def final_answer(x):\n    return x\nfinal_answer(1 / 0)",
        "def f():\n    return 1 / 0\nf()",
        "x = 5 % 3\ny =",
        "ready = {'ready': True}\nprint(ready)",
        "SUBMIT(answer=FINAL)",
    ],
)
def test_other_cells_are_told_nothing_more(code: str) -> None:
    assert hint_for(Step(code=code, kind="error", output="it failed"), SUBMIT) == ""


def test_a_cell_that_ran_is_told_nothing_of_names_that_it_has() -> None:
    assert hint_for(Step(code="final_answer = find()\nprint(final_answer)"), SUBMIT) == ""
    assert hint_for(Step(code="import subprocess\nprint(input)"), SUBMIT) == ""
