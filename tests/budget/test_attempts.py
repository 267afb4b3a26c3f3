"""What an LM repeats by itself: each request is entered into the ledger, and none goes beyond it."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from rlm_dspy import RLM, Limits
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.interpreters import LocalPythonInterpreter
from tests.playing import block
from tests.role_lm import RoleLM

if TYPE_CHECKING:
    from collections.abc import Callable


class LimitedServer:
    """An OpenAI-compatible server that refuses every question, `refusals` times, then answers.

    With status 429 it is busy; with 200 it sends the beginning of a reply.
    """

    def __init__(self, code: str, refusals: int, status: int = 429) -> None:
        self.code, self.refusals, self.status = code, refusals, status
        self.asked: dict[str, int] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer = outer.answer(str(body["messages"]), body.get("user"))
                data = json.dumps(answer).encode()
                data = data[:20] if "error" in answer and status == 200 else data
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after", "0")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._lock = threading.Lock()

    def answer(self, messages: str, role: str | None) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of an answer."""
        with self._lock:
            self.asked[messages] = number = self.asked.get(messages, 0) + 1
        if number <= self.refusals:
            return self.status, {"error": {"message": "not now", "type": "requests"}}
        reply = self.code if role == "act" else "[[ ## gist ## ]]\nsmall"
        message = {"role": "assistant", "content": reply}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}

    def lm(self, retries: int, kind: type[dspy.LM] = dspy.LM) -> dspy.LM:
        """Return an LM of this server; one that tells who asks gets the code for its turns."""
        return kind("openai/m", api_base=self.address, api_key="none", cache=False, num_retries=retries)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(params=["called", "awaited"])
def run(request: pytest.FixtureRequest) -> Callable[..., dspy.Prediction]:
    """Run an RLM, in both ways."""

    def call(rlm: RLM, **inputs: Any) -> dspy.Prediction:
        return rlm(**inputs) if request.param == "called" else asyncio.run(rlm.acall(**inputs))

    return call


GISTS = block("print([str(g) for g in gist.map(['one', 'two'])])\nSUBMIT(answer='done')")


@pytest.mark.parametrize("status", [429, 200])
def test_every_request_of_turns_and_sub_calls_is_entered(run: Any, status: int) -> None:
    with LimitedServer(GISTS, refusals=2, status=status) as server, dspy.context(lm=server.lm(3, RoleLM)):
        prediction = run(RLM("question -> answer", subs={"gist": "text -> gist"}), question="?")
    assert (prediction.answer, prediction.stop) == ("done", "submitted")
    assert "['small', 'small']" in prediction.trajectory[0]["output"]
    assert sum(server.asked.values()) == prediction.usage["calls"] == 9
    assert {role: (spent["calls"], spent["failures"]) for role, spent in prediction.usage["by_role"].items()} == {
        "act": (3, 2),
        "gist": (6, 4),
    }


class Inside(dspy.Module):
    """A module whose predictor has an LM of its own."""

    def __init__(self, lm: dspy.LM) -> None:
        super().__init__()
        self.inner = dspy.Predict("text -> gist")
        self.inner.lm = lm

    def forward(self, text: str) -> Any:
        """Return what the predictor says."""
        return self.inner(text=text)

    async def aforward(self, text: str) -> Any:
        """Return what the predictor says."""
        return await self.inner.acall(text=text)


def test_every_request_of_an_lm_that_only_a_module_knows_is_entered(run: Any) -> None:
    with LimitedServer(GISTS, refusals=1) as server, LimitedServer("", refusals=1) as own:
        gist = Inside(own.lm(1))
        with dspy.context(lm=server.lm(1, RoleLM)):
            prediction = run(RLM("question -> answer", subs={"gist": gist}), question="?")
    assert "['small', 'small']" in prediction.trajectory[0]["output"]
    assert sum(own.asked.values()) == prediction.usage["by_role"]["gist"]["calls"] == 4


