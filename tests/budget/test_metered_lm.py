"""Every LM is asked through one place, whoever asks it and however; what it may use is held before it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from dspy.lm15 import Config, Message, Request
from dspy.utils.callback import BaseCallback
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_dspy import RLM, LimitExceeded, Limits
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.errors import ReplyCut
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import CutReply, ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from rlm_dspy.testing import Messages

PREDICT = "question -> answer"
YES = fields(answer="yes")


def look_up(word: str) -> str:
    """Return what is known of a word."""
    return f"{word} is a word"


def chain_of_thought() -> tuple[dspy.Module, Any]:
    return dspy.ChainOfThought(PREDICT), [fields(reasoning="So.", answer="yes")]


def agent() -> tuple[dspy.Module, Any]:
    turns = [
        fields(next_thought="t", next_tool_name="look_up", next_tool_args='{"word": "yes"}'),
        fields(next_thought="t", next_tool_name="finish", next_tool_args="{}"),
    ]
    return dspy.ReAct(PREDICT, tools=[look_up]), [*turns, fields(reasoning="So.", answer="yes")]


def refined() -> tuple[dspy.Module, Any]:
    def is_yes(_: Any, prediction: dspy.Prediction) -> float:
        return float(prediction.answer == "yes")

    advice = fields(discussion="d", advice='{"self": "Say yes."}')
    return dspy.Refine(dspy.Predict(PREDICT), 3, is_yes, 1.0), [fields(answer="no"), advice, YES]


def several_at_once() -> tuple[dspy.Module, Any]:
    class Several(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict(PREDICT)

        def forward(self, question: str) -> Any:
            pairs = [(self.ask, {"question": f"{question}{number}"}) for number in range(4)]
            return dspy.Parallel(num_threads=4, disable_progress_bar=True)(pairs)[0]

    return Several(), lambda _: YES


MODULES = [chain_of_thought, agent, refined, several_at_once]


@pytest.mark.parametrize("made", MODULES, ids=lambda made: made.__name__)
def test_every_request_of_a_module_is_counted_and_the_limit_ends_it(made: Any) -> None:
    """A module that goes on without the answer has failed all the same."""
    module, replies = made()
    lm, ledger = ScriptedLM(replies), Ledger(Limits())
    with dspy.context(lm=lm), metered(ledger, "ask", counted=True):
        assert module(question="?").answer == "yes"
    needed = len(lm.script.calls)
    assert ledger.usage().calls == ledger.calls_made == needed
    module, replies = made()
    lm, tight = ScriptedLM(replies), Ledger(Limits(max_llm_calls=needed - 1))
    with dspy.context(lm=lm), pytest.raises(LimitExceeded, match=rf"0 of {needed - 1}"):  # noqa: SIM117
        with metered(tight, "ask", counted=True):
            module(question="?")
    assert len(lm.script.calls) == tight.usage().calls == needed - 1


def test_several_answers_to_one_request_are_held_and_entered_together() -> None:
    lm, ledger = ScriptedLM(lambda _: YES), Ledger(Limits(max_output_tokens=1_000))
    with dspy.context(lm=lm), metered(ledger, "ask"):
        dspy.Predict(PREDICT, n=3, max_tokens=100)(question="?")
    assert (ledger.usage().calls, ledger.usage().output_tokens) == (1, 3 * len(YES.split()))
    with dspy.context(lm=lm), pytest.raises(LimitExceeded, match="could use up to 1,200 tokens"):  # noqa: SIM117
        with metered(Ledger(Limits(max_output_tokens=1_000, max_concurrency=1)), "ask"):
            dspy.Predict(PREDICT, n=3, max_tokens=400)(question="?")


@pytest.mark.parametrize("by_name", [False, True])
def test_a_whole_request_is_held_and_shortened_as_any(by_name: bool) -> None:
    """Its limit of a reply stands in its own settings, where no option may be."""
    asked: list[Any] = []

    class Engine:
        def complete(self, request: Request) -> Any:
            asked.append(request.config.max_tokens)
            return ScriptedLM([YES]).script.complete(request)

    lm = dspy.LM("scripted/lm", engine=Engine(), cache=False)
    request = Request(model=lm.model, messages=(Message.user("?"),), config=Config(max_tokens=4_000))
    ledger = Ledger(Limits(max_output_tokens=5_000, max_concurrency=1))
    with metered(ledger, "ask"):
        response = lm(request=request) if by_name else lm(request)
    assert asked == [4_000]
    with metered(Ledger(Limits(max_output_tokens=1_000, max_concurrency=1)), "ask"):
        lm(request)
    assert asked == [4_000, 512]
    assert (response.text, ledger.usage().output_tokens) == (YES, len(YES.split()))


def test_an_answer_of_dspys_cache_costs_nothing_and_leaves_nothing_held() -> None:
    lm = dspy.LM("scripted/cached", engine=ScriptedLM(lambda _: YES).script, cache=True, num_retries=2)
    lm.kwargs["temperature"] = 0.375  # no other test's
    limits = Limits(max_output_tokens=1_000, max_cost=1.0, prices={"scripted/cached": (1.0, 1.0)})
    ledger = Ledger(limits)
    for _ in range(2):
        with dspy.context(lm=lm), metered(ledger, "ask"):
            assert dspy.Predict(PREDICT)(question="?").answer == "yes"
    usage = ledger.usage()
    assert (usage.calls, usage.cached_calls) == (2, 1)
    assert usage.output_tokens == len(YES.split()) == 1_000 - ledger.left().output_tokens


@dataclass
class Told(BaseCallback):
    """What DSPy tells a callback of LM calls."""

    failures: list[bool] = field(default_factory=list)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Note whether a call failed."""
        self.failures.append(exception is not None)


