"""A run that nears a limit converges: it never overspends, and what is left pays for its last turn."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, LimitExceeded, Limits
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered, role
from rlm_dspy.concurrency.timeouts import call_with_timeout
from rlm_dspy.errors import UnknownPrice
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.usage import Amount, Usage
from tests.playing import block, is_last_turn
from tests.playing import fields as reply_of

if TYPE_CHECKING:
    from rlm_dspy.testing import Messages
    from tests.playing import Play

PRICES = {"scripted/lm": (1.0, 10.0)}
"""USD per million tokens of the scripted LM."""


def asks_until_told(messages: Messages) -> str:
    """Make a sub-call a turn; submit on the turn that is said to be the last."""
    if role() != "act":
        return "hi " * 100
    return block("SUBMIT(answer='in time')" if is_last_turn(messages) else "print(llm_query('hello ' * 200)[:5])")


# Convergence


@pytest.mark.parametrize(
    ("name", "value"), [("max_cost", 0.04), ("max_input_tokens", 25_000), ("max_output_tokens", 2_000)]
)
def test_a_run_that_nears_its_budget_is_told_its_last_turn_and_ends_within_it(
    play: Play, name: str, value: float
) -> None:
    """The turn is paid from what was kept for it, and `usage` names the limit."""
    most: dict[str, Any] = {name: value, "max_iters": 500, "max_llm_calls": 500, "max_repetitions": None}
    limits = Limits(prices=PRICES, **most)
    prediction = play(RLM("q -> answer", limits=limits), asks_until_told, q="?").prediction
    assert (prediction.stop, prediction.answer) == ("submitted", "in time")
    assert prediction.usage["limit"] == name
    assert 5 < len(prediction.trajectory) < 500
    assert 0 < prediction.usage[{"max_cost": "cost"}.get(name, name.removeprefix("max_"))] <= value


def test_a_model_that_ignores_its_last_turn_is_followed_by_a_paid_extraction(play: Play) -> None:
    """Something is kept for that too."""

    def never_submits(messages: Messages) -> str:
        return block("print('x' * 50)") if role() == "act" else reply_of(answer="read")

    limits = Limits(max_iters=500, max_cost=0.03, max_repetitions=None, prices=PRICES)
    prediction = play(RLM("q -> answer", limits=limits), never_submits, q="?").prediction
    assert (prediction.stop, prediction.answer, prediction.usage["limit"]) == ("extracted", "read", "max_cost")
    assert prediction.usage["by_role"]["extract"]["calls"] == 1
    assert prediction.usage["cost"] <= 0.03


def test_a_budget_too_small_for_two_turns_makes_the_first_the_last(play: Play) -> None:
    """And the first message says so."""
    limits = Limits(max_input_tokens=4_000)
    played = play(RLM("q -> answer", limits=limits), [block("SUBMIT(answer='at once')")], q="?")
    assert is_last_turn(played.calls[0])
    assert (played.prediction.answer, played.prediction.usage["limit"]) == ("at once", "max_input_tokens")


def test_a_budget_that_allows_no_turn_ends_without_an_answer(play: Play) -> None:
    """No request is made."""
    played = play(RLM("q -> answer", limits=Limits(max_input_tokens=10)), [], q="?")
    assert (played.prediction.stop, played.prediction.usage["calls"]) == ("unanswered", 0)
    assert played.prediction.usage["limit"] == "max_input_tokens"


def test_failures_in_a_row_make_the_next_turn_the_last(play: Play) -> None:
    """A turn that works starts the count anew."""
    replies = [block(code) for code in ("1/0", "print(1)", "1/0", "1/0", "SUBMIT(answer='a')")]
    played = play(RLM("q -> answer", limits=Limits(max_failures=2)), replies, q="?")
    assert [is_last_turn(messages) for messages in played.calls] == [False, False, False, False, True]
    assert played.prediction.usage["limit"] == "max_failures"


def test_code_that_is_run_again_and_again_makes_the_next_turn_the_last(play: Play) -> None:
    """The model is told each time, by the number of the turn; other code starts the count anew."""
    codes = ["print(1)", "print(1)", "print(2)", "print(1)", "print(2)", "SUBMIT(answer='a')"]
    played = play(RLM("q -> answer"), [block(code) for code in codes], q="?")
    assert [is_last_turn(messages) for messages in played.calls] == [False] * 5 + [True]
    steps = played.prediction.trajectory
    assert [step["repeats"] for step in steps] == [0, 1, 0, 1, 3, 0]
    assert "repeated turn 1" in steps[1]["notice"]
    assert "SUBMIT(answer=...)" in steps[1]["notice"]
    assert "run repeatedly" in steps[4]["notice"]
    assert played.prediction.usage["limit"] == "max_repetitions"


def test_replies_without_code_are_not_told_as_code_that_ran_repeatedly(play: Play) -> None:
    played = play(RLM("q -> answer: int"), [""] * 9, q="?")
    assert (played.prediction.usage["limit"], played.prediction.stop) == ("max_repetitions", "unanswered")
    assert played.prediction.final_reasoning.startswith("No SUBMIT: the model replied repeatedly without code.")


def test_the_same_code_with_another_outcome_is_no_repetition(play: Play) -> None:
    """A counter, or a poll of something that changes."""
    codes = ["n = 0", *["n += 1\nprint(n)"] * 4, "SUBMIT(answer=str(n))"]
    played = play(RLM("q -> answer"), [block(code) for code in codes], q="?")
    assert (played.prediction.answer, played.prediction.usage["limit"]) == ("4", None)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("pages = iter(['same'] * 9)", "page = next(pages)\nprint(page[:4])"),
        ("n = 0", "n += 1"),
        ("queue = ['same'] * 9", "print(queue.pop())"),
        ("import time", "time.sleep(0)\nprint('pending')"),
    ],
)
def test_code_that_advances_a_variable_is_no_repetition(play: Play, first: str, code: str) -> None:
    """Even if it prints the same, the state of the REPL has changed."""
    codes = [first, *[code] * 4, "SUBMIT(answer='a')"]
    played = play(RLM("q -> answer"), [block(code) for code in codes], q="?")
    assert {step["repeats"] for step in played.prediction.trajectory} == {0}
    assert played.prediction.usage["limit"] is None


@pytest.mark.parametrize(
    "code", ["n = 0\nfor i in range(3):\n    n += i\nprint(n)", "x = [1]\nprint(x.pop())", "print(next(iter(q)))"]
)
def test_code_that_sets_what_it_changes_is_a_repetition(play: Play, code: str) -> None:
    codes = [*[code] * 3, "SUBMIT(answer='a')"]
    played = play(RLM("q -> answer"), [block(code) for code in codes], q="?")
    assert [step["repeats"] for step in played.prediction.trajectory] == [0, 1, 1, 0]


def test_code_that_calls_a_tool_is_no_repetition(play: Play) -> None:
    """A poll: what the tool returns may be another thing the next time."""

    def status() -> str:
        """Return whether it is done."""
        return "pending"

    codes = [*["print(status())"] * 4, "SUBMIT(answer='a')"]
    played = play(RLM("q -> answer", tools=[status]), [block(code) for code in codes], q="?")
    assert {step["repeats"] for step in played.prediction.trajectory} == {0}
    assert played.prediction.usage["limit"] is None


def test_a_run_that_needed_no_limit_names_none(play: Play) -> None:
    """Neither does one that is cut short by an error."""
    assert play(RLM("q -> answer"), [block("SUBMIT(answer='a')")], q="?").prediction.usage["limit"] is None
    with pytest.raises(dspy.LMError) as caught:
        play(RLM("q -> answer"), [dspy.LMServerError("down")], q="?")
    assert vars(caught.value)["usage"]["limit"] is None


def test_out_of_turns_is_a_limit_too(play: Play) -> None:
    """`max_iters` is named by the run that was told its last turn."""
    played = play(RLM("q -> answer", max_iters=2), [block("1"), block("SUBMIT(answer='a')")], q="?")
    assert played.prediction.usage["limit"] == "max_iters"


# What the model is told


def test_what_is_left_is_told_in_the_newest_message_and_messages_only_grow(play: Play) -> None:
    """Earlier messages stay as they were."""
    limits = Limits(max_cost=0.5, max_seconds=1_000, prices=PRICES)
    turns = [block("print(1)"), block("print(llm_query('x'))"), block("SUBMIT(answer='a')")]
    calls = play(RLM("q -> answer", limits=limits), ScriptedLM(act=turns, query=["y"]), q="?").calls_as("act")
    assert calls[2][: len(calls[1])] == calls[1]
    assert "Left: 19 turns, $0." in calls[1][-1]["content"]
    assert "Left: 18 turns, 49 model calls, $0." in calls[2][-1]["content"]
    assert " s." in calls[2][-1]["content"]


def test_without_limits_and_sub_calls_nothing_is_told(play: Play) -> None:
    """Small models are led astray by every further line."""
    played = play(RLM("q -> answer"), [block("print(1)"), block("SUBMIT(answer='a')")], q="?")
    assert played.prediction.trajectory[0]["notice"] == ""


def test_the_answer_of_the_last_turn_is_followed_by_no_notice(play: Play) -> None:
    """There is nobody to read it."""
    replies = [block("1"), block("2"), reply_of(answer="a")]
    steps = play(RLM("q -> answer", max_iters=2), replies, q="?").prediction.trajectory
    assert [bool(step["notice"]) for step in steps] == [True, False]


# The price


def test_a_limit_on_cost_needs_a_price(play: Play) -> None:
    """An unknown price is not free: the message names the fix, before anything is asked."""
    with pytest.raises(UnknownPrice, match=r"prices=\{'scripted/lm'"):
        play(RLM("q -> answer", limits=Limits(max_cost=1)), [], q="?")
    limits = Limits(max_cost=1, prices={"scripted/other": (1, 1)})
    with pytest.raises(ValueError, match="max_cost"):
        play(RLM("q -> answer", limits=limits, sub_lm=ScriptedLM([])), [], q="?")


def test_a_given_price_is_entered_where_none_is_reported(play: Play) -> None:
    """USD per million tokens, read and written."""
    rlm = RLM("q -> answer", limits=Limits(prices=PRICES))
    usage = play(rlm, [block("SUBMIT(answer='a')")], q="?").prediction.usage
    assert usage["cost"] == pytest.approx((usage["input_tokens"] + 10 * usage["output_tokens"]) / 1e6)


def test_the_price_of_the_table_is_entered_where_the_lm_reports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the history, which holds the report, is switched off."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    lm = dspy.LM("openai/gpt-4o-mini", engine=ScriptedLM(["one two"]).script, cache=False)
    ledger = Ledger(Limits())
    with dspy.context(lm=lm, disable_history=True), metered(ledger, "act"):
        lm("a b c")
    assert ledger.usage().cost == pytest.approx(3 * 0.15e-6 + 2 * 0.6e-6)


# The ledger


def test_a_refusal_tells_what_is_kept_for_the_last_turn() -> None:
    """Else it reads as if all were spent."""
    ledger = Ledger(Limits(max_cost=5))
    ledger.keep("run", Amount(cost=4.25))
    with pytest.raises(
        LimitExceeded, match=r"only \$0\.7500 are left beside \$4\.2500 that are kept for the last turn"
    ):
        ledger.hold("a", Amount(cost=1))


def test_a_request_that_could_overspend_is_refused_and_holds_nothing() -> None:
    """The message names the limit and what is left of it."""
    ledger = Ledger(Limits(max_output_tokens=100))
    ledger.hold("a", Amount(output_tokens=70))
    with pytest.raises(
        LimitExceeded, match=r"max_output_tokens=100.*up to 40 tokens, but only 30 tokens are left"
    ) as e:
        ledger.hold("b", Amount(output_tokens=40))
    assert e.value.limit == "max_output_tokens"
    assert "kept for the last turn" not in str(e.value)
    ledger.settle("query", "m", Usage(calls=1, output_tokens=10), key="a")
    assert ledger.left().output_tokens == 90


def test_what_is_kept_for_a_last_turn_is_there_for_it_alone() -> None:
    """Until it is released."""
    ledger, mine = Ledger(Limits(max_cost=1.0)), object()
    ledger.keep(mine, Amount(cost=0.75))
    with pytest.raises(LimitExceeded):
        ledger.hold("a", Amount(cost=0.5))
    ledger.hold("b", Amount(cost=0.5), keeper=mine)
    ledger.give_back("b")
    ledger.release(mine)
    assert ledger.left().cost == 1.0


def test_a_refused_call_is_not_made_and_leaves_the_callers_callbacks_alone() -> None:
    """The refusal reaches the code as a LimitExceeded, whatever module made the call."""

    class Count(dspy.utils.callback.BaseCallback):
        starts = 0

        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.starts += 1

    count, lm, ledger = Count(), ScriptedLM([]), Ledger(Limits(max_input_tokens=50))
    with dspy.context(lm=lm, callbacks=[count]), pytest.raises(LimitExceeded), metered(ledger, "ad_hoc"):
        dspy.ChainOfThought("question -> answer")(question="why? " * 100)
    assert (count.starts, lm.script.calls, ledger.usage().calls) == (0, [], 0)
    assert ledger.left().input_tokens == 50


def test_a_call_that_an_outer_ledger_refuses_is_held_by_no_other() -> None:
    """As of a run inside a sub of another run."""
    outer, inner, lm = Ledger(Limits(max_input_tokens=5)), Ledger(Limits(max_input_tokens=500)), ScriptedLM([])
    with dspy.context(lm=lm), pytest.raises(LimitExceeded, match="=5 "), metered(outer, "sub"):  # noqa: SIM117
        with metered(inner, "act"):
            lm("x" * 40)
    assert inner.left().input_tokens == 500


def test_every_further_call_of_a_scope_is_reserved() -> None:
    """A module that asks several times is not one call."""
    ledger, lm = Ledger(Limits(max_llm_calls=3)), ScriptedLM(["a"] * 5)
    with (
        dspy.context(lm=lm),
        pytest.raises(LimitExceeded, match="0 of 3"),
        metered(ledger, "ad_hoc", counted=True),
    ):
        [lm("x") for _ in range(5)]
    assert len(lm.script.calls) == 3


def test_a_reply_is_cut_to_what_may_be_spent_on_it() -> None:
    """The request's own limit is lowered, for whatever LM is in force; the history stays where it was."""
    asked: list[Any] = []

    class Engine:
        def complete(self, request: Any) -> Any:
            asked.append(request.config.max_tokens)
            return ScriptedLM(["a b"]).script.complete(request)

    lm, ledger = dspy.LM("scripted/lm", engine=Engine(), cache=False), Ledger(Limits(max_output_tokens=5_000))
    with dspy.context(lm=lm), metered(ledger, "query"):
        dspy.settings.lm("x")
    assert asked == [256]
    assert len(lm.history) == 1