def test_no_request_is_repeated_beyond_the_limit_and_its_failure_is_told(run: Any) -> None:
    code = block("g = gist.map(['one'])[0]\nprint(g)\nSUBMIT(answer='done')")
    rlm = RLM("question -> answer", subs={"gist": "text -> gist"}, limits=Limits(max_llm_calls=2))
    with LimitedServer(code, refusals=1) as server, LimitedServer("", refusals=100) as own:
        rlm.subs.gist.lm = own.lm(100)
        with dspy.context(lm=server.lm(1, RoleLM)):
            prediction = run(rlm, question="?")
    assert sum(own.asked.values()) == 2
    assert prediction.usage["limit"] == "max_llm_calls"
    assert "0 of 2 model calls are left" in prediction.trajectory[0]["output"]
    assert "not now" in prediction.trajectory[0]["output"]


def test_a_run_whose_time_went_by_with_failing_requests_says_how_they_failed(run: Any) -> None:
    """What its server said is not lost behind the limit on time."""
    rlm = RLM("question -> answer", limits=Limits(max_seconds=0.4), interpreter_factory=LocalPythonInterpreter)
    with LimitedServer("", refusals=10**9) as server, dspy.context(lm=server.lm(10**6)):
        prediction = run(rlm, question="?")
    assert (prediction.stop, prediction.usage["limit"]) == ("unanswered", "max_seconds")
    assert "The last request failed: [openai/m] not now" in prediction.final_reasoning


def test_an_error_that_stays_is_not_asked_about_again() -> None:
    with LimitedServer("", refusals=1, status=400) as server, dspy.context(lm=server.lm(3)):
        ledger = Ledger(Limits())
        with pytest.raises(dspy.LMError, match="not now"), metered(ledger, "query"):
            dspy.Predict("text -> gist")(text="one")
    assert sum(server.asked.values()) == ledger.usage().calls == 1


def test_the_last_error_is_raised_when_all_attempts_failed() -> None:
    with LimitedServer("", refusals=9) as server, dspy.context(lm=server.lm(2)):
        ledger = Ledger(Limits())
        with pytest.raises(dspy.LMError, match="not now"), metered(ledger, "query"):
            dspy.settings.lm("one")
    assert sum(server.asked.values()) == ledger.usage().failures == 3


class Heard(BaseCallback):
    """Notes the LMs that requests are sent to."""

    def __init__(self) -> None:
        self.lms: list[Any] = []

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.lms.append(instance)


def test_the_lm_in_a_scope_is_the_callers_own() -> None:
    """Whoever compares, copies or saves it finds nothing else; requests are sent to what has all that it has."""
    with LimitedServer("", refusals=1) as server:
        lm, heard = server.lm(7), Heard()
        state = lm.dump_state()
        with dspy.context(lm=lm, callbacks=[heard]), metered(Ledger(Limits(max_output_tokens=9_000)), "query"):
            dspy.Predict("text -> gist")(text="one")
            assert dspy.settings.lm is lm
            hotter = dspy.settings.lm.copy(temperature=1.0)
        assert (lm.num_retries, lm.dump_state(), len(lm.history)) == (7, state, 1)
        assert (hotter.num_retries, hotter.kwargs["temperature"], hotter.history) == (7, 1.0, [])
        assert type(pickle.loads(pickle.dumps(lm))) is dspy.LM
    assert [(type(each), each.model, each.history is lm.history) for each in heard.lms] == 2 * [
        (dspy.LM, lm.model, True)
    ]


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
def test_an_lm_that_asks_in_a_way_of_its_own_repeats_by_itself() -> None:
    """Its requests are one call: DSPy tells of no more."""
    asked = []

    class Own(dspy.LM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(self)
            raise dspy.LMTimeoutError("late")

    lm, ledger = Own("openai/m", num_retries=7), Ledger(Limits())
    with dspy.context(lm=lm), pytest.raises(dspy.LMError), metered(ledger, "query"):
        lm("one")
    assert asked == [lm]
    assert ledger.usage().calls == 1
