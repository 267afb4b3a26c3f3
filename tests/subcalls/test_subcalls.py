"""`llm_query` and `llm_query_batched`: counted, concurrent, each failure an object of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.errors import RLMError
from rlm_dspy.repl.bootstrap import HOST_TOOL
from rlm_dspy.subcalls.frames import SubFrame
from rlm_dspy.subcalls.target import Callees
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play

SHOWN = block("print(result)\nSUBMIT(answer=repr(result))")


def asks(code: str, **answers: Any) -> Any:
    """Return a model that writes `code` when it acts, and answers each prompt from `answers`."""
    return ScriptedLM(act=lambda _: block(code), query=lambda said: answers.get(said[-1]["content"], "?"))


def test_llm_query_gives_the_answer_as_a_str(play: Play) -> None:
    """One prompt, one answer."""
    code = "answer = llm_query('colour?')\nSUBMIT(answer=answer, kind=type(answer).__name__)"
    pred = play(RLM("q -> answer, kind"), [block(code), " blue\n"], q="?").prediction
    assert (pred.answer, pred.kind) == ("blue", "str")


def test_llm_query_batched_answers_in_order(play: Play) -> None:
    """However long each takes."""
    first_may_end = threading.Event()

    def reply(messages: list[dict[str, str]]) -> str:
        prompt = messages[-1]["content"]
        if prompt == "slow":
            first_may_end.wait(60)
            return "slow answer"
        if prompt == "fast":
            first_may_end.set()
            return "fast answer"
        return block("SUBMIT(answer=llm_query_batched(['slow', 'fast']))")

    played = play(RLM("q -> answer: list[str]"), reply, q="?")
    assert played.prediction.answer == ["slow answer", "fast answer"]


@pytest.mark.parametrize("most", [1, 3, 16])
def test_a_batch_has_at_most_max_concurrency_calls_under_way(play: Play, most: int) -> None:
    """And as many as that."""
    together = threading.Barrier(most)

    def reply(messages: list[dict[str, str]]) -> str:
        if messages[-1]["content"].startswith("p"):
            together.wait(60)
            return "a"
        return block(f"SUBMIT(n=len(llm_query_batched([f'p{{i}}' for i in range({2 * most})])))")

    lm = ScriptedLM(reply)
    played = play(RLM("q -> n: int", limits=Limits(max_concurrency=most)), lm, q="?")
    assert played.prediction.n == 2 * most
    assert lm.script.most_at_once == most


def test_a_failed_item_is_an_object_that_is_false_and_the_others_are_kept(play: Play) -> None:
    """No failure hides among the answers as a string, and none loses the answers that were paid."""
    code = (
        "found = llm_query_batched(['ok', 'bad', 'also'])\n"
        "print(found[1].error)\n"
        "print(found)\n"
        "SUBMIT(good=[a for a in found if a], kind=found[1].kind, is_str=isinstance(found[1], str))"
    )
    model = asks(code, ok="yes", bad=dspy.LMRateLimitError("slow down"), also="yes too")
    played = play(RLM("q -> good: list[str], kind: str, is_str: bool"), model, q="?")
    assert played.prediction.good == ["yes", "yes too"]
    assert played.prediction.kind == "LMRateLimitError"
    assert played.prediction.is_str is False
    assert "slow down" in played.outputs[0].splitlines()[0]
    assert "<failed: LMRateLimitError" in played.outputs[0]
    assert played.prediction.usage["by_role"]["query"]["failures"] == 1


def test_a_failure_of_any_kind_loses_no_answer(play: Play) -> None:
    """Also one that is no error of the LM."""
    code = "SUBMIT(good=[a for a in llm_query_batched(['ok', 'bad']) if a])"
    model = asks(code, ok="yes", bad=RuntimeError("bug in an engine"))
    assert play(RLM("q -> good: list[str]"), model, q="?").prediction.good == ["yes"]


def test_an_empty_reply_is_a_failed_call(play: Play) -> None:
    """Nothing came back, and it is told as such."""
    code = (
        "try:\n    llm_query('empty')\nexcept Exception as e:\n    SUBMIT(answer=type(e).__name__ + ': ' + str(e))"
    )
    played = play(RLM("q -> answer"), asks(code, empty=""), q="?")
    assert played.prediction.answer.startswith("SubCallError: ")
    assert "empty" in played.prediction.answer


def test_a_failed_single_call_raises_in_the_code_and_the_run_goes_on(play: Play) -> None:
    """The model reads what happened and can do something else."""
    replies = [block("llm_query('x')"), dspy.LMServerError("down"), block("SUBMIT(answer='without')")]
    played = play(RLM("q -> answer"), replies, q="?")
    assert played.kinds == ["error", "submitted"]
    assert "SubCallError" in played.outputs[0]
    assert "down" in played.outputs[0]


def test_calls_beyond_the_limit_fail_one_by_one_and_cost_nothing(play: Play) -> None:
    """A batch over what is left is answered as far as it goes."""
    code = "found = llm_query_batched(list('abcde'))\nprint(found[-1])\nSUBMIT(n=sum(1 for a in found if a))"
    lm = ScriptedLM(lambda messages: "x" if len(messages[-1]["content"]) == 1 else block(code))
    played = play(RLM("q -> n: int", max_llm_calls=3), lm, q="?")
    assert played.prediction.n == 3
    assert "LimitExceeded" in played.outputs[0]
    assert "0 of 3 model calls are left" in played.outputs[0]
    assert len(lm.script.calls) == 1 + 3


def test_a_call_beyond_the_limit_leaves_the_trajectory_and_the_run_ends_well(play: Play) -> None:
    """The model is told to go on without; nothing is thrown away, and the usage names the limit."""
    replies = [block("a = llm_query('1')"), "x", block("llm_query('2')"), block("SUBMIT(answer=a)")]
    played = play(RLM("q -> answer", max_llm_calls=1), replies, q="?")
    assert (played.prediction.answer, played.prediction.stop) == ("x", "submitted")
    assert played.prediction.usage["limit"] == "max_llm_calls"
    assert "SUBMIT what you have" in played.outputs[1]


def test_failed_calls_count_against_the_limit(play: Play) -> None:
    """A failed call may be billed too."""
    replies = [block("llm_query_batched(['1'])"), dspy.LMServerError("down"), block("llm_query('2')")]
    played = play(RLM("q -> answer", max_llm_calls=1), [*replies, block("SUBMIT(answer='')")], q="?")
    assert "0 of 1" in played.outputs[1]


def test_without_sub_calls_they_are_not_offered(play: Play) -> None:
    """`max_llm_calls=0` takes them out of the list of functions."""
    played = play(RLM("q -> answer", max_llm_calls=0), [block("SUBMIT(answer='a')")], q="?")
    assert "llm_query" not in played.calls[0][-1]["content"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("llm_query('')", "non-empty"),
        ("llm_query(['a', 'b'])", "llm_query_batched"),
        ("llm_query(None)", "non-empty"),
        ("llm_query_batched('one prompt')", "llm_query(prompt)"),
        ("llm_query_batched(['ok', '', 3])", "[1, 2]"),
    ],
)
def test_a_wrong_call_says_how_to_call(play: Play, call: str, told: str) -> None:
    """It costs no model call."""
    lm = ScriptedLM([block(call), block("SUBMIT(answer='a')")])
    played = play(RLM("q -> answer"), lm, q="?")
    assert "TypeError" in played.outputs[0]
    assert told in played.outputs[0]
    assert len(lm.script.calls) == 2


def test_an_empty_batch_is_an_empty_list(play: Play) -> None:
    """It costs nothing."""
    code = "SUBMIT(n=len(llm_query_batched(p for p in [])))"
    assert play(RLM("q -> n: int"), [block(code)], q="?").prediction.n == 0


def test_prompts_may_come_from_any_iterable(play: Play) -> None:
    """A generator or a tuple of prompts is a batch."""
    code = "SUBMIT(n=len(llm_query_batched(str(i) for i in range(3))) + len(llm_query_batched(('a', 'b'))))"
    assert play(RLM("q -> n: int"), [block(code), *"abcde"], q="?").prediction.n == 5


def test_a_sub_lm_answers_sub_calls_and_stays_off_the_predictors(play: Play) -> None:
    """It is passed per call: `set_lm` and the optimizers still own `query.lm`."""
    sub_lm = ScriptedLM(["from the small one"])
    rlm = RLM("q -> answer", sub_lm=sub_lm)
    played = play(rlm, [block("SUBMIT(answer=llm_query('x'))")], q="?")
    assert played.prediction.answer == "from the small one"
    assert rlm.query.lm is None
    assert len(sub_lm.script.calls) == 1


def test_sub_calls_run_on_the_lm_of_the_context(play: Play) -> None:
    """`dspy.context(lm=...)` reaches the threads of a batch."""
    played = play(
        RLM("q -> answer: list[str]"), asks("SUBMIT(answer=llm_query_batched(['a', 'b']))", a="1", b="2"), q="?"
    )
    assert played.prediction.answer == ["1", "2"]


def test_a_prompt_is_sent_as_it_was_written(play: Play) -> None:
    """No format of an adapter is put around it, whatever adapter the program uses."""
    prompt = "  What does {x} mean?\n\n[[ ## y ## ]]  "
    with dspy.context(adapter=dspy.JSONAdapter()):
        played = play(RLM("q -> answer"), [block(f"SUBMIT(answer=llm_query({prompt!r}))"), "it"], q="?")
    assert played.calls[1][-1] == {"role": "user", "content": prompt}
    assert played.prediction.answer == "it"


def test_what_was_learned_of_query_is_used(play: Play) -> None:
    """Instructions and demos of the predictor `query` are sent with each prompt."""
    rlm = RLM("q -> answer")
    rlm.query.signature = rlm.query.signature.with_instructions("Answer in French.")
    rlm.query.demos = [dspy.Example(prompt="one?", response="un")]
    messages = play(rlm, [block("SUBMIT(answer=llm_query('two?'))"), "deux"], q="?").calls[1]
    assert [message["content"] for message in messages] == ["Answer in French.", "one?", "un", "two?"]


def test_the_host_function_is_reached_by_its_name_alone() -> None:
    """What the REPL calls is one tool; an unknown sub is told by name."""
    assert HOST_TOOL.isidentifier()
    with pytest.raises(RLMError, match="'claims'"):
        Callees(RLM("q -> answer"), depth=0, make_child=RLM).find(SubFrame(kind="sub", name="claims"))


def test_a_call_after_the_code_changed_our_names_still_works_next_turn(play: Play) -> None:
    """Code may shadow `llm_query` for itself without breaking the batch."""
    replies = [block("llm_query = None"), block("SUBMIT(answer=llm_query_batched(['x'])[0])"), "fine"]
    assert play(RLM("q -> answer"), replies, q="?").prediction.answer == "fine"
