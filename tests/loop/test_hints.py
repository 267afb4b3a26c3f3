"""Habits of other engines and of notebooks are answered by what to do here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.loop.hints import hint_for
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step, SubCall
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play

SUBMIT = "SUBMIT(answer=...)"
SUBMITS = block("SUBMIT(answer='a')")
INPUTS = ("context", "question")
FAILS = {
    "FINAL(42)": SUBMIT,
    "x = 1\nFINAL_VAR('x')": SUBMIT,
    "final_answer('Aldo')": SUBMIT,
    "print(1)\nreturn 42": SUBMIT,
    "if context:\n    return context[:3]": SUBMIT,
    "answer['ready'] = True": SUBMIT,
    "!ls -la": "Only Python",
    "?context": "Only Python",
    "len(context)??": "Only Python",
    "pip install sklearn": "installed",
    "!pip install sklearn": "installed",
    "import requests\nrequests.get('http://a.b')": "no network",
    "import urllib.request\nurllib.request.urlopen('http://a.b')": "no network",
    "print(open('context.txt').read())": "(context, question)",
    "from pathlib import Path\nPath('data.csv').read_text()": "(context, question)",
    "import asyncio\nasyncio.run(main())": "`await`",
    "import os\nos.fork()": "threads",
    "print(await llm_query('a'))": "leave out `await`",
    "import asyncio\nawait asyncio.gather(*[llm_query(each) for each in 'ab'])": "llm_query.acall(...)",
    "x = 1\n  %time len(context)": "Only Python",
    "%%bash\nls": "Only Python",
    "files = !ls": "Only Python",
    "name = input('Which?')": "input()",
    "import context": "context is there already",
    "from context import question": "context is there already",
    "from rlm import llm_query": "llm_query is there already",
    "import multiprocessing\nmultiprocessing.Pool(2).map(len, ['a'])": "threads",
    "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()": "threads",
    "import subprocess\nsubprocess.run(['ls'])": "threads",
    "import asyncio\nasyncio.get_event_loop().run_until_complete(main())": "`await`",
}


@pytest.mark.parametrize(("code", "told"), FAILS.items())
def test_a_cell_that_failed_by_a_habit_is_told_what_to_do_here(code: str, told: str) -> None:
    assert told in hint_for(Step(code=code, kind="error", output="it failed"), SUBMIT, INPUTS)


@pytest.mark.parametrize(
    "code",
    [
        "context = 'THE QUIET LOOP: COLLECTED ARTICLES'",
        "context, n = 'THE QUIET LOOP', 1",
        "for context in ['a', 'b']:\n    pass",
        "with_it = 1\nif with_it:\n    context = open",
    ],
)
def test_an_input_that_code_replaces_is_told_with_its_original(code: str) -> None:
    assert "INPUTS['context']" in hint_for(Step(code=code), SUBMIT, INPUTS)


@pytest.mark.parametrize(
    "code",
    [
        "context = context.lower()",
        "context = INPUTS['context'][:50]",
        "context[0] = 'a'",
        "def f(context):\n    context = 1",
        "print([context for context in 'ab'])",
        "text = context",
    ],
)
def test_an_input_that_is_only_used_is_told_nothing(code: str) -> None:
    assert not hint_for(Step(code=code), SUBMIT, INPUTS)


def test_os_system_is_told_that_its_output_is_not_shown() -> None:
    assert "os.listdir" in hint_for(Step(code="import os\nprint(os.system('ls'))", output="32512"), SUBMIT)


def test_a_function_that_nobody_awaited_is_told_how_to_run_it() -> None:
    code = "async def main():\n    SUBMIT(answer='a')\n\nmain()"
    assert "`await main()`" in hint_for(Step(code=code), SUBMIT)
    assert not hint_for(Step(code=code.replace("\nmain()", "\nawait main()")), SUBMIT)


def test_a_repetition_is_told_whatever_comments_and_layout_its_code_has(play: Play) -> None:
    """Also of code that fails, by turns with other code, and of a reply without code."""
    codes = ["1/0", "1 / 0  # again", "print( 2 )", "1/0", "# two\nprint(2)"]
    played = play(
        RLM("q -> answer", limits=Limits(max_repetitions=9)), [*map(block, codes), "So?", "So?", SUBMITS], q="?"
    )
    assert [step["repeats"] for step in played.prediction.trajectory] == [0, 1, 0, 1, 3, 0, 6, 0]
    assert "turn 6" in played.prediction.trajectory[6]["notice"]


@pytest.mark.parametrize(
    "reply",
    ["", "<think>Hm.</think>", block("from datetime import datetime\nprint(datetime(2019, 1, 2).year)")],
    ids=["empty", "thinking alone", "a date"],
)
def test_a_reply_that_comes_again_ends_the_run_early(reply: str, play: Play) -> None:
    """Also an empty one; the dates of `datetime` are no clock."""
    played = play(RLM("question -> answer"), [reply] * 8, question="?")
    assert len(played.kinds) < 6


def test_code_that_reads_the_clock_is_no_repetition(play: Play) -> None:
    replies = [block("from datetime import datetime\nprint(datetime.now().year)")] * 6
    played = play(RLM("question -> answer"), [*replies, block("SUBMIT(answer='a')")], question="?")
    assert played.prediction.stop == "submitted"


GOES_ON = {
    "an object": ("class R:\n    i = 0\n    def step(self): self.i += 1\nr = R()", "r.step()"),
    "a global": (
        "pos = 0\ndef following():\n    global pos\n    pos += 1\n    return 'part'",
        "print(following())",
    ),
    "a function over a list": (
        "todo = list('aaaaaaaa')\ndef take(some):\n    return some.pop()",
        "print(take(todo))",
    ),
    "an iterator that is sliced": (
        "from itertools import islice\nparts = iter(['a'] * 40)",
        "print(list(islice(parts, 2)))",
    ),
    "an iterator in a loop": ("parts = iter(['a'] * 40)", "for part in parts:\n    print(part)\n    break"),
    "a generator": (
        "def read():\n    while True:\n        yield 'a'\nparts = read()",
        "for x in parts:\n    break",
    ),
    "a queue": ("import queue\nq = queue.Queue()\nfor i in range(9): q.put('a')", "print(q.get())"),
    "a thread": (
        "import threading\nready = threading.Event()\nthreading.Timer(60, ready.set)",
        "print(ready.wait(0.01))",
    ),
    "what fails": ("todo = list('aaaaaaaa')", "item = todo.pop()\nint(item)"),
    "a pause before what fails": ("import time", "import time\ntime.sleep(0.01)\nint('a')"),
}


@pytest.mark.parametrize("case", GOES_ON)
def test_code_that_goes_on_each_time_is_no_repetition(case: str, play: Play) -> None:
    """Though it writes the same each time."""
    before, again = GOES_ON[case]
    played = play(RLM("q -> answer"), [block(before), *[block(again)] * 5, SUBMITS], q="?")
    assert played.prediction.stop == "submitted"
    assert not any(step["repeats"] for step in played.prediction.trajectory)


@pytest.mark.parametrize(
    ("before", "again"),
    [
        ("def count(text):\n    seen = {}\n    seen['n'] = len(text)\n    return seen", "print(count('abc'))"),
        ("parts = list(iter('abc'))", "for part in parts:\n    print(part)"),
        ("n = 'abc'.count('a')", "print(n)"),
        ("found = {'a': 1}", "print(found.get('a'))"),
        ("pass", "total += 1"),
        ("pass", "x = (  # {}"),
    ],
    ids=["a function of its own variables", "a list", "a count", "a dict", "what fails", "no Python"],
)
def test_code_that_does_the_same_again_is_a_repetition(before: str, again: str, play: Play) -> None:
    """Whatever its comments are, also if it is no Python."""
    turns = [block(again.replace("{}", str(number))) for number in range(8)]
    played = play(RLM("q -> answer"), [block(before), *turns], q="?")
    assert [step["repeats"] for step in played.prediction.trajectory[:3]] == [0, 0, 2]
    assert len(played.prediction.trajectory) < 8


def test_other_code_with_the_output_of_the_turn_before_is_told_to_submit(play: Play) -> None:
    codes = ["x = 7\nprint(x)", "print(x)", "pass", "None"]
    played = play(RLM("q -> answer"), [*map(block, codes), SUBMITS], q="?")
    notices = [step["notice"] for step in played.prediction.trajectory]
    assert "Turn 1 had the same output" in notices[1]
    assert SUBMIT in notices[1]
    assert not any("same output" in notice for notice in [notices[0], *notices[2:]])


def test_a_child_that_repeats_itself_is_told_and_converges(play: Play) -> None:
    root = ["answer = rlm_query('q', 'a context')\nSUBMIT(answer=answer)"]
    child = [block("print(1)"), block("print(1) # 1"), block("print( 1 )"), block("SUBMIT('a')")]
    lm = ScriptedLM(act=[*map(block, root)], child=child)
    played = play(RLM("q -> answer"), lm, q="?")
    steps = played.prediction.trajectory[0]["calls"][0]["steps"]
    assert [step["repeats"] for step in steps] == [0, 1, 1, 0]
    assert "This is the last turn" in steps[2]["notice"]
    assert played.prediction.answer == "a"


FAILING = ["x + 'a'", "x[0]", "len(x)", "'a' in x", "sorted([x, x])", "int(x)", "x.strip()", "[y for y in x]"]


@pytest.mark.parametrize("use", FAILING)
def test_a_failed_item_says_so_whatever_code_does_with_it(use: str, play: Play) -> None:
    """Also turns later."""
    lm = ScriptedLM(
        act=[block("x = llm_query_batched(['p'])[0]"), block(use), SUBMITS],
        query=lambda messages: dspy.LMServerError("it is down"),
    )
    told = play(RLM("q -> answer"), lm, q="?").prediction.trajectory[1]["output"]
    assert "it is down" in told
    assert "[reply for reply in replies if reply]" in told


@pytest.mark.parametrize(
    "code", ["answer = {'content': 'Aldo', 'ready': True}", "answer = {}\nanswer['ready'] = True"]
)
def test_an_answer_that_is_only_marked_as_ready_is_told_how_to_end(code: str) -> None:
    assert SUBMIT in hint_for(Step(code=code, kind="output"), SUBMIT)


@pytest.mark.parametrize(
    "joined", ["str(replies)", "f'{replies[0]} {replies[1]}'", "'; '.join(map(str, replies))"]
)
def test_an_answer_with_a_failed_item_as_text_is_sent_back_once(joined: str, play: Play) -> None:
    """`str` and f-strings take any object, so no error says it."""
    ask = "replies = llm_query_batched(['one', 'two'])"
    lm = ScriptedLM(
        act=[
            block(f"{ask}\nSUBMIT(answer={joined})"),
            block(f"SUBMIT(answer={joined})"),
        ],
        query=lambda said: dspy.LMError("it broke") if "two" in said[-1]["content"] else "1",
    )
    played = play(RLM("context, question -> answer"), lm, context="c", question="?")
    assert played.kinds == ["refused", "submitted"]
    assert "answer: it contains a failed item of a batch as text. Ask again" in played.outputs[0]
    assert "<failed: LMError" in played.prediction.answer


def test_the_last_answer_is_taken_with_its_failed_items(play: Play) -> None:
    lm = ScriptedLM(
        act=[block("SUBMIT(answer=str(llm_query_batched(['one'])))")], query=lambda _: dspy.LMError("it broke")
    )
    played = play(RLM("context, question -> answer", max_iters=1), lm, context="c", question="?")
    assert played.kinds == ["submitted"]


@pytest.mark.parametrize("words", ["FINAL(total)", "So:\nFINAL_VAR(total)", "  final_answer('4')"])
def test_an_end_of_another_engine_in_the_words_around_a_block_is_told_how_to_end(words: str) -> None:
    assert SUBMIT in hint_for(Step(code="total = 4", reasoning=words, output="(no output)"), SUBMIT, INPUTS)


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
        "from urllib.parse import urlparse\nurlparse('http://a.b').port_",
        "import io, pandas as pd\npd.read_csv(io.StringIO('a'))['b']",
    ],
)
def test_other_cells_are_told_nothing_more(code: str) -> None:
    assert hint_for(Step(code=code, kind="error", output="it failed"), SUBMIT) == ""


def test_a_cell_that_ran_is_told_nothing_of_names_that_it_has() -> None:
    assert hint_for(Step(code="final_answer = find()\nprint(final_answer)"), SUBMIT) == ""
    assert hint_for(Step(code="import subprocess\nprint(input)"), SUBMIT) == ""
