"""A budget over all runs of a batch: it is never overspent, and runs that begin can end."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, LimitExceeded, Limits, batch
from rlm_dspy.batch.shared_budget import LeasedLedger, SharedBudget
from rlm_dspy.batch.taken import TakenInFile
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.usage import Amount, Usage
from tests.batch.counting import ANSWER, CountingLM, examples, program

if TYPE_CHECKING:
    from pathlib import Path


def spent(rows: list[batch.Row]) -> float:
    """Return what rows cost."""
    return sum(row.usage.cost or 0.0 for row in rows)


def test_stored_rows_come_although_the_budget_is_spent(tmp_path: Path) -> None:
    """Also those of examples after one that cannot be paid for."""
    with dspy.context(lm=ScriptedLM(lambda messages: ANSWER)):
        list(batch.run(program(), examples(4)[2:], store=tmp_path))
        rows, why = run_until_spent(program(), examples(4), store=tmp_path, budget=Limits(max_input_tokens=1))
    assert sorted((row.index, row.stored) for row in rows) == [(2, True), (3, True)]
    assert "does not allow" in why


def run_until_spent(*args: Any, **options: Any) -> tuple[list[batch.Row], str]:
    """Return the rows of a batch, and the error at its end."""
    rows: list[batch.Row] = []
    try:
        for row in batch.run(*args, **options):
            rows.append(row)  # noqa: PERF402 (those before an error count)
    except LimitExceeded as error:
        return rows, str(error)
    return rows, ""


@pytest.fixture
def lm(tmp_path: Path) -> CountingLM:
    """Return an LM that counts its requests across processes."""
    (tmp_path / "requests").mkdir()
    return CountingLM(tmp_path / "requests")


@pytest.mark.parametrize("executor", [None, lambda: ProcessPoolExecutor(2)], ids=["threads", "processes"])
def test_a_batch_stops_at_its_budget_and_goes_on_with_a_larger_one(
    executor: Any, lm: CountingLM, tmp_path: Path
) -> None:
    """What was paid for is kept, and counts for the next batch on this store."""
    with dspy.context(lm=lm, num_threads=2):
        budget = Limits(max_cost=0.006, prices={"scripted/lm": (1.0, 0.0)})
        rows, why = run_until_spent(program(), examples(40), executor, tmp_path / "runs", budget=budget)
        assert "Run it again with a larger budget" in why
        assert 3 < len(rows) < 40
        assert all(row.prediction.stop == "submitted" for row in rows)
        assert 0.0 < spent(rows) <= 0.006
        paid = lm.requests
        budget = Limits(max_cost=10.0, prices=budget.prices)
        more, why = run_until_spent(program(), examples(40), executor, tmp_path / "runs", budget=budget)
    assert (len(more), why) == (40, "")
    assert sum(row.stored for row in more) == len(rows)
    assert lm.requests == paid + 40 - len(rows)


def test_a_budget_in_dollars_uses_the_prices_of_the_program(lm: CountingLM, tmp_path: Path) -> None:
    limits = Limits(prices={"scripted/lm": (1.0, 0.0)})
    priced = RLM("context: str, number: int -> words: int", limits=limits)
    with dspy.context(lm=lm):
        rows = list(batch.run(priced, examples(2), store=tmp_path / "runs", budget=1.0))
    assert [row.error for row in rows] == ["", ""]
    assert 0.0 < spent(rows) <= 1.0


def test_a_budget_that_suffices_changes_nothing(lm: CountingLM, tmp_path: Path) -> None:
    """All rows come, and what is not used is given back."""
    with dspy.context(lm=lm):
        rows = list(
            batch.run(program(), examples(5), store=tmp_path / "runs", budget=Limits(max_output_tokens=10**6))
        )
    assert len(rows) == 5
    (path,) = (tmp_path / "runs").glob("*.budget")
    left = SharedBudget(TakenInFile(path), Limits(max_output_tokens=10**6)).left()
    assert left.output_tokens == 10**6 - sum(row.usage.output_tokens for row in rows)


def test_a_run_that_nears_the_end_of_the_budget_reads_its_answer(tmp_path: Path) -> None:
    """Its last turn is kept back for it, as with limits of its own."""
    work = ScriptedLM(lambda messages: "```python\nSUBMIT(words=7)\n```" if _is_last(messages) else _LOOKS)
    with dspy.context(lm=work):
        budget = Limits(max_input_tokens=60_000)
        rows, _ = run_until_spent(
            RLM("context: str, number: int -> words: int", max_iters=50),
            examples(1),
            store=tmp_path,
            budget=budget,
        )
    (row,) = rows
    assert row.prediction.words == 7
    assert 1 < len(row.prediction.trajectory) < 50
    assert row.usage.input_tokens <= 60_000


_LOOKS = "```python\nimport random\nprint(random.random(), 'x ' * 400)\n```"


def _is_last(messages: list[dict[str, str]]) -> bool:
    return "last turn" in messages[-1]["content"]


def test_a_plain_program_is_within_the_budget_too(tmp_path: Path) -> None:
    """A budget bounds every call of an LM, not only those of an RLM."""
    lm = ScriptedLM(lambda messages: "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]")
    lm.kwargs["max_tokens"] = 500
    asks = [dspy.Example(question=str(number)).with_inputs("question") for number in range(50)]
    with dspy.context(lm=lm):
        rows, why = run_until_spent(
            dspy.Predict("question -> answer"), asks, store=tmp_path, budget=Limits(max_output_tokens=300)
        )
    assert why
    assert len(rows) > 3
    assert {(row.error, row.prediction.answer) for row in rows} == {("", "yes")}
    assert sum(row.usage.output_tokens for row in rows) <= 300


def test_a_price_that_is_not_known_is_a_failed_row(lm: CountingLM, tmp_path: Path) -> None:
    """The row names the fix."""
    with dspy.context(lm=lm):
        (row,) = batch.run(program(), examples(1), store=tmp_path / "runs", budget=1.0)
    assert row.error.startswith("UnknownPrice: ")
    assert "prices={'scripted/lm'" in row.error


@pytest.mark.parametrize("budget", [Limits(max_iters=3, max_cost=1.0), Limits(), Limits(max_seconds=3)])
def test_a_budget_bounds_what_is_used_of_all_runs(budget: Limits, tmp_path: Path) -> None:
    """What only one run has is refused."""
    with pytest.raises(ValueError, match="budget must be USD or a Limits of max_input_tokens"):
        batch.run(program(), examples(1), store=tmp_path, budget=budget)
    with pytest.raises(ValueError, match="max_cost must be a number above 0"):
        batch.run(program(), examples(1), store=tmp_path, budget=-1.0)


def lease(budget: SharedBudget, seed: int) -> float:
    """Lease, use and give back at random, as runs do; return what was used."""
    numbers, used = random.Random(seed), 0.0
    for _ in range(25):
        ledger = LeasedLedger(budget)
        for key in range(4):
            most = numbers.random() / 10
            try:
                ledger.hold(key, Amount(cost=most))
            except LimitExceeded:
                continue
            cost = most * numbers.random()
            ledger.settle("run", "lm", Usage(cost=cost), key=key)
            used += cost
        ledger.give_back_lease()
    return used


def test_no_two_processes_overspend_a_budget_together(tmp_path: Path) -> None:
    """What is left is what was not used, to the cent."""
    budget = SharedBudget(TakenInFile(tmp_path / "budget"), Limits(max_cost=1.0))
    with ProcessPoolExecutor(2) as processes, ThreadPoolExecutor(2) as threads:
        runs = [pool.submit(lease, budget, seed) for seed, pool in enumerate([processes, threads] * 2)]
        used = sum(run.result() for run in runs)
    assert 0.8 < used <= 1.0
    assert budget.left().cost == pytest.approx(1.0 - used)


def test_what_a_killed_process_had_leased_stays_taken(tmp_path: Path) -> None:
    """It is a small part of the whole, beyond what its requests could use."""
    budget = SharedBudget(TakenInFile(tmp_path / "budget"), Limits(max_cost=256.0))
    killed = LeasedLedger(budget)
    killed.hold("request", Amount(cost=0.25))
    assert budget.left().cost == 255.0


def test_replies_are_bounded_by_what_is_left_of_the_whole(tmp_path: Path) -> None:
    """A lease grows with what a request needs."""
    budget = SharedBudget(TakenInFile(tmp_path / "budget"), Limits(max_output_tokens=4_000))
    ledger, lm = LeasedLedger(budget), ScriptedLM(lambda messages: "yes")
    with dspy.context(lm=lm), metered(ledger, "run", raw=True):
        lm("question")
        assert ledger.left().output_tokens == 3_999
    ledger.give_back_lease()
    assert budget.left().output_tokens == 3_999
