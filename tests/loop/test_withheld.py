"""Replies and prompts that a provider withholds because of their content, and replies in which a model refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from tests.playing import steps_of
from tests.provider_quirks import QUIRKS
from tests.provider_server import PROVIDERS, ProviderServer, Said, serving

if TYPE_CHECKING:
    from tests.provider_quirks import Sent

PRINTS = "Look.\n```python\nprint(context)\n```"
COUNTS = "Count.\n```python\nprint(context.count('x'))\n```"
SUBMITS = "```python\nSUBMIT(answer='two')\n```"

BLOCKED: dict[str, tuple[str, Sent]] = {
    "Azure, https://learn.microsoft.com/en-us/azure/ai-foundry/openai/concepts/content-filter": (
        "OpenAI",
        (
            400,
            {
                "error": {
                    "message": "The response was filtered due to the prompt triggering Azure OpenAI's content "
                    "management policy. Please modify your prompt and retry.",
                    "param": "prompt",
                    "code": "content_filter",
                }
            },
        ),
    ),
    "Gemini, https://ai.google.dev/api/generate-content#PromptFeedback": (
        "Gemini",
        (200, {"promptFeedback": {"blockReason": "SAFETY"}}),
    ),
    "OpenRouter, https://openrouter.ai/docs/api-reference/errors": (
        "OpenRouter",
        (403, {"error": {"code": 403, "message": "Your model requires moderation and your input was flagged"}}),
    ),
    "DeepSeek, https://github.com/deepseek-ai/awesome-deepseek-integration/issues/13": (
        "DeepSeek",
        (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}),
    ),
}


def run(provider: str, server: ProviderServer) -> dspy.Prediction:
    lm = PROVIDERS[provider].lm(server.base)
    rlm = RLM("context -> answer", limits=Limits(max_iters=6), interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=lm):
        prediction: dspy.Prediction = rlm(context="xx forbidden words")
    return prediction


@pytest.mark.parametrize("case", BLOCKED)
def test_an_output_that_a_filter_blocks_is_hidden_from_the_model_and_kept_in_the_trajectory(case: str) -> None:
    provider, refused = BLOCKED[case]
    write = PROVIDERS[provider].write

    def say(texts: list[str]) -> Said:
        told = "\n".join(texts)
        return Said(SUBMITS if "\n2" in told else COUNTS if "blocks this output" in told else PRINTS)

    def answer(said: Said, body: dict[str, object]) -> Sent:
        is_blocked = str(body).count("forbidden words") > 1  # the first message shows the input
        return refused if is_blocked else (200, write(said, body))

    with serving(ProviderServer(say, answer)) as server:
        prediction = run(provider, server)
    assert (prediction.answer, prediction.stop) == ("two", "submitted")
    assert [step["code"] for step in prediction.trajectory][:2] == ["print(context)", "print(context.count('x'))"]
    assert prediction.trajectory[0]["output"].strip() == "xx forbidden words"


@pytest.mark.parametrize("case", BLOCKED)
def test_a_task_that_a_filter_blocks_ends_the_run_with_an_error_that_names_the_fix(case: str) -> None:
    provider, refused = BLOCKED[case]
    server = ProviderServer(lambda _: Said(PRINTS), lambda _said, _body: refused)
    with serving(server), pytest.raises(dspy.LMError, match="change its inputs, or use another model") as caught:
        run(provider, server)
    assert steps_of(caught) == []
    assert len(server.requests) == 1


def test_a_blocked_prompt_of_a_later_turn_keeps_the_trajectory() -> None:
    provider, refused = BLOCKED[next(iter(BLOCKED))]
    write = PROVIDERS[provider].write
    server = ProviderServer(
        lambda _: Said(PRINTS),
        lambda said, body: refused if len(server.requests) > 1 else (200, write(said, body)),
    )
    with serving(server), pytest.raises(dspy.LMError, match="change its inputs") as caught:
        run(provider, server)
    assert [step["code"] for step in steps_of(caught)] == ["print(context)"]


@pytest.mark.parametrize(
    ("provider", "name", "why"),
    [
        ("OpenAI", "a refusal apart from the text", "is a refusal"),
        ("OpenAI Responses", "a refusal in a response", "is a refusal"),
        ("Anthropic", "a refusal", "was cut off by the provider's content filter"),
        ("OpenAI", "a content filter", "was cut off by the provider's content filter"),
        ("vLLM", "choices is empty", "was withheld: its server sent no choices"),
    ],
)
def test_a_reply_that_is_withheld_is_told_with_its_reason(provider: str, name: str, why: str) -> None:
    """Not as an empty reply, nor with the advice to write a shorter one."""
    quirk, write = QUIRKS[name], PROVIDERS[provider].write
    server = ProviderServer(
        lambda texts: Said(SUBMITS),
        lambda said, body: quirk.change(write(said, body), body, len(server.requests) - 1),
    )
    with serving(server):
        prediction = run(provider, server)
    first = prediction.trajectory[0]
    assert f"Your reply {why}. It has no complete code" in first["output"]
    assert "shorter" not in first["output"]
    assert first["reasoning"] == ("I can't help with that." if why == "is a refusal" else "")


def test_a_sub_call_that_only_thinks_fails_with_its_thinking_as_the_part() -> None:
    code = (
        "```python\ntry:\n    llm_query('?')\nexcept SubCallError as error:\n"
        "    SUBMIT(answer=f'{error} {error.partial}')\n```"
    )

    def answer(said: Said, body: dict[str, object]) -> Sent:
        reply = PROVIDERS["vLLM"].write(said, body)
        if not said.text:
            reply["choices"][0]["message"]["reasoning_content"] = "It may be a fox."
        return 200, reply

    with serving(ProviderServer(lambda texts: Said(code if "SUBMIT" in str(texts) else ""), answer)) as server:
        prediction = run("vLLM", server)
    assert prediction.answer.startswith("ReplyCut: The reply holds only thinking and no answer.")
    assert prediction.answer.endswith("It may be a fox.")


def test_a_sub_call_that_is_refused_fails_with_the_words_of_the_refusal() -> None:
    code = (
        "```python\ntry:\n    llm_query('?')\nexcept SubCallError as error:\n"
        "    SUBMIT(answer=f'{error} {error.partial}')\n```"
    )
    change, write = QUIRKS["a refusal apart from the text"].change, PROVIDERS["OpenAI"].write

    def answer(said: Said, body: dict[str, object]) -> Sent:
        return (200, write(said, body)) if said.text else change(write(said, body), body, 0)

    with serving(ProviderServer(lambda texts: Said(code if "SUBMIT" in str(texts) else ""), answer)) as server:
        prediction = run("OpenAI", server)
    assert "ReplyWithheld: The reply is a refusal." in prediction.answer
    assert prediction.answer.endswith("Ask in other words. I can't help with that.")
