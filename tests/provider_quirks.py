"""What servers send in place of what OpenAI's chat completions specify, each with its source."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.provider_streams import DONE, Events, event

Reply = dict[str, Any]
Sent = tuple[int, Reply | str]
Change = Callable[[Reply, Reply, int], Sent]
"""Makes what is sent of a whole reply, the body of the request and its number; the first is 0."""

OPENAI_LIKE = ("LM Studio", "vLLM", "llama.cpp", "OpenRouter")


@dataclass(frozen=True)
class Quirk:
    """A quirk of a server.

    Attributes:
        change: What it makes of a reply.
        source: Where it is documented or was reported.
        providers: Which servers are known for it.
        kinds: How the turns of a run over it end.
        usage: What `prediction.usage` holds then, as far as it is tested.
        retried: Whether a request fails; the client repeats it.
        repeated: Whether it does, or reads what the error holds.
    """

    change: Change
    source: str
    providers: tuple[str, ...] = OPENAI_LIKE
    kinds: tuple[str, ...] = ("output", "submitted")
    usage: dict[str, Any] = field(default_factory=dict)
    retried: bool = False
    repeated: bool = True


def message_of(reply: Reply) -> Reply:
    """Return the message of a reply."""
    message: Reply = reply["choices"][0]["message"]
    return message


def _usage(**usage: Any) -> Change:
    return lambda reply, _body, _number: (200, {**reply, "usage": {**reply["usage"], **usage}})


def _without_usage(reply: Reply, _body: Reply, _number: int) -> Sent:
    return 200, {name: value for name, value in reply.items() if name != "usage"}


def _first(sent: Callable[[Reply], Sent]) -> Change:
    """Change the first reply only."""
    return lambda reply, _body, number: sent(reply) if number == 0 else (200, reply)


def _finish(reason: str | None) -> Change:
    def change(reply: Reply, _body: Reply, _number: int) -> Sent:
        reply["choices"][0]["finish_reason"] = reason
        return 200, reply

    return change


def _message(**fields: Any) -> Callable[[Reply], Sent]:
    def change(reply: Reply) -> Sent:
        message_of(reply).update(fields)
        return 200, reply

    return change


def _as_tool_call(reply: Reply, _body: Reply, _number: int) -> Sent:
    _, fence, rest = message_of(reply)["content"].partition("```python\n")
    if fence:
        arguments = json.dumps({"code": rest.removesuffix("\n```")})
        call = {"id": "c1", "type": "function", "function": {"name": "python", "arguments": arguments}}
        message_of(reply).update(content=None, tool_calls=[call])
        reply["choices"][0]["finish_reason"] = "tool_calls"
    return 200, reply


def _taken_for_thinking(reply: Reply, _body: Reply, number: int) -> Sent:
    if "```" in message_of(reply)["content"]:
        message_of(reply).update(content="", reasoning_content=message_of(reply)["content"])
    return 200, reply


def _no_system_role(error: str | Reply) -> Change:
    def change(reply: Reply, body: Reply, _number: int) -> Sent:
        if any(message["role"] == "system" for message in body["messages"]):
            return 400, {"error": error}
        return 200, reply

    return change


def _in_parts(reply: Reply, _body: Reply, _number: int) -> Sent:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "a thought"}]}
    message_of(reply)["content"] = [thought, {"type": "text", "text": message_of(reply)["content"]}]
    return 200, reply


def _refused(status: int, body: Reply) -> Change:
    """Refuse the first request."""
    return _first(lambda _reply: (status, body))


def _failed_generation(written: Callable[[str], str]) -> Change:
    def change(reply: Reply) -> Sent:
        failed = {"code": "tool_use_failed", "failed_generation": written(message_of(reply)["content"])}
        told = {"message": "Failed to call a function.", "type": "invalid_request_error"}
        return 400, {"error": {**told, **failed}}

    return _first(change)


def _as_json_call(text: str) -> str:
    code = text.partition("```python\n")[2].removesuffix("\n```")
    return json.dumps({"name": "repo_browser.exec", "arguments": {"code": code}})


def _with_candidate(**fields: Any) -> Change:
    return _first(lambda reply: (200, {**reply, "candidates": [{"index": 0, **fields}]}))


def _malformed_call(reply: Reply) -> Sent:
    code = reply["candidates"][0]["content"]["parts"][-1]["text"].partition("```python\n")[2].removesuffix("\n```")
    told = {"finishReason": "MALFORMED_FUNCTION_CALL", "finishMessage": f"Malformed function call: {code}"}
    return 200, {**reply, "candidates": [{"index": 0, "content": {}, **told}]}


def _with_finish(reason: str, **fields: Any) -> Change:
    """Send the first reply with a finish reason and changed fields."""
    return _first(lambda reply: (_finish(reason)(reply, {}, 0), _message(**fields)(reply))[1])


def _refused_response(reply: Reply) -> Sent:
    reply["output"][-1]["content"] = [{"type": "refusal", "refusal": "I can't help with that."}]
    return 200, reply


def _two_choices(reply: Reply, _body: Reply, _number: int) -> Sent:
    empty = {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "stop"}
    return 200, {**reply, "choices": [empty, {**reply["choices"][0], "index": 1}]}


def _renamed_thinking(reply: Reply, _body: Reply, _number: int) -> Sent:
    message = message_of(reply)
    message["reasoning"] = message.pop("reasoning_content", None)
    return 200, reply


def _strict_about_messages(reply: Reply, body: Reply, _number: int) -> Sent:
    """Refuse thinking that is sent back, and roles in another order than the templates of models take."""
    roles = [message["role"] for message in body["messages"]]
    turns = roles[1:] if roles[0] == "system" else roles
    if any(message.get("reasoning_content") or message.get("reasoning") for message in body["messages"]):
        return 400, {"error": {"message": "The reasoning_content should not be in the messages"}}
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        return 400, {"error": {"message": "Expected last role User or Tool, roles in turn", "code": "3230"}}
    return 200, reply


NOT_READY = {
    "a model that was unloaded": (
        400,
        "Model unloaded.",
        "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/914",
    ),
    "a model that crashed": (
        400,
        "The model has crashed without additional information. (Exit code: null)",
        "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/1347",
    ),
    "a channel error": (400, "Channel Error", "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/1347"),
}

QUIRKS = {
    **{
        name: Quirk(_refused(status, {"error": told}), source, providers=("LM Studio", "vLLM"), retried=True)
        for name, (status, told, source) in NOT_READY.items()
    },
    "an error as text in a reply": Quirk(
        _refused(200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}),
        "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/619",
        providers=("vLLM", "llama.cpp"),
        retried=True,
    ),
    "the block in the error of a tool call": Quirk(
        _failed_generation(lambda text: text),
        "https://console.groq.com/docs/tool-use, https://github.com/groq/groq-typescript/issues/28",
        providers=("Groq", "Groq by litellm"),
        retried=True,
        repeated=False,
    ),
    "a tool call nobody offered, in an error": Quirk(
        _failed_generation(_as_json_call),
        "https://github.com/BerriAI/litellm/issues/21242, https://github.com/OpenHands/OpenHands/issues/11725",
        providers=("Groq", "Groq by litellm"),
        retried=True,
        repeated=False,
    ),
    "the code as a malformed call": Quirk(
        _first(_malformed_call),
        "https://github.com/UKGovernmentBEIS/inspect_ai/pull/2990",
        providers=("Gemini",),
        retried=True,
        repeated=False,
    ),
    "a candidate that is withheld": Quirk(
        _with_candidate(finishReason="SAFETY", safetyRatings=[]),
        "https://ai.google.dev/api/generate-content#FinishReason",
        providers=("Gemini",),
        kinds=("no_code", "output", "submitted"),
        retried=True,
        repeated=False,
    ),
    "a tool call that nobody offered": Quirk(
        _with_candidate(finishReason="UNEXPECTED_TOOL_CALL"),
        "https://ai.google.dev/api/generate-content#FinishReason",
        providers=("Gemini",),
        kinds=("no_code", "output", "submitted"),
        retried=True,
        repeated=False,
    ),
    "a malformed reply that is not sent": Quirk(
        _with_candidate(finishReason="MALFORMED_RESPONSE", content={}),
        "https://ai.google.dev/api/generate-content#FinishReason",
        providers=("Gemini",),
        kinds=("no_code", "output", "submitted"),
        retried=True,
        repeated=False,
    ),
    "only thinking until the limit": Quirk(
        _with_candidate(finishReason="MAX_TOKENS", content={"role": "model"}),
        "https://github.com/googleapis/python-genai/issues/782",
        providers=("Gemini",),
        kinds=("no_code", "output", "submitted"),
    ),
    "the provider is overloaded": Quirk(
        _refused(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        "https://docs.anthropic.com/en/api/errors",
        providers=("Anthropic",),
        retried=True,
    ),
    "a refusal": Quirk(
        _first(lambda reply: (200, {**reply, "content": [], "stop_reason": "refusal"})),
        "https://docs.anthropic.com/en/docs/test-and-evaluate/strengthen-guardrails/handle-streaming-refusals",
        providers=("Anthropic",),
        kinds=("no_code", "output", "submitted"),
    ),
    "throttled": Quirk(
        _refused(400, {"__type": "ThrottlingException", "message": "Too many tokens, please wait."}),
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html",
        providers=("Bedrock",),
        retried=True,
    ),
    "a model that is not ready": Quirk(
        _refused(424, {"message": "The model is not ready for inference"}),
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html",
        providers=("Bedrock",),
        retried=True,
    ),
    "a guardrail": Quirk(
        _first(lambda reply: (200, {**reply, "stopReason": "guardrail_intervened"})),
        "https://docs.aws.amazon.com/bedrock/latest/userguide/guardrails-use-converse-api.html",
        providers=("Bedrock",),
    ),
    "a content filter": Quirk(
        _with_finish("content_filter", content=""),
        "https://learn.microsoft.com/en-us/azure/ai-foundry/openai/concepts/content-filter",
        providers=("Azure", "OpenAI"),
        kinds=("no_code", "output", "submitted"),
    ),
    "a refusal apart from the text": Quirk(
        _first(_message(content=None, refusal="I can't help with that.")),
        "https://platform.openai.com/docs/guides/structured-outputs#refusals",
        providers=("OpenAI", "Azure", "vLLM", "Groq by litellm"),
        kinds=("no_code", "output", "submitted"),
    ),
    "a refusal in a response": Quirk(
        _first(_refused_response),
        "https://platform.openai.com/docs/guides/structured-outputs#refusals",
        providers=("OpenAI Responses",),
        kinds=("no_code", "output", "submitted"),
    ),
    "two choices": Quirk(
        _two_choices,
        "https://github.com/ericc-ch/copilot-api/pull/81 (GitHub Copilot)",
        providers=("vLLM", "LM Studio", "Azure", "OpenRouter"),
    ),
    "a lock that timed out": Quirk(
        _refused(409, {"error": {"message": "The request conflicted with another one."}}),
        "https://github.com/openai/openai-python, _base_client.py: _should_retry",
        providers=("OpenAI", "vLLM", "Anthropic"),
        retried=True,
    ),
    "out of resources": Quirk(
        _with_finish("insufficient_system_resource", content="", reasoning_content=None),
        "https://api-docs.deepseek.com/api/create-chat-completion",
        providers=("DeepSeek",),
        kinds=("no_code", "output", "submitted"),
    ),
    "no capacity": Quirk(
        _refused(
            429, {"object": "error", "message": "Service tier capacity exceeded for this model.", "code": "3505"}
        ),
        "https://github.com/mistralai/client-python/issues/135",
        providers=("Mistral",),
        retried=True,
    ),
    "a runner that terminated": Quirk(
        _refused(500, {"error": {"message": "llama runner process has terminated: exit status 2"}}),
        "https://github.com/ollama/ollama/issues/7318",
        providers=("Ollama",),
        retried=True,
    ),
    "a failed response": Quirk(
        _first(
            lambda reply: (200, {**reply, "status": "failed", "error": {"code": "server_error"}, "output": []})
        ),
        "https://platform.openai.com/docs/api-reference/responses/object",
        providers=("OpenAI Responses",),
        retried=True,
    ),
    "thinking in `reasoning`": Quirk(
        _renamed_thinking, "https://docs.vllm.ai/en/latest/features/reasoning_outputs.html", providers=("vLLM",)
    ),
    "no thinking taken back, roles in turn": Quirk(
        _strict_about_messages,
        "https://api-docs.deepseek.com/guides/reasoning_model, https://docs.mistral.ai/api (code 3230)",
        providers=("DeepSeek", "Mistral", "vLLM", "LM Studio"),
    ),
    "no usage": Quirk(
        _without_usage, "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/547", usage={"input_tokens": 0}
    ),
    "usage is null": Quirk(
        _usage(prompt_tokens=None, completion_tokens=None, total_tokens=None),
        "https://github.com/ollama/ollama/issues/2068",
        usage={"input_tokens": 0},
    ),
    "usage is 0": Quirk(
        _usage(prompt_tokens=0, completion_tokens=0, total_tokens=0),
        "https://github.com/ollama/ollama/issues/3427",
        usage={"input_tokens": 0, "calls": 3},
    ),
    "cost in the reply": Quirk(
        _usage(cost=0.5), "https://openrouter.ai/docs/use-cases/usage-accounting", usage={"cost": 1.5}
    ),
    "cached tokens": Quirk(
        _usage(prompt_tokens_details={"cached_tokens": 60}),
        "https://openrouter.ai/docs/use-cases/usage-accounting",
        usage={"input_tokens": 300, "cached_input_tokens": 180},
    ),
    "finish reason eos": Quirk(_finish("eos"), "https://github.com/vibrantlabsai/ragas/issues/1548"),
    "finish reason eos_token": Quirk(
        _finish("eos_token"), "https://github.com/huggingface/text-generation-inference/pull/2344"
    ),
    "finish reason is empty": Quirk(_finish(""), "https://github.com/dstackai/dstack/pull/2229"),
    "finish reason is null": Quirk(_finish(None), "https://github.com/openai/openai-openapi/pull/100"),
    "content is empty, the thinking is not": Quirk(
        _first(_message(content="", reasoning_content="a long thought")),
        "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/1602",
        kinds=("no_code", "output", "submitted"),
    ),
    "the whole reply taken for thinking": Quirk(
        _taken_for_thinking, "https://github.com/vllm-project/vllm/issues/17357, sgl-project/sglang/issues/37645"
    ),
    "a tool call in place of a block": Quirk(
        _as_tool_call, "https://github.com/BerriAI/litellm/issues/21242 (gpt-oss calls tools nobody offered)"
    ),
    "choices is empty": Quirk(
        _first(lambda reply: (200, {**reply, "choices": []})),
        "https://github.com/keephq/keep/pull/6705 (Azure's content filter)",
        kinds=("no_code", "output", "submitted"),
    ),
    "200 with an error inside": Quirk(
        _first(lambda _reply: (200, {"error": {"code": 429, "message": "Rate limited upstream"}})),
        "https://github.com/xyOz-dev/Saturn/pull/43",
        providers=("OpenRouter", "LM Studio"),
        retried=True,
    ),
    "an error inside the choice": Quirk(
        _first(lambda reply: (_finish("error")(reply, {}, 0), _message(content="")(reply))[1]),
        "https://github.com/pydantic/pydantic-ai/issues/2844",
        providers=("OpenRouter",),
        kinds=("no_code", "output", "submitted"),
    ),
    "the model is still loading": Quirk(
        _first(lambda _reply: (503, {"error": {"message": "Loading model", "type": "unavailable_error"}})),
        "llama.cpp, tools/server/README.md, GET /health",
        providers=("llama.cpp", "LM Studio"),
        retried=True,
    ),
    "empty lines before the reply": Quirk(
        lambda reply, _body, _number: (200, "\n\n\n" + json.dumps(reply)),
        "https://api-docs.deepseek.com/quick_start/rate_limit",
        providers=("DeepSeek",),
    ),
    "content in parts": Quirk(
        _in_parts,
        "https://github.com/spring-projects/spring-ai/pull/5020",
        providers=("Mistral",),
    ),
    "no system role, vLLM": Quirk(
        _no_system_role({"message": "System role not supported", "type": "BadRequestError", "code": 400}),
        "https://github.com/vllm-project/vllm/pull/2964",
        providers=("vLLM", "OpenRouter"),
    ),
    "no system role, LM Studio": Quirk(
        _no_system_role('Error rendering prompt with jinja template: "System role not supported".'),
        "https://github.com/nomic-ai/gpt4all/issues/3282 (the template of Gemma 2)",
        providers=("LM Studio",),
    ),
    "no system role, roles must alternate": Quirk(
        _no_system_role({"message": "Conversation roles must alternate user/assistant/user/assistant/..."}),
        "https://github.com/microsoft/autogen/issues/1037",
        providers=("vLLM", "llama.cpp"),
    ),
}


@dataclass(frozen=True)
class StreamQuirk:
    """A quirk of a server that shows in its streams only.

    Attributes:
        change: What it makes of the events of a stream and the number of its request; the first is 0.
        source: Where it is documented or was reported.
        providers: Which servers are known for it.
        kinds: How the turns of a run over it end.
        usage: What `prediction.usage` holds then, as far as it is tested.
    """

    change: Callable[[Events, int], Events]
    source: str
    providers: tuple[str, ...] = ("vLLM", "Azure")
    kinds: tuple[str, ...] = ("output", "submitted")
    usage: dict[str, Any] = field(default_factory=dict)


def _behind_each(added: bytes) -> Callable[[Events, int], Events]:
    return lambda events, _number: [each for each_event in events for each in (added, each_event)]


def _first_stream(change: Callable[[Events], Events]) -> Callable[[Events, int], Events]:
    return lambda events, number: change(events) if number == 0 else events


def _chunk(delta: Reply, finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return event({**head, "choices": choices, **more})


SERVER_ERROR = event({"error": {"message": "The server had an error", "type": "server_error", "code": 500}})
_OVERLOADED = event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "error")
_FAILED = event({"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "error": {}}})
_DISCONNECTED = _chunk({"content": ""}, "error", error={"code": 502, "message": "Provider disconnected"})
_WITHOUT_CHOICES = event({"id": "", "object": "", "created": 0, "model": "", "choices": []})

STREAM_QUIRKS = {
    "no usage": StreamQuirk(
        lambda events, _number: [each for each in events if b'"usage"' not in each],
        "https://github.com/abetlen/llama-cpp-python/issues/1640",
        providers=("vLLM",),  # LiteLLM, behind Azure here, estimates it from 1.110 on
        usage={"input_tokens": 0, "calls": 3},
    ),
    "no [DONE]": StreamQuirk(
        lambda events, _number: [each for each in events if each != DONE],
        "https://github.com/ikawrakow/ik_llama.cpp/issues/467",
        usage={"input_tokens": 300},
    ),
    "no finish reason": StreamQuirk(
        lambda events, _number: [each for each in events if b'"finish_reason": "stop"' not in each],
        "https://github.com/anomalyco/opencode/issues/43882",
        providers=("vLLM",),  # LiteLLM takes such a stream for a broken one from 1.110 on
        usage={"input_tokens": 300},
    ),
    "empty deltas": StreamQuirk(_behind_each(_chunk({})), "https://github.com/microsoft/autogen/issues/6465"),
    "deltas without content": StreamQuirk(
        _behind_each(_chunk({"role": "assistant", "content": None})),
        "https://docs.inworld.ai/router/capabilities/streaming",
    ),
    "comments": StreamQuirk(
        _behind_each(b": OPENROUTER PROCESSING\n\n"),
        "https://openrouter.ai/docs/api-reference/streaming, https://api-docs.deepseek.com/quick_start/rate_limit",
        providers=("OpenRouter", "DeepSeek"),
    ),
    "no choices in the first event": StreamQuirk(
        lambda events, _number: [_WITHOUT_CHOICES, *events],
        "https://github.com/langfuse/langfuse/issues/2833 (Azure's content filter)",
        providers=("Azure", "vLLM"),
    ),
    "an error before the first text": StreamQuirk(
        _first_stream(lambda _: [SERVER_ERROR]),
        "https://github.com/anomalyco/opencode/pull/40061",
        usage={"failures": 1, "calls": 4},
    ),
    "an error behind some text": StreamQuirk(
        _first_stream(lambda events: [*events[:5], SERVER_ERROR]),
        "https://docs.inworld.ai/router/capabilities/streaming",
        usage={"failures": 1, "calls": 4},
    ),
    "disconnected behind some text": StreamQuirk(
        _first_stream(lambda events: [*events[:6], _DISCONNECTED]),
        "https://openrouter.ai/docs/api-reference/streaming",
        providers=("OpenRouter",),
    ),
    "ended in the middle": StreamQuirk(
        _first_stream(lambda events: events[: len(events) // 2]),
        "https://github.com/can1357/oh-my-pi/issues/9433",
        providers=("vLLM", "OpenAI Responses", "Anthropic", "Gemini"),
        usage={"failures": 1, "calls": 4},
    ),
    "ended within its first event": StreamQuirk(
        _first_stream(lambda events: [events[0][:-20]]),
        "https://github.com/can1357/oh-my-pi/issues/9433",
        providers=("vLLM", "OpenAI", "Anthropic", "Gemini"),
        usage={"failures": 1, "calls": 4},
    ),
    "ended within a later event": StreamQuirk(
        _first_stream(lambda events: [*events[:5], events[5][:-20]]),
        "https://github.com/can1357/oh-my-pi/issues/9433",
        providers=("vLLM", "OpenAI", "Anthropic"),
        usage={"failures": 1, "calls": 4},
    ),
    "overloaded before the first text": StreamQuirk(
        _first_stream(lambda events: [events[0], _OVERLOADED]),
        "https://github.com/docker/docker-agent/pull/2880",
        providers=("Anthropic",),
        usage={"failures": 1, "calls": 4},
    ),
    "failed before the first text": StreamQuirk(
        _first_stream(lambda events: [events[0], _FAILED]),
        "https://platform.openai.com/docs/api-reference/responses-streaming/response/failed",
        providers=("OpenAI Responses",),
        usage={"failures": 1, "calls": 4},
    ),
}
