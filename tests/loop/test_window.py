"""A run in a model's window: fold, fold more, shorten, extract from what fits; on a server that counts tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from pydantic import BaseModel, Field, create_model

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.text import shorten_to_fit
from rlm_dspy.trajectory import Step, Trajectory
from tests.playing import begins, block, fields, steps_of
from tests.window_server import Request, WindowServer, serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages
    from tests.playing import Play

WINDOW = 4_096
TURNS, PRINTED = 10, 10_000
ROOT = "The root task."
TOO_LONG = dspy.lm15.ContextLengthError("too long")


def told(request: Request, window: int) -> tuple[int, str]:
    """Refuse as vLLM does."""
    asked = f"({request.read} in the messages, {request.max_tokens} in the completion)"
    total = request.read + request.max_tokens
    words = (
        f"This model's maximum context length is {window} tokens. However, you requested {total} tokens {asked}."
    )
    return 400, json.dumps({"error": {"message": words, "code": 400}})


def untold(request: Request, window: int) -> tuple[int, str]:
    """Refuse without a number, as Bedrock does."""
    return 400, json.dumps({"error": {"message": "Input is too long for requested model."}})


def wordless(request: Request, window: int) -> tuple[int, str]:
    """Refuse without a word, as Cerebras does."""
    return 400, ""


class Model:
    """Prints a lot in each of some turns, then submits, if it does; answers whatever else it is asked."""

    def __init__(self, code: str = f"print('{'word ' * 5}' * {PRINTED // 25})", *, submits: bool = True) -> None:
        self.code, self.submits, self.turn = code, submits, 0

    def __call__(self, messages: Messages) -> str:
        if not any(map(begins, messages)):
            return fields(summary="Found: the number is 7.", answer="extracted")
        self.turn += 1
        goes_on = self.turn <= TURNS or not self.submits
        return block(f"turn = {self.turn}\n{self.code}" if goes_on else "SUBMIT(answer='found')")


def run(rlm: RLM, server: WindowServer, lm: dict[str, Any] | None = None, **inputs: Any) -> dspy.Prediction:
    """Call the RLM on the server."""
    with (
        serving(server),
        dspy.context(lm=server.lm(**(lm or {})), interpreter_factory=LocalPythonInterpreter),
    ):
        return rlm(**(inputs or {"q": "?"}))


SERVERS = [
    *((refuse, options, 0) for refuse in (told, untold, wordless) for options in ({}, {"chars_per_token": 1.5})),
    *((told, {"counts_reply": True}, max_tokens) for max_tokens in (0, 1_000, 4_000)),
]
"""How it refuses, how it counts, and the longest reply that the client asks for."""


@pytest.mark.parametrize("submits", [True, False])
@pytest.mark.parametrize(
    ("refuse", "options", "max_tokens"), SERVERS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_ten_turns_that_print_10_000_characters_each_end_with_an_answer(
    refuse: Callable[[Request, int], tuple[int, str]], options: dict[str, Any], max_tokens: int, submits: bool
) -> None:
    """In a window of 4,096 tokens: submitted, or read from what fits. All turns are in the trajectory."""
    server = WindowServer(Model(submits=submits), WINDOW, refuse, **options)
    rlm = RLM("q -> answer", max_iters=TURNS + submits, policy=None)
    prediction = run(rlm, server, {"max_tokens": max_tokens} if max_tokens else {})
    assert (prediction.answer, prediction.stop) == (
        ("found", "submitted") if submits else ("extracted", "extracted")
    )
    printed = [step for step in prediction.trajectory if step["kind"] == "output"]
    assert len(printed) == TURNS
    assert all("word word" in step["output"] for step in printed)
    assert sum(request.refused for request in server.requests) <= 2 * TURNS


@pytest.mark.parametrize("known", [{"max_context_tokens": WINDOW}, {}], ids=["given", "learned"])
def test_once_the_window_is_known_few_requests_are_refused(known: dict[str, Any]) -> None:
    """Outputs are cut to a share of it, and turns folded in time."""
    server = WindowServer(Model(), WINDOW, told)
    prediction = run(RLM("q -> answer", limits=Limits(**known), policy=None), server)
    assert prediction.stop == "submitted"
    assert sum(request.refused for request in server.requests) <= (0 if known else 1)
    assert prediction.usage["by_role"]["fold"]["calls"] <= TURNS // 2


def test_a_known_window_of_ordinary_size_changes_nothing() -> None:
    """Every output is shown up to `max_output_chars`."""
    server = WindowServer(Model(), 128_000, told)
    prediction = run(RLM("q -> answer", limits=Limits(max_context_tokens=128_000), policy=None), server)
    assert all(len(step["output"]) >= PRINTED for step in prediction.trajectory[:-1])
    assert "fold" not in prediction.usage["by_role"]


def test_after_one_turn_the_folding_goes_on_to_its_last_step(play: Play) -> None:
    """A window that nobody knows: the turn is folded, then shortened, then the answer is read from the rest."""
    seen: list[int] = []

    def reply(messages: Messages) -> Any:
        if not any(map(begins, messages)):
            return fields(summary="The number is 7.", answer="read")
        seen.append(sum(len(message["content"]) for message in messages))
        return block("print('x' * 9000)") if len(seen) == 1 else TOO_LONG

    played = play(RLM("q -> answer", policy=None), reply, q="?")
    assert (played.prediction.answer, played.prediction.stop) == ("read", "extracted")
    assert played.kinds == ["output", "folded"]
    assert seen[1:] == sorted(seen[1:], reverse=True)
    assert len(seen) <= 12


def test_a_first_turn_that_is_too_long_is_made_shorter() -> None:
    """Demos are left out, then the longest parts of the environment are cut; the run does what it can."""
    rlm = RLM(dspy.Signature("q -> answer", f"Find it. {'Mind the step. ' * 1_500}"), policy=None)
    steps = Trajectory(steps=(Step(code="print(1)", output="1" * 500, reasoning="r"),))
    rlm.act.demos = [
        {"environment": f"demo {n} " * 100, "trajectory": steps, "reasoning": "r", "code": f"print({n})"}
        for n in range(20)
    ]
    server = WindowServer(Model("print(1)"), WINDOW, told)
    prediction = run(rlm, server)
    assert (prediction.answer, prediction.stop) == ("found", "submitted")
    answered = [request for request in server.requests if not request.refused]
    assert "SUBMIT(answer=...)" in str(answered[0].messages)
    assert "demo 3" not in str(answered[0].messages)
    assert len(rlm.act.demos) == 20


def test_a_window_that_nothing_fits_is_told_to_the_caller() -> None:
    """By the kind of the error, with the trajectory, which is empty then."""
    server = WindowServer(Model(), 100, told)
    with pytest.raises(dspy.ContextWindowExceededError) as caught:
        run(RLM("q -> answer", policy=None), server)
    assert steps_of(caught) == []


def test_a_refusal_without_a_reason_reaches_the_caller_as_it_is() -> None:
    """If shorter messages do not help: it was about something else."""
    server = WindowServer(Model(), 0, wordless)
    with pytest.raises(dspy.LMInvalidRequestError) as caught:
        run(RLM("q -> answer", policy=None), server)
    assert not isinstance(caught.value, dspy.ContextWindowExceededError)


@pytest.mark.parametrize("error", [dspy.LMServerError("down"), dspy.LMAuthError("no")])
def test_an_extraction_that_fails_loses_nothing_that_was_paid_for(play: Play, error: Exception) -> None:
    """The error carries the trajectory and what it cost."""
    with pytest.raises(type(error)) as caught:
        play(RLM("q -> answer", max_iters=1, policy=None), [block("print('paid')"), error], q="?")
    assert [step["output"].strip() for step in steps_of(caught)] == ["paid"]
    assert vars(caught.value)["usage"]["calls"] == 2


def test_an_extraction_that_never_fits_ends_unanswered(play: Play) -> None:
    """With the trajectory; nothing is raised."""

    def reply(messages: Messages) -> Any:
        return block("print('paid')") if any(map(begins, messages)) else TOO_LONG

    played = play(RLM("q -> answer", max_iters=1, policy=None), reply, q="?")
    assert (played.prediction.stop, played.prediction.answer) == ("unanswered", None)
    assert "too long" in played.prediction.final_reasoning
    assert played.outputs[0].strip() == "paid"


class Part(BaseModel):
    name: str = Field(description="The name " * 20)
    number: int = Field(description="The number " * 20)


@pytest.mark.parametrize("known", [True, False])
def test_an_extraction_whose_schema_does_not_fit_tells_the_types_in_short(known: bool) -> None:
    fields_of = {f"part_{n}": (Part | None, Field(None, description="A part " * 10)) for n in range(40)}
    whole = create_model("Whole", **fields_of)  # type: ignore[call-overload]
    output = {"q": (str, dspy.InputField()), "answer": (whole, dspy.OutputField())}

    def reply(messages: Messages) -> str:
        code, answer = block("print('a')"), '{"part_0": {"name": "x", "number": 1}}'
        return code if any(map(begins, messages)) else answer

    server, limits = WindowServer(reply, 2_048, told), Limits(max_context_tokens=2_048 if known else None)
    prediction = run(RLM(dspy.Signature(output), max_iters=2, limits=limits, policy=None), server)
    assert prediction.stop == "extracted"
    assert prediction.answer.part_0 == Part(name="x", number=1)


@pytest.mark.parametrize("refuse", [told, untold])
def test_a_sub_call_that_is_too_long_tells_the_model_to_pass_less(
    refuse: Callable[[Request, int], tuple[int, str]],
) -> None:
    """With sizes; the items beside it are answered."""

    def reply(messages: Messages) -> str:
        if not any(map(begins, messages)):
            return "ok"
        return block(
            "found = llm_query_batched(['x' * 30000, 'short'])\nSUBMIT(answer=found[0].error + '|' + found[1])"
        )

    answer = run(RLM("q -> answer", policy=None), WindowServer(reply, WINDOW, refuse)).answer
    assert answer.startswith("ContextWindowExceededError")
    assert "30,000 characters" in answer
    assert "split the text" in answer
    assert ("4,096 tokens" in answer) is (refuse is told)
    assert answer.endswith("|ok")


def test_a_sub_call_whose_reply_does_not_fit_is_asked_for_a_shorter_one() -> None:
    """Its prompt fits; the next ones ask for a shorter reply at once."""

    def reply(messages: Messages) -> str:
        if not any(map(begins, messages)):
            return "ok"
        return block("SUBMIT(answer=' '.join(llm_query('x' * 4000 + str(n)) for n in range(3)))")

    server = WindowServer(reply, WINDOW, told, counts_reply=True)
    prediction = run(RLM("q -> answer", policy=None), server, {"max_tokens": 3_900})
    assert prediction.answer == "ok ok ok"
    assert [request.refused for request in server.requests].count(True) == 1


def test_a_child_climbs_down_the_same_ladder() -> None:
    """Its answer reaches the parent."""

    class Both(Model):
        def __call__(self, messages: Messages) -> str:
            if ROOT in str(messages[:2]):
                return block("SUBMIT(answer=rlm_query('Respond with the number.'))")
            return super().__call__(messages).replace("SUBMIT(answer", "SUBMIT(response")

    rlm = RLM(dspy.Signature("q -> answer", ROOT), policy=None)
    prediction = run(rlm, WindowServer(Both(), WINDOW, told))
    assert prediction.answer == "found"
    (call,) = prediction.trajectory[0]["calls"]
    assert "folded" in {step["kind"] for step in call["steps"]}


def test_the_limits_of_a_run_hold_on_the_ladder() -> None:
    """Refused requests are entered as failed, and nothing more is read than is allowed."""
    server = WindowServer(Model(), WINDOW, told)
    limits = Limits(max_input_tokens=60_000, max_output_tokens=20_000)
    prediction = run(RLM("q -> answer", limits=limits, policy=None), server)
    assert prediction.answer in ("found", "extracted")
    assert prediction.usage["failures"] == sum(request.refused for request in server.requests)
    assert prediction.usage["input_tokens"] <= 60_000


@pytest.mark.parametrize("chars", [0, 100, 1_000, 10_000])
def test_the_longest_texts_give_way_first(chars: int) -> None:
    """Short ones stay whole; all together have about as many characters as they may."""
    texts = ["short", "x" * 5_000, "y" * 300]
    shorter = shorten_to_fit(texts, chars)
    assert sum(map(len, shorter)) <= max(chars, 150)
    assert (shorter[0] == "short") is (chars >= 100)
    assert (shorter[2] == texts[2]) is (chars >= 1_000)
    assert shorten_to_fit(texts, 10_000) == texts


def test_a_scripted_window_error_after_two_turns_folds_and_goes_on(play: Play) -> None:
    """`keep=2` leaves nothing to fold there."""
    replies = [
        block("print('a')"),
        block("print('b')"),
        TOO_LONG,
        fields(summary="a, b"),
        block("SUBMIT(answer='c')"),
    ]
    played = play(RLM("q -> answer", policy=None), ScriptedLM(replies), q="?")
    assert (played.prediction.answer, played.prediction.stop) == ("c", "submitted")
    assert played.kinds == ["output", "output", "folded", "submitted"]


class Own(dspy.BaseLM):
    """An LM of a caller's own, whose client raises what it likes."""

    def __init__(self, error: Callable[[str], Exception]) -> None:
        super().__init__(model="own/lm")
        self.error, self.reply = error, Model()

    def forward(self, prompt: Any = None, messages: Any = None, **_: Any) -> Any:
        read = sum(len(message["content"]) for message in messages) // 3
        if read > WINDOW:
            raise self.error(f"Requested tokens ({read}) exceed context window of {WINDOW}")
        message = SimpleNamespace(content=self.reply(messages), tool_calls=None)
        usage = {"prompt_tokens": read, "completion_tokens": 9, "total_tokens": read + 9}
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=usage, model="own/lm")


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
@pytest.mark.parametrize("error", [ValueError, RuntimeError, dspy.LMUnexpectedError])
def test_an_lm_of_the_callers_own_may_raise_what_it_likes(error: Callable[[str], Exception]) -> None:
    """As llama-cpp-python does."""
    with dspy.context(lm=Own(error), interpreter_factory=LocalPythonInterpreter):
        prediction = RLM("q -> answer", policy=None)(q="?")
    assert (prediction.answer, prediction.stop) == ("found", "submitted")


def test_a_reply_limit_in_acts_own_options_is_lowered_too(play: Play) -> None:
    """As one of the LM is: the run is not over before it began."""
    rlm = RLM("q -> answer", limits=Limits(max_output_tokens=3_000), policy=None)
    rlm.act.config = {"max_tokens": 4_000}
    assert play(rlm, [block("SUBMIT(answer='a')")], q="?").prediction.stop == "submitted"
