"""What a run may spend, and the ledger that counts it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, fields, replace
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, LimitExceeded, Limits
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.usage import NOTHING, Usage
from tests.playing import block
from tests.playing import fields as reply_of

if TYPE_CHECKING:
    from tests.playing import Play


def ledger(**limits: Any) -> Ledger:
    """Return a ledger over these limits."""
    return Ledger(Limits(**limits))


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
@pytest.mark.parametrize("value", [-1, "many", True, 1.5])
def test_a_limit_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    """The message names the limit and what was given."""
    if value == 1.5 and name in {"max_cost", "max_seconds", "max_cell_seconds"}:
        pytest.skip("a number of dollars or seconds may be a fraction")
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})


def test_limits_are_given_by_name_and_do_not_change() -> None:
    """One object serves any number of runs."""
    limits = Limits(max_iters=3)
    with pytest.raises(FrozenInstanceError):
        limits.max_iters = 4  # type: ignore[misc]
    assert replace(limits, max_iters=4).max_iters == 4
    with pytest.raises(TypeError):
        Limits(3)  # type: ignore[call-arg]


def test_a_reservation_beyond_what_is_left_takes_nothing() -> None:
    """All of it or none."""
    spent = ledger(max_llm_calls=3)
    spent.hold("two", NOTHING, calls=2)
    with pytest.raises(LimitExceeded, match="1 of 3 model calls are left, but this needs 2"):
        spent.hold("two more", NOTHING, calls=2)
    assert spent.calls_left == 1
    spent.hold("one", NOTHING, calls=1)
    assert spent.calls_left == 0


def test_a_run_that_has_used_more_calls_than_it_may_still_takes_turns() -> None:
    """As one that is resumed with lower limits: turns take no model calls of code."""
    resumed = ledger(max_llm_calls=3)
    resumed.hold("three", NOTHING, calls=3)
    resumed.limits = Limits(max_llm_calls=2)
    resumed.hold("a turn", NOTHING)
    assert resumed.calls_left == 0
    with pytest.raises(LimitExceeded, match="0 of 2 model calls are left, but this needs 1"):
        resumed.hold("a call", NOTHING, calls=1)


def test_threads_together_reserve_no_more_than_there_is() -> None:
    """The ledger is shared by all the calls of a run."""
    spent, start = ledger(max_llm_calls=100), threading.Barrier(8)

    def reserve_all() -> int:
        start.wait(60)
        taken = 0
        while True:
            try:
                spent.hold("one", NOTHING, calls=1)
            except LimitExceeded:
                return taken
            taken += 1

    with ThreadPoolExecutor(8) as pool:
        taken = [future.result() for future in [pool.submit(reserve_all) for _ in range(8)]]
    assert sum(taken) == 100


def test_usage_adds_up_by_role_and_by_model() -> None:
    """Totals are those of the roles; what nobody reported is None, never 0."""
    spent = ledger()
    spent.settle("act", "big", Usage(calls=1, input_tokens=10, cached_input_tokens=8, output_tokens=2, cost=0.5))
    spent.settle("act", "big", Usage(calls=1, cached_calls=1))
    spent.settle("query", "small", Usage(calls=1, failures=1, input_tokens=1))
    usage = spent.usage()
    assert usage.by_role["act"] == Usage(
        calls=2, cached_calls=1, input_tokens=10, cached_input_tokens=8, output_tokens=2, cost=0.5
    )
    assert usage.by_role["query"].cost is None
    assert usage.by_model["small"].failures == 1
    assert (usage.calls, usage.input_tokens, usage.cost) == (3, 11, 0.5)


def test_a_run_on_a_model_without_a_price_costs_none(play: Play) -> None:
    """An unknown price is not free."""
    usage = play(RLM("q -> answer"), [block("SUBMIT(answer='a')")], q="?").prediction.usage
    assert usage["cost"] is None
    assert usage["by_role"]["act"]["cost"] is None


def test_the_cost_that_the_lm_reports_is_summed() -> None:
    """The price comes from the LM's own history entry of each call, and of that call alone."""

    class Priced(ScriptedLM):
        prices = iter([8.0, 0.25, 0.5])

        def update_history(self, entry: dict[str, Any]) -> None:
            super().update_history({**entry, "cost": next(self.prices)})
            super().update_history({**entry, "outputs": ["of a call in another thread"], "cost": 100.0})

    spent, lm = ledger(), Priced(["a", "b", "c"])
    with dspy.context(lm=lm):
        lm("a call before")
        with metered(spent, "act"):
            lm("x")
            lm("y")
    assert spent.usage().cost == 0.75


def test_failed_calls_are_counted(play: Play) -> None:
    """A call that raised is a call."""
    with pytest.raises(dspy.LMError):
        play(RLM("q -> answer"), [dspy.LMServerError("down")], q="?")
    spent, lm = ledger(), ScriptedLM([dspy.LMServerError("down")])
    with dspy.context(lm=lm), metered(spent, "act"), pytest.raises(dspy.LMError):
        lm("x")
    usage = spent.usage()
    assert (usage.calls, usage.failures, usage.input_tokens) == (1, 1, 0)


