"""The marks of the prompt cache: where a provider needs them, in turns, and nowhere else; and what they cost."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import dspy
import pytest
from dspy.lm15 import CacheConfig

from rlm_dspy import RLM, Limits
from tests.provider_server import PROVIDERS, Body, Provider, ProviderServer, Said, serving

ASK = "```python\nanimal = llm_query('Which animal? ' + context)\nprint('It said', animal)\n```"
BEDROCK = PROVIDERS["Bedrock"]
MARKED = {
    "Anthropic": PROVIDERS["Anthropic"],
    "Bedrock": replace(BEDROCK, model="bedrock/converse/anthropic.claude-sonnet-4-5-20250929-v1:0"),
    "OpenRouter": replace(PROVIDERS["OpenRouter"], model="openrouter/anthropic/claude-sonnet-4.5"),
}
UNUSED = ("Anthropic", "LM Studio")  # LiteLLM opens an event loop for LM Studio and never closes it
NOT_MARKED = {
    **{name: provider for name, provider in PROVIDERS.items() if name not in UNUSED},
    "a model of Bedrock without a cache": BEDROCK,
}


def say(texts: list[str]) -> Said:
    """Ask a sub-call, then submit."""
    if not any("SUBMIT" in text for text in texts):
        return Said("fox")
    done = any("It said fox" in text for text in texts)
    return Said("```python\nSUBMIT(answer=animal)\n```" if done else ASK)


def ask(
    provider: Provider, change: Any = lambda reply: reply, **options: Any
) -> tuple[dspy.Prediction, list[Body]]:
    """Return the prediction of a run of two turns and a sub-call, and the bodies of its requests."""
    with serving(ProviderServer(say, lambda said, body: (200, change(provider.write(said, body))))) as server:
        with dspy.context(lm=provider.lm(server.base, **options)):
            prediction = RLM("context, question -> answer", limits=Limits(max_iters=4))(
                context="The fox.", question="?"
            )
        return prediction, [body for path, body in server.requests if "/api/show" not in path]


def marks_in(body: Body) -> list[bool]:
    """Return for the system message and each other message whether its last part is marked, or is a mark."""
    system = body.get("system")
    contents = [message["content"] for message in body["messages"]]
    contents = contents if system is None else [system, *contents]
    return ["cache" in str(content[-1]) if isinstance(content, list) else False for content in contents]


def without_marks(body: Body) -> str:
    """Return the messages of a request as text, without marks and without their form."""
    parts = [part for message in body["messages"] for part in message["content"]]
    return "".join(str(part.get("text", "")) if isinstance(part, dict) else part for part in parts)


@pytest.mark.parametrize("provider", MARKED)
def test_turns_mark_the_system_message_and_the_last_one(provider: str) -> None:
    prediction, (first, sub_call, second) = ask(MARKED[provider])
    assert (prediction.answer, prediction.usage["failures"]) == ("fox", 0)
    assert [marks_in(first), marks_in(second)] == [[True, True], [True, False, False, True]]
    assert "cache" not in json.dumps(sub_call)
    assert without_marks(second).startswith(without_marks(first))


@pytest.mark.parametrize("provider", NOT_MARKED)
def test_no_other_provider_gets_marks(provider: str) -> None:
    prediction, bodies = ask(NOT_MARKED[provider])
    assert prediction.answer == "fox"
    assert "cache" not in json.dumps(bodies)


@pytest.mark.parametrize(
    "options",
    [{"prompt_cache": CacheConfig(mode="off")}, {"seed": 1}, {"engine": "litellm"}],
    ids=str,
)
def test_the_users_own_choice_stays(options: dict[str, Any]) -> None:
    """Also options with which DSPy's own client might refuse the marks, and other engines."""
    prediction, bodies = ask(MARKED["Anthropic"], **options)
    assert prediction.answer == "fox"
    assert not any(marks_in(bodies[0]))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["x"]},
        {"reasoning_effort": "low"},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "temperature": 1.0, "max_tokens": 4_000},
        {"extra_headers": {"anthropic-beta": "context-1m-2025-08-07"}},
        {"extra_body": {"a": 1}, "drop_params": True},
    ],
    ids=" ".join,
)
def test_turns_are_marked_with_the_options_that_users_of_claude_choose(options: dict[str, Any]) -> None:
    """By whatever client DSPy sends them."""
    prediction, (first, sub_call, second) = ask(MARKED["Anthropic"], **options)
    assert (prediction.answer, prediction.usage["failures"]) == ("fox", 0)
    assert [marks_in(first), marks_in(second)] == [[True, True], [True, False, False, True]]
    assert "cache_control" not in json.dumps(sub_call)


def test_what_was_read_from_the_cache_and_written_to_it_is_counted() -> None:
    def cached(reply: Body) -> Body:
        read = {"input_tokens": 10, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 10}
        return {**reply, "usage": {**reply["usage"], **read}}

    prediction, bodies = ask(MARKED["Anthropic"], cached)
    usage = prediction.usage
    assert (usage["calls"], usage["input_tokens"], usage["cached_input_tokens"]) == (3, 300, 240)
    one = 10 * 3e-6 + 80 * 0.3e-6 + 10 * 3.75e-6 + 20 * 15e-6
    assert usage["cost"] == pytest.approx(len(bodies) * one)
