"""The scripted model that ships for tests of users' programs."""

from __future__ import annotations

import asyncio
import copy
import doctest
import threading

import dspy
import pytest

from rlm_dspy import RLM, Limits, testing
from rlm_dspy.testing import ScriptedLM


def test_its_replies_are_played_in_order_and_its_calls_kept() -> None:
    """Each call takes the next; an empty one is an empty text."""
    lm = ScriptedLM(["a", None, "b"])
    assert [lm(f"q{n}") for n in range(3)] == [["a"], [""], ["b"]]
    assert [messages[-1]["content"] for messages in lm.script.calls] == ["q0", "q1", "q2"]


def test_a_function_answers_every_call() -> None:
    """It is given the messages, the system message first."""
    lm = ScriptedLM(lambda messages: "\n".join(message["role"] for message in messages))
    assert lm("x") == ["user"]
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()), pytest.raises(dspy.AdapterParseError, match="system"):
        dspy.Predict("question -> answer")(question="?")


def test_an_exception_is_raised_and_the_script_goes_on() -> None:
    """As DSPy raises what its engines do."""
    lm = ScriptedLM([dspy.LMServerError("down"), "up"])
    with pytest.raises(dspy.LMError, match="down"):
        lm("x")
    assert lm("x") == ["up"]


def test_a_script_that_is_over_says_so() -> None:
    """The message counts the calls."""
    with pytest.raises(dspy.LMError, match="no reply left for call 1"):
        ScriptedLM([])("x")


def test_usage_counts_words() -> None:
    """So that tests of budgets have numbers to check."""
    with dspy.track_usage() as tracker:
        ScriptedLM(["four words in all"])("two words")
    usage = tracker.get_total_tokens()["scripted/lm"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 4)


def test_copies_share_the_script() -> None:
    """Optimizers copy LMs, with other settings too."""
    lm = ScriptedLM(["a", "b", "c"])
    assert [copy.deepcopy(lm)("x"), lm.copy(temperature=1.0)("x"), lm("x")] == [["a"], ["b"], ["c"]]
    assert len(lm.script.calls) == 3


async def test_awaited_calls_are_under_way_together() -> None:
    """`most_at_once` counts them: here none is answered before all are asked."""
    together = threading.Barrier(5)
    lm = ScriptedLM(lambda _: f"a {together.wait(60)}")
    await asyncio.gather(*(lm.acall("x") for _ in range(5)))
    assert lm.script.most_at_once == 5


def test_its_examples_run() -> None:
    """The docstring tells the truth."""
    with dspy.context(interpreter_factory=None):
        assert doctest.testmod(testing).failed == 0


PARENT = """```python
first = llm_query("Which?")
gist = gists(text=first)
more = dspy.Predict("text -> words: int")(text=gist).words
SUBMIT(answer=[first, gist, more, rlm_query("Go on", gist)])
```"""


def test_replies_are_given_by_role() -> None:
    """No test has to find out from the messages who asks; `replies` serves the roles without a script."""
    lm = ScriptedLM(
        ["[[ ## words ## ]]\n2\n\n[[ ## completed ## ]]"],
        act=[PARENT],
        child=["```python\nSUBMIT(response='from a child')\n```"],
        query=["Polly"],
        subs={"gists": ["[[ ## gist ## ]]\na bird\n\n[[ ## completed ## ]]"]},
    )
    rlm = RLM("question -> answer: list", subs={"gists": "text -> gist"}, limits=Limits(max_depth=1))
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        assert rlm(question="?").answer == ["Polly", "a bird", 2, "from a child"]


def test_a_role_whose_script_is_over_is_named() -> None:
    """It is the first thing to know of a test that asks once too often."""
    lm = ScriptedLM(
        act=["```python\ntry:\n    llm_query('?')\nexcept SubCallError as e:\n    SUBMIT(answer=str(e))\n```"]
    )
    with dspy.context(lm=lm):
        assert "made as 'query'; add one" in RLM("question -> answer")(question="?").answer


def test_the_extraction_has_replies_of_its_own() -> None:
    """It is asked when the last turn has not submitted."""
    lm = ScriptedLM(act=["```python\nx = 1\n```"], extract=["[[ ## answer ## ]]\nread\n\n[[ ## completed ## ]]"])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        assert RLM("question -> answer", max_iters=1)(question="?").answer == "read"


def test_a_str_in_the_place_of_replies_is_refused() -> None:
    """It would be played one character per call."""
    with pytest.raises(TypeError, match=r"takes a list of replies, not a str; pass \['42'\]"):
        ScriptedLM("42")
    with pytest.raises(TypeError, match="not a str"):
        ScriptedLM(query="42")


def test_a_dict_in_the_place_of_replies_is_refused() -> None:
    """Its keys would be played."""
    with pytest.raises(TypeError, match=r"not a dict; pass the replies of a role by its name: act=\[...\]"):
        ScriptedLM({"act": ["42"]})


def test_a_message_with_a_picture_keeps_its_text() -> None:
    """A script that looks at what it is asked sees the question."""
    lm = ScriptedLM(act=["```python\nSUBMIT(answer=llm_query(['Who?', picture]))\n```"], query=["a cat"])
    with dspy.context(lm=lm):
        RLM("picture: dspy.Image -> answer")(picture=dspy.Image("data:image/png;base64,AAAA"))
    assert lm.script.calls[1][-1]["content"] == "Who?\n<image>"