# Sub-calls and children


def test_an_item_that_does_not_fit_the_budget_fails_alone(play: Play) -> None:
    """The others of its batch are answered."""
    code = "got = llm_query_batched(['short', 'long ' * 20_000, 'brief'])\nSUBMIT(answer=[bool(g) for g in got])"
    lm = ScriptedLM(act=[block(code)], query=lambda _: "yes")
    rlm = RLM("q -> answer: list[bool]", limits=Limits(max_input_tokens=30_000))
    prediction = play(rlm, lm, q="?").prediction
    assert prediction.answer == [True, False, True]
    assert "max_input_tokens" in prediction.trajectory[0]["calls"][1]["error"]


def test_a_child_spends_from_its_parents_budget_and_converges_within_it(play: Play) -> None:
    """It is told its last turn when the calls of the tree run out."""
    lm = ScriptedLM(
        act=[block("SUBMIT(answer=rlm_query('count the words', context='a b c'))")],
        child=lambda said: block(
            "SUBMIT(response='child done')" if is_last_turn(said) else "print('still at it')"
        ),
    )
    rlm = RLM("q -> answer", limits=Limits(max_llm_calls=6, max_cost=1.0, prices=PRICES))
    prediction = play(rlm, lm, q="?").prediction
    assert prediction.answer == "child done"
    assert prediction.usage["by_role"]["child.act"]["calls"] <= 6
    assert prediction.usage["limit"] is None


