"""What a model writes beside or in place of code: corrections, made-up outputs, one more block for an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rlm_dspy import RLM
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play

TEXT = "tides rise\nstocks fall\ntides fall"


@pytest.mark.parametrize("code", ["print(len(context))", "1/0", "n = 1"])
def test_a_block_is_no_answer_of_a_run_that_is_read_from_its_turns(play: Play, code: str) -> None:
    """A model that repeats itself writes its block again when it is asked for the answer."""
    played = play(RLM("context -> answer: str"), [block(code)] * 9, context=TEXT)
    assert (played.prediction.stop, played.prediction.answer) == ("unanswered", None)


def test_other_code_over_an_input_is_no_answer_either(play: Play) -> None:
    replies = [*[block("print(1)")] * 4, *[block("print(context[20:30])")] * 3]
    played = play(RLM("context -> answer: str"), replies, context=TEXT)
    assert (played.prediction.stop, played.prediction.answer) == ("unanswered", None)


@pytest.mark.parametrize(
    "code", ["print(found[:5])", "for each in found:\n    print(each)", "print(find_passages('a b', 'a'))"]
)
@pytest.mark.parametrize("words", ["", "I look further:\n"])
def test_code_over_what_only_the_repl_has_is_no_answer_either(play: Play, code: str, words: str) -> None:
    """A variable of an earlier turn, or a function of the REPL."""
    replies = [block("found = [1, 2]"), *[f"{words}{block(code)}"] * 3]
    played = play(RLM("context -> answer: str", max_iters=1), replies, context=TEXT)
    assert (played.prediction.stop, played.prediction.answer) == ("unanswered", None)


def test_code_is_an_answer_where_code_is_asked_for(play: Play) -> None:
    replies = [*[block("n = 1\nprint(n)")] * 4, "def double(n):\n    return 2 * n"]
    played = play(RLM("context -> program: str"), replies, context=TEXT)
    assert (played.prediction.stop, played.prediction.program) == ("extracted", "def double(n):\n    return 2 * n")


@pytest.mark.parametrize(
    "invented", ["Output:\n```\n99\n```", "**Output:**\n99", "<tool_response>99</tool_response>"]
)
def test_what_follows_a_made_up_output_is_not_run(play: Play, invented: str) -> None:
    first = f"{block('print(len(context))')}\n{invented}\nSo it is 99.\n{block('SUBMIT(answer=99)')}"
    played = play(RLM("context -> answer: int"), [first, block("SUBMIT(answer=33)")], context=TEXT)
    assert (played.kinds, played.outputs[0], played.prediction.answer) == (["output", "submitted"], "33", 33)


def test_a_corrected_submit_counts(play: Play) -> None:
    reply = f"{block('n = 2')}\n{block('SUBMIT(answer=1)')}\nWait, that is wrong.\n{block('SUBMIT(answer=n)')}"
    assert play(RLM("context -> answer: int"), [reply], context=TEXT).prediction.answer == 2


GOES_ON = [
    "done += 1\nprint('ok')",
    "todo.pop()\nprint('ok')",
    "step = step + 1",
    "print(next(lines))",
    "import random\nprint(random.choice('aa'))",
    "import time\nprint('waiting')",
]


@pytest.mark.parametrize("code", GOES_ON)
def test_code_that_goes_on_where_it_was_is_no_repetition(play: Play, code: str) -> None:
    begin = "done, step, todo = 0, 0, list(range(99))\nlines = iter('a' * 99)"
    replies = [block(begin), *[block(code)] * 8, block("SUBMIT(answer=done)")]
    played = play(RLM("context -> answer: int"), replies, context=TEXT)
    assert (played.prediction.stop, played.prediction.usage["limit"]) == ("submitted", None)


REPEATS = [
    "total = 0\nfor line in context.splitlines():\n    total += 1\nprint(total)",
    "rows = []\nrows.append(1)",
]


@pytest.mark.parametrize("code", REPEATS)
def test_code_that_begins_anew_each_time_is_a_repetition(play: Play, code: str) -> None:
    replies = [*[block(code)] * 3, block("SUBMIT(answer=1)")]
    played = play(RLM("context -> answer: int"), replies, context=TEXT)
    assert [step["repeats"] for step in played.prediction.trajectory] == [0, 1, 1, 0]


def test_sub_calls_with_other_prompts_are_no_repetition(play: Play) -> None:
    code = "reply = llm_query(f'read {len(INPUTS)} {sorted(seen)}')\nseen = {*seen, len(seen)}\nprint('ok')"
    replies = [block("seen = set()"), *[block(code), "fine"] * 6, block("SUBMIT(answer=len(seen))")]
    assert play(RLM("context -> answer: int"), replies, context=TEXT).prediction.answer == 6
