"""Recognizes context-window errors in the error messages of different servers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import dspy
from dspy.lm15 import Request

from rlm_dspy.budget.lm_info import REPLY_LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.budget.max_reply_tokens import LMCall

_N = r"([\d,]+)"
_WORDINGS = (
    r"context[_ ]?(?:length|window|size|limit)",  # most servers, in a sentence or as a code
    r"(?:prompt|input|request)[_ ](?:is )?too[_ ](?:long|large)",  # Anthropic, Bedrock, Fireworks, Ollama
    r"too many (?:input )?tokens",  # Bedrock, Cohere
    # Gemini, SiliconFlow, watsonx, TensorRT-LLM
    r"(?<!\w)(?:prompt|input)(?:[ (]+(?:tokens?|length|size|count|of|has|have|cannot|[\d,]+)\)?)* exceed",
    r"exceed\w* (?:the )?(?:model token limit|max(?:imum)? context)",  # Moonshot, Ollama, MLX servers
    r"request exceeds the maximum (?:size|allowed number of bytes)",  # Anthropic
    r"(?:longer|greater) than the (?:model'?s )?(?:maximum )?model length",  # vLLM
    r"maximum prompt length is|prompt exceeds (?:the )?(?:max(?:imum)? )?length",  # xAI, z.ai
    r"reduce the length of (?:the |your )?(?:messages|prompt|input)",  # Groq, vLLM, Azure
    r"messages\[\d+\]\.content': string too long",  # OpenAI
    r"greater than max_(?:seq|model)_len|max_prompt_tokens_exceeded",  # TabbyAPI, vLLM, GitHub Copilot
    r"truncate prompt with n_keep|trying to keep the first [\d,]+ tokens",  # LM Studio
    r"current length is [\d,]+ while limit is",  # Cerebras
    r"`inputs` (?:tokens \+ `max_new_tokens` must be|must have less than)",  # TGI
    r"range of input length should be",  # DashScope
    r"max_tokens must be at least 1, got -",  # vLLM: the prompt alone is longer than the window
    r"超长|超过最大长度|超出最大长度",  # Zhipu, Qwen
)
"""Error messages, each with some of the servers that use them."""
_TOO_LONG = re.compile("|".join(_WORDINGS), re.IGNORECASE)
_OTHERS = re.compile(
    r"rate[ _-]?limit|code: 429|too many requests|per[ -](?:minute|min\b|day|hour)|\bTPM\b|quota|throttl"
    r"|overloaded|maximum allowed number of output tokens|completion tokens, whereas|valid range of max_tokens"
    r"|max_(?:completion_|output_)?tokens['`\"]? must be less than|maximum tokens you requested",
    re.IGNORECASE,
)
"""Errors that mention lengths or tokens, but need another remedy."""
_BEYOND_A_RATE = re.compile(rf"request too large.*?limit:? {_N}.*?requested:? {_N}", re.IGNORECASE | re.DOTALL)
"""A request larger than the whole rate limit (Groq, OpenAI): waiting never helps."""
_WINDOWS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"max(?:imum)? context (?:length|limit|window|size)(?: is| of|:)?\s*\(?{_N}",
        rf"{_N} maximum context length",
        rf"context (?:length|size|window|limit)(?: is| of)?(?: only)?\s*\(?{_N}",
        rf"max(?:imum)? (?:\w+ ){{0,3}}length(?: is| of|:)?\s*\(?{_N}",
        rf"window of \S+ is {_N}",
        rf"(?:n_ctx|max_seq_len|max_model_len|max_prompt_tokens)[ \"=:(]*{_N}",
        rf"tokens > {_N} maximum",
        rf"\d \+ \d[\d,]* > {_N}",
        rf"tokens allowed \({_N}\)",
        rf"(?:must be <=|must have less than) {_N}",
        rf"(?:configured|the|total tokens|token|while) limit(?: of|:| is)? {_N}",
        rf"max input tokens: {_N}",
        rf"should be \[\d+, {_N}\]",
    )
)
_READ = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_N} (?:tokens )?(?:in|from) (?:the|your) (?:input )?(?:messages|prompt)",
        rf"request has {_N} input tokens",
        rf"prompt contains {_N} (?:input )?tokens",
        rf"passed {_N} input tokens",
        rf"resulted in {_N} tokens",
        rf"{_N} \+ \d[\d,]* > ",
        rf"given: {_N} `inputs` tokens",
        rf"request length {_N} \+ ",
    )
)
_FEWEST_TOKENS = 256
"""A smaller number in an error is not a window."""
_WORDLESS = re.compile(
    r"(?:litellm\.\w+: )*(?:\w+Exception -\s*)?"
    r"(?:provider returned error|bad request|http \d+|error code: \d+)?\W*(?:\d+)?\W*",
    re.IGNORECASE,
)
_STATUS_TOO_LARGE = 413
_LEAST_WINDOW_SHARE, _USUAL_WINDOW_SHARE = 8, 4
"""With less than the first part of the window for its reply, messages are too long; the second is a guess."""
_MARGIN_TOKENS = 16
_REFUSED = (400, 413, 422)


@dataclass(frozen=True)
class Sizes:
    """The sizes that a context-window error states, in tokens; None for those it does not.

    Attributes:
        window: The context window of the model.
        read: The size of the messages.
    """

    window: int | None = None
    read: int | None = None


def window_error(model: str, read: int) -> dspy.ContextWindowExceededError:
    """Return the error of a server that answered nothing, as `read` tokens of messages filled its window."""
    message = (
        f"No room for a reply behind {read} tokens in the messages: the maximum context length is {read} or less."
    )
    return dspy.ContextWindowExceededError(model=model, message=message)


def as_window_error(error: Exception) -> Exception:
    """Return an LM's error, as DSPy's context-window error if the request is too long.

    Args:
        error: The exception of an LM: an error of DSPy, or of a custom LM's client. Servers word it in some fifty
            ways, most of them without a code.
    """
    if isinstance(error, dspy.ContextWindowExceededError) or not _says_so(error):
        return error
    same = ("model", "provider", "provider_code", "status", "request_id")
    details = {name: getattr(error, name, None) for name in same} if isinstance(error, dspy.LMError) else {}
    refusal: Exception = dspy.ContextWindowExceededError(message=_words(error), **details)
    return refusal


def is_too_long(error: dspy.LMError) -> bool:
    """Whether an LM's error in a `metered` scope means, or may mean, that the request is too long.

    It may be if the server gave no reason: some reject long requests this way, and DSPy drops a body without an
    `error`.
    """
    if isinstance(error, dspy.ContextWindowExceededError):
        return True
    return getattr(error, "status", None) in _REFUSED and _WORDLESS.fullmatch(error.message.strip()) is not None


def sizes_of(error: dspy.LMError) -> Sizes:
    """Return the sizes that a context-window error states."""
    text = error.message
    window = next((n for n in _numbers(_WINDOWS, text) if n >= _FEWEST_TOKENS), None)
    return Sizes(window, next(_numbers(_READ, text), None))


def shorter_reply(lm: dspy.BaseLM, call: LMCall, sizes: Sizes) -> LMCall | None:
    """Return a call with a reply short enough to fit after its messages; None if none fits.

    Many servers count the maximum reply of a request as part of its length.

    Args:
        lm: The LM that rejected the call.
        call: The rejected call.
        sizes: The sizes in the error.
    """
    limits = ((name, {**lm.kwargs, **call.options}.get(name)) for name in REPLY_LIMITS)
    name, wanted = next(((name, limit) for name, limit in limits if limit), ("", 0))
    if not name or sizes.window is None or isinstance(call.prompt, Request):
        return None
    room = sizes.window // _USUAL_WINDOW_SHARE
    if sizes.read is not None:
        room = sizes.window - sizes.read - _MARGIN_TOKENS
    fits = min(wanted, sizes.window // _LEAST_WINDOW_SHARE) <= room < wanted
    return replace(call, options={**call.options, name: room}) if fits else None


def _words(error: Exception) -> str:
    return str(error.message if isinstance(error, dspy.LMError) else error)


def _says_so(error: Exception) -> bool:
    if isinstance(error, dspy.LMAuthError | dspy.LMBillingError):
        return False
    text = f"{_words(error)} {getattr(error, 'provider_code', None) or ''}"
    if beyond := _BEYOND_A_RATE.search(text):
        limit, requested = map(_number, beyond.groups())
        return requested > limit
    if isinstance(error, dspy.LMRateLimitError) or _OTHERS.search(text):
        return False
    return getattr(error, "status", None) == _STATUS_TOO_LARGE or _TOO_LONG.search(text) is not None


def _numbers(patterns: tuple[re.Pattern[str], ...], text: str) -> Iterator[int]:
    for pattern in patterns:
        if (found := pattern.search(text)) and found[1]:
            yield _number(found[1])


def _number(text: str) -> int:
    return int(text.replace(",", "") or 0)