def test_children_that_find_no_calls_left_ask_nothing(play: Play) -> None:
    """Not even for an answer from a trajectory that they do not have; the calls stay within the limit."""
    code = (
        "got = rlm_query_batched(['go on'] * 3, ['a', 'b', 'c'])\n"
        "got += rlm_query_batched(['more'], ['d'])\n"
        "SUBMIT(answer=str(len(got)))"
    )
    lm = ScriptedLM(lambda _: block("print('still at it')"), act=[block(code)], child=lambda _: block("1"))
    prediction = play(RLM("q -> answer", limits=Limits(max_llm_calls=6, max_iters=10)), lm, q="?").prediction
    roles = prediction.usage["by_role"]
    asked = sum(spent["calls"] for role, spent in roles.items() if role.startswith("child."))
    assert asked <= 6


def test_what_a_late_reply_used_is_entered_when_it_comes() -> None:
    """It has failed when it is given up, and is no second call."""
    ledger, lm = Ledger(Limits()), ScriptedLM(["three words come"], seconds=1)
    over = threading.Event()

    def ask() -> None:
        lm("two words")
        over.set()

    with pytest.raises(TimeoutError), metered(ledger, "act"):
        call_with_timeout(ask, 0.05)
    assert [getattr(ledger.totals(), name) for name in ("calls", "failures", "output_tokens")] == [1, 1, 0]
    assert over.wait(60)
    assert [getattr(ledger.totals(), name) for name in ("calls", "failures", "output_tokens")] == [1, 1, 3]