def test_a_call_answered_by_the_cache_costs_no_tokens(tmp_path: Any) -> None:
    """It is counted as a call and as cached."""
    spent, engine = ledger(), ScriptedLM(["a"]).script
    lm = dspy.LM("scripted/cached", engine=engine, cache=True)
    with dspy.context(lm=lm), metered(spent, "act"):
        for _ in range(2):
            lm("a question that no other test asks", rollout_id=id(tmp_path), temperature=1.0)
    usage = spent.usage()
    assert len(engine.calls) == 1
    assert (usage.calls, usage.cached_calls, usage.output_tokens) == (2, 1, 1)


def test_a_scope_inside_another_enters_a_call_once() -> None:
    """The inner role takes the call; a scope of another ledger sees it too."""
    inner, outer, lm = ledger(), ledger(), ScriptedLM(["one two"] * 3)
    with dspy.context(lm=lm), metered(outer, "child"):
        with metered(inner, "act"), metered(inner, "query"):
            lm("x")
        lm("y")
    assert {role: used.calls for role, used in inner.usage().by_role.items()} == {"query": 1}
    assert outer.usage().by_role["child"].calls == 2
    assert inner.usage().output_tokens == 2


def test_the_callers_usage_tracking_sees_every_call(play: Play) -> None:
    """`dspy.track_usage` around a run, and `get_lm_usage` of its prediction, are as without us."""
    code = "SUBMIT(answer=str(llm_query_batched(['a', 'b', 'c'])))"
    with dspy.context(track_usage=True), dspy.track_usage() as tracker:
        usage = play(RLM("q -> answer"), [block(code), "1", "2", "3"], q="?").prediction.usage
    total = tracker.get_total_tokens()["scripted/lm"]
    assert total["prompt_tokens"] == usage["input_tokens"]
    assert total["completion_tokens"] == usage["output_tokens"]
    with dspy.context(track_usage=True):
        prediction = play(RLM("q -> answer"), [block(code), "1", "2", "3"], q="?").prediction
    counted = prediction.get_lm_usage()["scripted/lm"]
    assert counted["prompt_tokens"] == prediction.usage["input_tokens"]


def test_the_callers_callbacks_see_every_call(play: Play) -> None:
    """Our own listening takes nobody's place."""

    class Count(dspy.utils.callback.BaseCallback):
        def __init__(self) -> None:
            self.lms = 0
            self.modules: list[str] = []

        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.lms += 1

        def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.modules.append(type(instance).__name__)

    count = Count()
    with dspy.context(callbacks=[count]):
        play(RLM("q -> answer"), [block("SUBMIT(answer=llm_query('x'))"), "y"], q="?")
    assert count.lms == 2
    assert count.modules == ["RLM", "Turn", "Act", "Query"]


def test_extraction_is_entered_under_its_own_role(play: Play) -> None:
    """What the end of a run out of turns costs is told apart."""
    played = play(RLM("q -> answer", max_iters=1), [block("1"), reply_of(answer="a")], q="?")
    assert {role: spent["calls"] for role, spent in played.prediction.usage["by_role"].items()} == {
        "act": 1,
        "extract": 1,
    }


def test_usage_of_runs_one_after_another_is_each_its_own() -> None:
    """The module holds no state of a run."""
    rlm = RLM("q -> answer", interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer='a')")] * 2)):
        assert [rlm(q="?").usage["calls"] for _ in range(2)] == [1, 1]


def test_each_step_tells_what_its_turn_spent() -> None:
    """Sub-calls included; the steps add up to the run."""
    replies = ["```python\nprint(llm_query('one two'))\n```", "an answer", "```python\nSUBMIT(answer='x')\n```"]
    with dspy.context(lm=ScriptedLM(replies)):
        prediction = RLM("question -> answer", policy=None)(question="?")
    spent = [step["spent"] for step in prediction.trajectory]
    assert [part["calls"] for part in spent] == [2, 1]
    for name in ("calls", "input_tokens", "output_tokens"):
        assert sum(part[name] for part in spent) == prediction.usage[name] > 0
    assert spent[0]["cost"] is None


def test_an_error_that_leaves_a_run_tells_what_was_spent() -> None:
    """As `usage`, beside the trajectory."""
    lm = ScriptedLM(["```python\n1 + 1\n```", dspy.LMServerError("down")])
    with dspy.context(lm=lm), pytest.raises(dspy.LMError) as caught:
        RLM("question -> answer", policy=None)(question="?")
    assert caught.value.usage["calls"] == 2
    assert caught.value.usage["failures"] == 1
    assert len(caught.value.trajectory) == 1
