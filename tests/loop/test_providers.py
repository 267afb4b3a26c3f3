"""Runs over servers that speak as providers do, with the quirks of their replies: each ends with the answer."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from tests.playing import block
from tests.provider_quirks import QUIRKS, STREAM_QUIRKS
from tests.provider_server import PROVIDERS, ProviderServer, Said, serving
from tests.provider_streams import wants_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_.*fields' attribute")  # litellm's, in streams

ASK = "I ask a model.\n```python\nanimal = llm_query('Which animal? ' + context)\nprint('It said', animal)\n```"
SUBMIT = "That is it.\n```python\nSUBMIT(answer=animal)\n```"
WITHOUT_A_FIELD_FOR_THINKING = {"OpenAI", "Azure", "Mistral", "Groq by litellm"}


@pytest.fixture(autouse=True)
def _loops_that_litellm_leaves_open(provider: str) -> Iterator[None]:
    """Collect them here: LiteLLM opens an event loop for LM Studio and never closes it."""
    yield
    if provider != "LM Studio":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def say(texts: list[str]) -> Said:
    """Answer as a model that asks a sub-call, then submits; each request counts 100 tokens and 20."""
    if not any("SUBMIT" in text for text in texts):
        return Said("fox", "a thought of the sub-call")
    if any("It said fox" in text for text in texts):
        return Said(SUBMIT, "a second thought")
    return Said(ASK, "a first thought")


def run(provider: str, server: ProviderServer) -> dspy.Prediction:
    lm = PROVIDERS[provider].lm(server.base, num_retries=2)
    with dspy.context(lm=lm):
        rlm = RLM("context, question -> answer", limits=Limits(max_iters=4))
        prediction: dspy.Prediction = rlm(context="The fox jumps.", question="Which animal jumps?")
    return prediction


async def streamed(
    provider: str, server: ProviderServer, num_retries: int = 2
) -> tuple[list[Any], dspy.Prediction]:
    """Return the items of a streamed run, and its prediction."""
    program = dspy.streamify(RLM("context, question -> answer", limits=Limits(max_iters=4)))
    with dspy.context(lm=PROVIDERS[provider].lm(server.base, num_retries=num_retries)):
        *items, prediction = [
            item async for item in program(context="The fox jumps.", question="Which animal jumps?")
        ]
    return items, prediction


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_run_over_a_provider_answers_counts_and_keeps_the_thinking(provider: str) -> None:
    write = PROVIDERS[provider].write
    with serving(ProviderServer(say, lambda said, body: (200, write(said, body)))) as server:
        prediction = run(provider, server)
    assert (prediction.answer, prediction.stop) == ("fox", "submitted")
    usage = prediction.usage
    assert (usage["calls"], usage["input_tokens"], usage["output_tokens"]) == (3, 300, 60)
    thinking = [step.get("thinking", "") for step in prediction.trajectory]
    apart = provider not in WITHOUT_A_FIELD_FOR_THINKING
    assert thinking == (["a first thought", "a second thought"] if apart else ["", ""])
    sent = [text for _, body in server.requests for text in [str(body)]]
    assert not any("thought" in text for text in sent)  # thinking is not sent again


@pytest.mark.parametrize(
    ("provider", "name"),
    [(provider, name) for name, quirk in QUIRKS.items() for provider in quirk.providers],
)
def test_a_run_over_a_server_with_a_quirk_answers(provider: str, name: str) -> None:
    quirk, write = QUIRKS[name], PROVIDERS[provider].write
    server = ProviderServer(
        say, lambda said, body: quirk.change(write(said, body), body, len(server.requests) - 1)
    )
    with serving(server):
        prediction = run(provider, server)
    assert (prediction.answer, prediction.stop) == ("fox", "submitted")
    assert tuple(step.get("kind", "output") for step in prediction.trajectory) == quirk.kinds
    assert quirk.usage.items() <= prediction.usage.items()
    assert prediction.usage["failures"] == int(quirk.retried or name.startswith("no system role"))
    asked = sum("/api/show" not in path for path, _ in server.requests)
    assert asked == len(quirk.kinds) + 1 + int(prediction.usage["failures"] and quirk.repeated)


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_streamed_run_is_the_same(provider: str) -> None:
    write = PROVIDERS[provider].write
    with serving(ProviderServer(say, lambda said, body: (200, write(said, body)))) as server:
        whole = run(provider, server)
        items, prediction = await streamed(provider, server)
    assert (prediction.answer, prediction.stop) == ("fox", "submitted")
    assert all(wants_stream(path, body) for path, body in server.requests[-2:])
    asked = ("calls", "input_tokens", "output_tokens", "failures", "cost")
    assert [prediction.usage[name] for name in asked] == [whole.usage[name] for name in asked]
    told = [[step.get("thinking"), step["reasoning"], step["code"]] for step in prediction.trajectory]
    assert told == [[step.get("thinking"), step["reasoning"], step["code"]] for step in whole.trajectory]
    chunks = [item for item in items if getattr(item, "choices", None)]
    text = "".join(chunk.choices[0].delta.get("content") or "" for chunk in chunks)
    assert text == ASK + "fox" + SUBMIT


@pytest.mark.parametrize(
    ("provider", "name"),
    [(provider, name) for name, quirk in STREAM_QUIRKS.items() for provider in quirk.providers],
)
async def test_a_streamed_run_over_a_server_with_a_quirk_answers(provider: str, name: str) -> None:
    quirk, write = STREAM_QUIRKS[name], PROVIDERS[provider].write
    with serving(ProviderServer(say, lambda said, body: (200, write(said, body)), quirk.change)) as server:
        _, prediction = await streamed(provider, server)
    assert (prediction.answer, prediction.stop) == ("fox", "submitted")
    assert tuple(step.get("kind", "output") for step in prediction.trajectory) == quirk.kinds
    assert quirk.usage.items() <= prediction.usage.items()


@pytest.mark.parametrize("provider", ["vLLM", "Azure"])
async def test_a_broken_stream_that_is_not_repeated_is_told_and_keeps_what_it_brought(provider: str) -> None:
    quirk, write = STREAM_QUIRKS["an error behind some text"], PROVIDERS[provider].write
    with serving(ProviderServer(say, lambda said, body: (200, write(said, body)), quirk.change)) as server:
        _, prediction = await streamed(provider, server, num_retries=0)
    broken = prediction.trajectory[0]
    assert ASK.startswith(broken["reasoning"])
    assert "broke off because the connection to its server failed. It has no complete code" in broken["output"]


@pytest.mark.parametrize("provider", ["vLLM", "Azure", "Anthropic", "Gemini", "Bedrock"])
async def test_a_streamed_reply_that_reached_its_limit_is_told_as_cut(provider: str) -> None:
    def cut(texts: list[str]) -> Said:
        said = say(texts)
        return replace(said, finish="length") if said.text == ASK else said

    write = PROVIDERS[provider].write
    with serving(ProviderServer(cut, lambda said, body: (200, write(said, body)))) as server:
        _, prediction = await streamed(provider, server)
    assert prediction.stop == "submitted"
    assert "Your reply was cut off after 20 tokens." in prediction.trajectory[0]["output"]


@pytest.mark.parametrize("thinking", ["a thought", ""])
@pytest.mark.parametrize("provider", ["vLLM", "OpenRouter", "llama.cpp", "Anthropic"])
async def test_a_streamed_reply_without_text_is_not_told_as_withheld(provider: str, thinking: str) -> None:
    """The last chunk of its stream has the usage, and no choices."""

    def say_nothing_first(texts: list[str]) -> Said:
        return say(texts) if len(server.requests) > 1 else Said("", thinking)

    write = PROVIDERS[provider].write
    server = ProviderServer(say_nothing_first, lambda said, body: (200, write(said, body)))
    with serving(server):
        _, prediction = await streamed(provider, server)
    told = "Your reply contains only thinking" if thinking else "Your reply was empty"
    assert prediction.trajectory[0]["output"].startswith(told)


@pytest.mark.parametrize("name", ["the whole reply taken for thinking", "a tool call in place of a block"])
@pytest.mark.parametrize("provider", ["vLLM", "llama.cpp"])
async def test_a_streamed_reply_whose_code_stands_apart_is_run(provider: str, name: str) -> None:
    quirk, write = QUIRKS[name], PROVIDERS[provider].write
    server = ProviderServer(say, lambda said, body: quirk.change(write(said, body), body, len(server.requests)))
    with serving(server):
        _, prediction = await streamed(provider, server)
    assert (prediction.answer, prediction.stop) == ("fox", "submitted")
    assert tuple(step.get("kind", "output") for step in prediction.trajectory) == quirk.kinds


FULL = 2_500
"""Tokens of the messages behind which the server has no room for a reply."""
REQUESTS = 8
OPTIONS_OF_STREAMS = {
    400: {"error": {"message": "Unrecognized request argument supplied: stream_options"}},
    422: {"detail": [{"type": "extra", "loc": ["body", "stream_options"], "msg": "Extra inputs"}]},
}


@pytest.mark.parametrize("status", OPTIONS_OF_STREAMS)
@pytest.mark.parametrize("provider", ["vLLM"])
async def test_a_server_that_refuses_options_of_a_stream_is_asked_for_whole_replies(
    provider: str, status: int
) -> None:
    def write(said: Said, body: dict[str, Any]) -> tuple[int, Any]:
        refused = (status, OPTIONS_OF_STREAMS[status])
        return refused if "stream_options" in body else (200, PROVIDERS[provider].write(said, body))

    with serving(ProviderServer(say, write)) as server:
        _, prediction = await streamed(provider, server)
    assert (prediction.answer, prediction.stop, prediction.usage["failures"]) == ("fox", "submitted", 1)


@pytest.mark.parametrize("provider", ["llama.cpp"])
def test_a_server_that_answers_nothing_when_its_window_is_full_is_sent_less(provider: str) -> None:
    """It cuts the reply off before its first token, where others refuse the request."""

    def write(said: Said, body: dict[str, Any]) -> tuple[int, Any]:
        size = len(str(body["messages"])) // 4
        reply = PROVIDERS[provider].write(replace(said, finish="length") if size > FULL else said, body)
        if size > FULL:
            reply["choices"][0]["message"]["content"] = ""
            reply["usage"] = {"prompt_tokens": size, "completion_tokens": 0, "total_tokens": size}
        return 200, reply

    def print_much(texts: list[str]) -> Said:
        done = len(server.requests) > REQUESTS or "This is the last turn" in texts[-1]
        return Said(block("SUBMIT(answer='a')" if done else f"print('word ' * {1_000 + len(server.requests)})"))

    with (
        serving(ProviderServer(print_much, write)) as server,
        dspy.context(lm=PROVIDERS[provider].lm(server.base)),
    ):
        prediction = RLM("question -> answer", policy=None)(question="?")
    assert prediction.answer == "a"
    assert "folded" in [step["kind"] for step in prediction.trajectory]
