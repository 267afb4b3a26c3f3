"""What a provider says that a call cost is what it cost, in usage, in limits and in traces."""

from __future__ import annotations

import http.server
import json
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.budget.lm_info import reported_cost, reported_price
from rlm_dspy.errors import UnknownPrice
from rlm_dspy.interpreters import LocalPythonInterpreter
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Iterator

CODE = block("SUBMIT(answer=llm_query('X'))")


@dataclass
class Provider:
    """A server that tells what its replies cost.

    Attributes:
        usage: What it says beside the tokens.
        url: Where it listens.
        requests: How often it was asked.
    """

    usage: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    requests: int = 0

    def lm(self, **options: Any) -> dspy.LM:
        """Return a model of its, of which nobody knows the price."""
        return dspy.LM("openai/unpriced", api_base=self.url, api_key="k", cache=False, num_retries=0, **options)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Start one."""
    provider = Provider()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            provider.requests += 1
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
            usage = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100, **provider.usage}
            message = {"role": "assistant", "content": "x" if len(asked) < 10 else CODE}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            body = json.dumps({**reply, "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield provider
        server.shutdown()


def run(lm: dspy.LM, **limits: Any) -> dspy.Prediction:
    """Run to the end: a turn and a sub-call."""
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        return RLM("q -> answer", limits=Limits(**limits), policy=None)(q="?")


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"cost": 0.25}, 0.25),
        ({"cost": 0.25, "cost_details": {"upstream_inference_cost": 0.2}}, 0.25),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, 0.21),
        ({"cost": {"input_tokens_cost": 0.1, "total_cost": 0.3}}, 0.3),
        ({"cost": 0}, 0.0),
        ({"cost": "0.25"}, None),
        ({"cost": -1}, None),
        ({}, None),
    ],
)
def test_the_cost_in_a_reply_is_the_cost(provider: Provider, usage: dict[str, Any], cost: float | None) -> None:
    """Not one that is none: an unknown cost is not 0."""
    provider.usage = usage
    spent = run(provider.lm()).usage
    assert spent["cost"] == (None if cost is None else pytest.approx(2 * cost))
    assert spent["by_role"]["query"]["cost"] == (None if cost is None else pytest.approx(cost))


def test_the_cost_of_litellm_is_the_cost() -> None:
    """Also that of a proxy, which it reads from a header; a NaN is none."""
    assert reported_cost({"usage": {}, "cost": 0.5}) == 0.5
    assert reported_cost({"usage": {"cost": float("nan")}, "cost": 0.5}) == 0.5
    assert reported_cost({"usage": {"cost": True}, "cost": float("inf")}) is None
    assert reported_cost({}) is None


def test_max_cost_holds_for_a_model_that_reports_its_cost(provider: Provider) -> None:
    """Once it was called; before, the message says so."""
    provider.usage = {"cost": 0.001}
    lm = provider.lm(max_tokens=200)
    with pytest.raises(UnknownPrice, match="call the LM once before"):
        run(lm, max_cost=1.0)
    assert provider.requests == 0
    lm("hello")
    assert run(lm, max_cost=1.0).usage["cost"] == pytest.approx(0.002)
    provider.usage = {"cost": 0.4}
    dear = provider.lm(max_tokens=200)
    dear("hello")
    before = provider.requests
    spent = run(dear, max_cost=1.0).usage
    assert (spent["cost"] or 0.0) <= 1.0
    assert spent["limit"] == "max_cost"
    assert provider.requests - before <= 2


def test_a_price_from_reports_is_never_too_low() -> None:
    """Whatever a token that is read and one that is written cost."""

    history = [
        {"usage": {"prompt_tokens": read, "completion_tokens": written, "cost": read * 2e-6 + written * 8e-6}}
        for read, written in ((1_000, 10), (10, 1_000), (0, 5))
    ]
    price = reported_price(SimpleNamespace(history=history))
    assert price is not None
    assert price.most_read >= 2e-6
    assert price.most_written >= 8e-6
    assert price.at_most(500, 500) < 2 * (500 * 2e-6 + 500 * 8e-6)
