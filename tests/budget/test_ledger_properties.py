"""Whatever calls are made, a hard limit is never overspent, and the ledger's sums are what the model saw."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import dspy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_dspy import RLM, LimitExceeded, Limits
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Iterator

PRICE = (2.0, 8.0)
"""USD per million tokens of the scripted LM, read and written."""


@dataclass
class Bill:
    """A scripted model that keeps its own bill, from any number of threads, and obeys `max_tokens`."""

    fails: frozenset[int] = frozenset()
    """Which calls fail, by number."""
    code: str = ""
    """What it replies in a turn."""
    seconds: float = 0.0
    calls: int = 0
    read: int = 0
    written: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, request: Any) -> Any:
        with self._lock:
            self.calls += 1
            number = self.calls
        if number in self.fails:
            raise dspy.LMServerError(f"call {number} fails")
        text = self.code if self.code and "REPL" in str(request.system) else "w " * 50
        if len(text.split()) > (request.config.max_tokens or 1_000):
            text = "w " * request.config.max_tokens
        response = ScriptedLM([text]).script.complete(request)
        with self._lock:
            self.read += response.usage.input_tokens
            self.written += response.usage.output_tokens
        return response

    @property
    def cost(self) -> float:
        return (self.read * PRICE[0] + self.written * PRICE[1]) / 1e6


class AwaitedBill:
    """The same for `acall`."""

    def __init__(self, bill: Bill) -> None:
        self.bill = bill

    async def complete(self, request: Any) -> Any:
        await asyncio.sleep(self.bill.seconds)
        return self.bill.complete(request)


def lm_of(bill: Bill, retries: int = 0) -> dspy.LM:
    """Return the LM that fills a bill."""
    return dspy.LM("scripted/bill", engine=bill, async_engine=AwaitedBill(bill), cache=False, num_retries=retries)


@dataclass(frozen=True)
class Node:
    """A call, and the calls that are made below it."""

    how: Literal["call", "threads", "tasks", "cancelled"]
    words: int
    below: tuple[Node, ...] = ()


leaves = st.builds(Node, st.just("call"), st.integers(1, 60))
trees = st.recursive(
    leaves,
    lambda inner: st.builds(
        Node,
        st.sampled_from(["call", "threads", "tasks", "cancelled"]),
        st.integers(1, 60),
        st.lists(inner, max_size=5).map(tuple),
    ),
    max_leaves=20,
)
hard_limits = st.fixed_dictionaries(
    {},
    optional={
        "max_input_tokens": st.integers(1, 3_000),
        "max_output_tokens": st.integers(1, 3_000),
        "max_cost": st.floats(0.0001, 0.02),
        "max_llm_calls": st.integers(0, 30),
    },
)


@contextlib.contextmanager
def entering(ledger: Ledger, role: str) -> Iterator[None]:
    """Enter each call of this scope, and take it from the calls that may be made."""
    with metered(ledger, role, counted=True):
        yield


def play(node: Node, ledger: Ledger) -> None:
    """Make the calls of a tree, each under its own scope."""
    with contextlib.suppress(LimitExceeded, dspy.DSPyError), entering(ledger, f"role {len(node.below)}"):
        dspy.Predict("question -> answer")(question="word " * node.words)
    with metered(ledger, "outer"):
        below(node, ledger)


def below(node: Node, ledger: Ledger) -> None:
    """Make what is below a call: one after the other, in threads, or as tasks of which some are cancelled."""
    if node.how in {"call", "threads"}:
        with ThreadPoolExecutor(1 if node.how == "call" else 4) as pool:
            waiting = [pool.submit(contextvars.copy_context().run, play, inner, ledger) for inner in node.below]
            [future.result() for future in waiting]
        return

    async def ask(inner: Node) -> None:
        with contextlib.suppress(LimitExceeded, dspy.LMError), entering(ledger, "task"):
            await dspy.settings.lm.acall("word " * inner.words)

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(ask(inner)) for inner in node.below]
        await asyncio.sleep(0)
        if node.how == "cancelled":
            [task.cancel() for task in tasks[::2]]
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_of_them())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees, hard_limits, st.frozensets(st.integers(1, 30), max_size=8))
def test_no_tree_of_calls_overspends_and_the_sums_are_what_the_model_saw(
    tree: Node, hard: dict[str, Any], fails: frozenset[int]
) -> None:
    """With failures, threads, tasks and cancellations; and nothing stays held."""
    limits = Limits(prices={"scripted/bill": PRICE}, **{"max_llm_calls": 100, **hard})
    ledger, bill = Ledger(limits), Bill(fails)
    with dspy.context(lm=lm_of(bill)):
        play(tree, ledger)
    usage = ledger.usage()
    assert bill.calls <= limits.max_llm_calls
    assert bill.read <= hard.get("max_input_tokens", bill.read)
    assert bill.written <= hard.get("max_output_tokens", bill.written)
    assert bill.cost <= hard.get("max_cost", bill.cost)
    assert (usage.input_tokens, usage.output_tokens) == (bill.read, bill.written)
    assert abs((usage.cost or 0.0) - bill.cost) < 1e-12
    for table in (usage.by_role, usage.by_model):
        assert sum(part.output_tokens for part in table.values()) == bill.written
    spent_or_left = ledger.left()
    if "max_output_tokens" in hard:
        assert spent_or_left.output_tokens == hard["max_output_tokens"] - bill.written


@settings(max_examples=25, deadline=None)
@given(hard_limits, st.frozensets(st.integers(2, 20), max_size=5), st.integers(1, 8))
def test_no_run_overspends_whatever_its_model_does(
    hard: dict[str, Any], fails: frozenset[int], at_once: int
) -> None:
    """A run ends with a prediction that tells what was spent, or with the error of a turn."""
    bill = Bill(fails, block(f"print(llm_query_batched(['a b c'] * 5 + [str(i) for i in range({at_once})]))"))
    limits = Limits(max_iters=4, max_concurrency=at_once, prices={"scripted/bill": PRICE}, **hard)
    rlm = RLM("q -> answer", limits=limits, interpreter_factory=LocalPythonInterpreter, policy=None)
    with dspy.context(lm=lm_of(bill)), contextlib.suppress(dspy.LMError):
        rlm(q="?")
    assert bill.read <= hard.get("max_input_tokens", bill.read)
    assert bill.written <= hard.get("max_output_tokens", bill.written)
    assert bill.cost <= hard.get("max_cost", bill.cost)


FAULTS = [dspy.LMServerError("down"), dspy.LMTimeoutError("late"), "", dspy.LMRateLimitError("slow down")]


def test_with_faults_in_a_tenth_of_calls_every_good_answer_is_kept_in_order() -> None:
    """And nothing that succeeded is asked twice."""
    asked: list[str] = []
    code = (
        "answers = llm_query_batched([f'item {i}' for i in range(200)])\n"
        "SUBMIT(good=[a for a in answers if a], failed=[i for i, a in enumerate(answers) if not a])"
    )

    def reply(messages: list[dict[str, str]]) -> Any:
        prompt = messages[-1]["content"]
        if not prompt.startswith("item"):
            return block(code)
        asked.append(prompt)
        number = int(prompt.split()[1])
        fault = FAULTS[number // 10 % len(FAULTS)]
        if number % 10 == 3 and isinstance(fault, Exception):
            raise fault
        return fault if number % 10 == 3 else f"answer {number}"

    rlm = RLM("q -> good: list[str], failed: list[int]", limits=Limits(max_llm_calls=300))
    with dspy.context(lm=ScriptedLM(reply), interpreter_factory=LocalPythonInterpreter):
        prediction = rlm(q="?")
    bad = [number for number in range(200) if number % 10 == 3]
    assert prediction.failed == bad
    assert prediction.good == [f"answer {number}" for number in range(200) if number not in bad]
    good = {f"item {number}" for number in range(200) if number not in bad}
    assert sorted(prompt for prompt in asked if prompt in good) == sorted(good)
    assert prediction.usage["by_role"]["query"]["calls"] == len(asked)