@pytest.mark.parametrize("awaited", [False, True])
def test_each_repeat_is_a_call_to_callbacks_history_and_ledger(awaited: bool) -> None:
    """And to the caller's own tracking of usage."""
    told, ledger = Told(), Ledger(Limits())
    late = dspy.LMTimeoutError("late", retry_after=0)
    script = ScriptedLM([late, late, YES])
    lm = dspy.LM("scripted/m", engine=script.script, async_engine=script._async_engine_spec, num_retries=2)
    lm.cache, ask = False, dspy.Predict(PREDICT)
    with dspy.context(lm=lm, callbacks=[told], track_usage=True), metered(ledger, "ask", counted=True):
        prediction = asyncio.run(ask.acall(question="?")) if awaited else ask(question="?")
    assert told.failures == [True, True, False]
    assert (ledger.usage().calls, ledger.usage().failures, ledger.calls_made) == (3, 2, 3)
    assert len(lm.history) == 1
    assert prediction.get_lm_usage()["scripted/m"]["completion_tokens"] == len(YES.split())


@pytest.mark.parametrize(
    ("told", "waits"), [(None, 1), (7, 7), (0.5, 0.5), (60, 60), (float("nan"), 1), ("39.5s", 39.5)]
)
def test_a_wait_that_a_provider_asks_for_is_kept_if_it_is_short(
    told: float | str | None, waits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a header, or in words as Gemini does."""
    waited: list[float] = []
    monkeypatch.setattr("rlm_dspy.budget.metered_lm.pause", waited.append)
    seconds = None if isinstance(told, str) else told
    script = ScriptedLM([dspy.LMRateLimitError(f"Slow down, retry in {told}.", retry_after=seconds), YES])
    lm = dspy.LM("scripted/m", engine=script.script, num_retries=2, cache=False)
    with dspy.context(lm=lm), metered(Ledger(Limits()), "ask"):
        dspy.Predict(PREDICT)(question="?")
    assert waited == [waits]


@pytest.mark.parametrize("awaited", [False, True])
def test_a_request_is_not_repeated_before_a_long_wait_that_its_provider_asks_for(awaited: bool) -> None:
    """The error says how long it is."""
    script = ScriptedLM([dspy.LMRateLimitError("slow down\n\n  To fix:", retry_after=3_600), YES])
    lm = dspy.LM("scripted/m", engine=script.script, async_engine=script._async_engine_spec, cache=False)
    ledger, ask = Ledger(Limits(max_seconds=1_800)), dspy.Predict(PREDICT)
    with (
        dspy.context(lm=lm),
        pytest.raises(dspy.LMRateLimitError, match=r"slow down \(it asks to wait 3,600 s; .* at most 1,800 s"),
        metered(ledger, "ask"),
    ):
        asyncio.run(ask.acall(question="?")) if awaited else ask(question="?")
    assert ledger.usage().calls == 1


def test_a_long_wait_that_max_seconds_allows_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("rlm_dspy.budget.metered_lm.pause", waited.append)
    script = ScriptedLM([dspy.LMRateLimitError("slow down", retry_after=3_600), YES])
    lm = dspy.LM("scripted/m", engine=script.script, num_retries=2, cache=False)
    with dspy.context(lm=lm), metered(Ledger(Limits(max_seconds=7_200)), "ask"):
        dspy.Predict(PREDICT)(question="?")
    assert waited == [3_600]


def test_the_usage_of_an_lm_that_asks_another_is_each_ones_own() -> None:
    """Also in the caller's tracker."""
    inner = ScriptedLM(["one two"])
    inner.model = "inner"
    lm = ScriptedLM(lambda _: f"{inner('?')[0]} three")
    with dspy.context(lm=lm), dspy.track_usage() as tracker, metered(Ledger(Limits()), "ask"):
        assert lm("?") == ["one two three"]
    told = tracker.get_total_tokens()
    assert {name: each["completion_tokens"] for name, each in told.items()} == {"inner": 2, "scripted/lm": 3}


def test_an_lm_that_an_lm_asks_gives_its_reply_whole() -> None:
    """What asks may want the thinking; it is dropped from the answer of the whole."""
    inner = ScriptedLM(["<think>Hm.</think>yes"])
    lm = ScriptedLM(lambda _: f"{inner('?')[0]} indeed")
    with metered(Ledger(Limits()), "ask"):
        assert lm("?") == ["yes indeed"]
    assert lm.history[-1]["outputs"] == ["<think>Hm.</think>yes indeed"]


def test_a_raw_scope_counts_and_leaves_replies_as_they_are() -> None:
    ledger, lm = Ledger(Limits()), ScriptedLM([CutReply("<think>Hm.</think>yes")])
    with metered(ledger, "ask", raw=True):
        assert lm("?") == ["<think>Hm.</think>yes"]
    assert ledger.usage().calls == 1
    with pytest.raises(ReplyCut), metered(ledger, "ask"):
        ScriptedLM([CutReply("yes")])("?")


def test_outside_of_a_scope_an_lm_is_what_it_was() -> None:
    with metered(Ledger(Limits()), "ask"):
        pass
    lm = ScriptedLM([CutReply("<think>Hm.</think>yes")])
    assert lm("?") == ["<think>Hm.</think>yes"]
    assert asyncio.run(ScriptedLM(["yes"]).acall("?")) == ["yes"]


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
def test_an_lm_without_an_async_form_is_counted() -> None:
    class Plain(dspy.BaseLM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            choice = SimpleNamespace(message=SimpleNamespace(content=YES), finish_reason="stop")
            usage = {"prompt_tokens": 3, "completion_tokens": min(5, kwargs.get("max_tokens") or 5)}
            return SimpleNamespace(choices=[choice], usage=usage, model="plain")

    ledger = Ledger(Limits(max_output_tokens=1_000))
    with dspy.context(lm=Plain("plain")), metered(ledger, "ask"):
        assert dspy.Predict(PREDICT)(question="?").answer == "yes"
    assert (ledger.usage().calls, ledger.usage().output_tokens) == (1, 5)


def test_an_lm_that_counts_its_own_calls_is_called_as_it_is() -> None:
    class Counting(ScriptedLM):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().__call__(*args, **kwargs)

    lm, ledger = Counting([YES]), Ledger(Limits(max_output_tokens=1_000))
    with dspy.context(lm=lm), metered(ledger, "ask"):
        dspy.Predict(PREDICT)(question="?")
    assert (lm.calls, len(lm.history), ledger.usage().calls) == (1, 1, 1)


def test_lms_are_compared_copied_and_saved_in_a_scope_as_outside() -> None:
    lm = dspy.LM("openai/gpt-4o-mini", temperature=0.5)
    module = dspy.ChainOfThought(PREDICT)
    module.set_lm(lm)
    state = module.dump_state()
    with dspy.context(lm=lm), metered(Ledger(Limits(max_output_tokens=500)), "ask"):
        assert dspy.settings.lm is module.get_lm() is lm
        assert module.dump_state() == state
        assert copy.deepcopy(lm).kwargs == pickle.loads(pickle.dumps(lm)).kwargs == lm.kwargs
        assert type(lm.copy(temperature=1.0)) is dspy.LM


def test_a_run_inside_an_lm_reads_its_replies_as_any_run() -> None:
    """Its thinking is dropped although an LM is under way around it."""
    turns = ScriptedLM(["<think>Hm.</think>" + block("SUBMIT(answer='yes')")])
    inner = RLM(PREDICT, interpreter_factory=LocalPythonInterpreter, policy=None)

    def reply(_: Messages) -> str:
        with dspy.context(lm=turns):
            return str(inner(question="?").answer)

    ledger = Ledger(Limits())
    with metered(ledger, "ask"):
        assert ScriptedLM(reply)("?") == ["yes"]
    assert ledger.usage().calls == 2


# Nothing is overspent


@dataclass
class Bill:
    """A model that keeps its own bill, obeys `max_tokens`, and fails at some of its requests."""

    price: tuple[float, float]
    fails: frozenset[int]
    script: Any = field(default_factory=lambda: ScriptedLM(lambda _: "w " * 40).script)
    calls: int = 0
    read: int = 0
    written: int = 0

    def complete(self, request: Any) -> Any:
        """Answer, and enter it in the bill."""
        self.calls += 1
        if self.calls in self.fails:
            raise dspy.LMTimeoutError("late", retry_after=0)
        most = min(40, request.config.max_tokens or 40)
        response = ScriptedLM(["w " * most]).script.complete(request)
        self.read += response.usage.input_tokens
        self.written += response.usage.output_tokens
        return response

    @property
    def cost(self) -> float:
        """USD."""
        return (self.read * self.price[0] + self.written * self.price[1]) / 1e6


class Awaited:
    """The same for `acall`."""

    def __init__(self, bill: Bill) -> None:
        self.bill = bill

    async def complete(self, request: Any) -> Any:
        """Answer."""
        await asyncio.sleep(0)
        return self.bill.complete(request)


@dataclass(frozen=True)
class Call:
    """One call of a model: which, how long the prompt is, and what it is called with."""

    model: int
    words: int
    options: tuple[tuple[str, int], ...]
    awaited: bool


prices = st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 200.0))
models = st.lists(
    st.tuples(prices, st.frozensets(st.integers(1, 12), max_size=6), st.integers(0, 3)), min_size=1, max_size=3
)
asked_with = st.fixed_dictionaries({}, optional={"max_tokens": st.integers(1, 300), "n": st.integers(1, 3)})
calls = st.builds(
    Call,
    st.integers(0, 2),
    st.integers(1, 80),
    asked_with.map(lambda options: tuple(options.items())),
    st.booleans(),
)
limits_on_use = st.fixed_dictionaries(
    {"max_concurrency": st.integers(1, 8)},
    optional={
        "max_input_tokens": st.integers(1, 4_000),
        "max_output_tokens": st.integers(1, 2_000),
        "max_cost": st.floats(0.00001, 0.02),
        "max_llm_calls": st.integers(0, 20),
    },
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models, st.lists(calls, max_size=20), limits_on_use, st.integers(1, 6))
def test_whatever_is_asked_of_whatever_models_no_limit_is_overspent(
    given_models: list[Any], asked: list[Call], limited: dict[str, Any], threads: int
) -> None:
    """With prices, failures, repeats, several answers, limits of replies and threads as they come."""
    bills = [Bill(price, fails) for price, fails, _ in given_models]
    lms = [
        dspy.LM(f"scripted/{number}", engine=bill, async_engine=Awaited(bill), cache=False, num_retries=retries)
        for number, (bill, (_, _, retries)) in enumerate(zip(bills, given_models, strict=True))
    ]
    table = {lm.model: bill.price for lm, bill in zip(lms, bills, strict=True)}
    ledger = Ledger(Limits(prices=table, **{"max_llm_calls": 100, **limited}))

    def ask(call: Call) -> None:
        lm, prompt, options = lms[call.model % len(lms)], "word " * call.words, dict(call.options)
        with contextlib.suppress(LimitExceeded, dspy.LMError), metered(ledger, "ask", counted=True):
            asyncio.run(lm.acall(prompt, **options)) if call.awaited else lm(prompt, **options)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda call: contextvars.copy_context().run(ask, call), asked))
    usage = ledger.usage()
    read, written = sum(bill.read for bill in bills), sum(bill.written for bill in bills)
    cost = sum(bill.cost for bill in bills)
    assert (usage.input_tokens, usage.output_tokens) == (read, written)
    assert abs((usage.cost or 0.0) - cost) < 1e-9
    assert read <= limited.get("max_input_tokens", read)
    assert written <= limited.get("max_output_tokens", written)
    assert cost <= limited.get("max_cost", cost) + 1e-12
    if not any(dict(call.options).get("n", 1) > 1 for call in asked):
        assert usage.calls == sum(bill.calls for bill in bills)
    assert usage.calls <= ledger.calls_made <= limited.get("max_llm_calls", 100)
    if "max_output_tokens" in limited:
        assert ledger.left().output_tokens == limited["max_output_tokens"] - written


def test_an_lm_that_gives_several_answers_is_asked_for_one() -> None:
    """Its `n` would be paid for in each turn and sub-call, and no more than the first answer read."""
    lm = ScriptedLM(lambda _: "fine", act=[block("x = llm_query('a')"), block("SUBMIT(answer=x)")]).copy(n=3)
    with dspy.context(lm=lm):
        prediction = RLM("question -> answer", limits=Limits(max_llm_calls=1))(question="?")
    assert (prediction.answer, prediction.usage["calls"], len(lm.script.calls)) == ("fine", 3, 3)
