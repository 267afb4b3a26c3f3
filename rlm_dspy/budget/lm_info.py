"""Looks up an LM's context window, longest reply and price; reads the texts, usage and cost of its replies."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import dspy
from dspy.lm15 import Response

from rlm_dspy._dspy_compat import is_routed, model_info, providers_of, rate, value
from rlm_dspy.errors import ReplyCut, ReplyWithheld, UnknownPrice
from rlm_dspy.replies.thinking import MAY_BE_THINKING, split_thinking
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pydantic import JsonValue

    from rlm_dspy.limits import Limits

HistoryEntry = Mapping[str, Any]
"""A request's entry in `lm.history`."""
Outputs: TypeAlias = list[Any] | Response | None
"""The outputs of an LM: a list of texts or dicts with `text`; for a `dspy.lm15.Request` the response."""

_TOKENS_PER_MESSAGE = 16
"""Tokens of a chat template per message, rounded up."""
_MOST_TOKENS = 10**12
"""Maximum of one call; a larger number is not a token count."""
_LEAST_WINDOW = 1_000
"""An empty reply to fewer tokens is cut for another reason than the window."""
_REPORTS_SEARCHED = 32
_SMALL = re.compile(r"[a-z\s]+")
_CUT = frozenset(
    {"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length", "token_limit"}
    | {"model_context_window_exceeded"}
)
"""Finish reasons of truncated replies, in lower case."""
_BROKEN_OFF = frozenset({"error", "abort", "aborted"})
"""Finish reasons of replies that a provider did not end: OpenRouter's, vLLM's and SGLang's."""
_WITHHELD = frozenset({"content_filter", "refusal"})
"""Finish reasons of replies that a provider stopped because of their content."""


class RecordedReply(NamedTuple):
    """A reply that arrived before a run was resumed.

    Attributes:
        outputs: The unchanged outputs of the LM.
        finish: Why the provider ended it; see `LMEvent`.
        used: Its usage.
    """

    outputs: list[Any]
    finish: str
    used: Usage


class RecordedReplies(Protocol):
    """The replies that arrived before a run was resumed."""

    def take(
        self, role: str, model: str, prompt: JsonValue, messages: Sequence[Mapping[str, Any]] | None
    ) -> RecordedReply | None:
        """Return the reply to a request, once; None if there is none."""


@dataclass(frozen=True)
class Price:
    """USD per token.

    Attributes:
        read: Per input token.
        read_cached: Per cached input token.
        written: Per output token.
        most_read: The maximum per input token, in long requests and when writing to a cache.
        most_written: The maximum per output token.
    """

    read: float
    read_cached: float
    written: float
    most_read: float
    most_written: float

    def of(self, input_tokens: int, cached_input_tokens: int, output_tokens: int) -> float:
        """Return the cost of a call, with some `input_tokens` cached by the provider."""
        cached = min(cached_input_tokens, input_tokens)
        return (input_tokens - cached) * self.read + cached * self.read_cached + output_tokens * self.written

    def at_most(self, input_tokens: float, output_tokens: float) -> float:
        """Return the maximum cost of a call."""
        return input_tokens * self.most_read + output_tokens * self.most_written


def price_of(lm: dspy.BaseLM, prices: Mapping[str, tuple[float, float]]) -> Price | None:
    """Return the price of an LM: the known one, else the given one; None if there is neither.

    Known prices are those of litellm's table, which DSPy uses too.

    Args:
        lm: Any DSPy LM.
        prices: USD per million input and output tokens, by `lm.model`.
    """
    info = _info(lm)
    read, written = rate(info, "input_cost_per_token"), rate(info, "output_cost_per_token")
    if read is not None and written is not None:
        cached = rate(info, "cache_read_input_token_cost")
        return Price(
            read,
            read if cached is None else cached,
            written,
            max([read, *_rates(info, ("input_cost_per_token_above", "cache_creation_input_token_cost"))]),
            max([written, *_rates(info, ("output_cost_per_token_above", "output_cost_per_reasoning_token"))]),
        )
    if str(getattr(lm, "model", "")) in prices:
        read, written = (usd / 1_000_000 for usd in prices[lm.model])
        return Price(read, read, written, read, written)
    return None


def usage_of(usage: Mapping[str, Any], entry: HistoryEntry, price: Price | None) -> Usage:
    """Return the tokens of a call and its cost: as reported, else by the price; None if neither is known.

    Args:
        usage: The usage from the provider, in OpenAI's field names; may be empty.
        entry: The call's entry in `lm.history`.
        price: The price of the LM, if it is known.
    """
    tokens = tokens_of(usage)
    cost = reported_cost(entry) if usage else None
    if cost is None and usage and price is not None:
        cost = price.of(**tokens)
    return Usage(cost=cost, **tokens)


def reported_cost(entry: HistoryEntry) -> float | None:
    """Return the cost of a call in USD: the provider's, else litellm's or DSPy's; None if none reports one.

    Args:
        entry: The call's entry in `lm.history`.
    """
    usage = entry.get("usage") or {}
    data = getattr(entry.get("response"), "provider_data", None)
    raw = data.get("usage") if isinstance(data, Mapping) else None  # unchanged; DSPy's own engine keeps no more
    priced = next((each for each in (usage, raw) if isinstance(each, Mapping) and "cost" in each), {})
    cost = _dollars(priced.get("cost"))
    if cost is None:
        return _dollars(entry.get("cost"))
    details = priced.get("cost_details")
    upstream = _dollars(details.get("upstream_inference_cost")) if isinstance(details, Mapping) else None
    return cost + (upstream or 0.0) if priced.get("is_byok") else cost  # with the user's own provider key


def reported_price(lm: dspy.BaseLM) -> Price | None:
    """Return an upper bound of an LM's price, from the costs its calls reported; None if none did.

    At most the whole cost of a call was for its input, and at most the whole for its output.
    """
    known = []
    for entry in list(getattr(lm, "history", None) or ())[-_REPORTS_SEARCHED:]:
        usage, cost = entry.get("usage") or {}, reported_cost(entry)
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        counts = [number for number in tokens if isinstance(number, int) and number > 0]
        if cost is not None and len(counts) == len(tokens):
            known.append([cost / count for count in counts])
    if not known:
        return None
    read, written = (min(rates) for rates in zip(*known, strict=True))
    return Price(read, read, written, read, written)


def check_price(lm: dspy.BaseLM, limits: Limits) -> Price | None:
    """Return the price of an LM; None if it is unknown and not needed.

    With a cost limit, the price of an unknown model is bounded by the costs of its calls so far.

    Raises:
        UnknownPrice: If the cost is limited and the price is not known.
    """
    price = price_of(lm, limits.prices)
    if price is None and limits.max_cost is not None:
        price = reported_price(lm)
    if price is None and limits.max_cost is not None:
        raise UnknownPrice(
            f"max_cost is set, but the price of {lm.model!r} is not known. Give it in USD per million tokens read "
            f"and written, e.g. Limits(max_cost=1.0, prices={{{lm.model!r}: (0.25, 2.0)}}); or call the LM once "
            "before, if its replies tell what they cost.",
            "max_cost",
        )
    return price


def _dollars(value: JsonValue) -> float | None:
    """Return a valid cost; None for text, negative numbers and NaN."""
    if isinstance(value, Mapping):
        value = value.get("total_cost")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def context_window(lm: dspy.BaseLM) -> int | None:
    """Return an LM's context window in tokens; None if it is not known."""
    own: int | None = getattr(lm, "context_window", None)
    return own if own is not None else _info(lm).get("max_input_tokens")


def caches_prompts(lm: dspy.BaseLM) -> bool:
    """Whether the model is known to cache prompts."""
    return _table(lm.model.replace("/converse/", "/")).get("supports_prompt_caching") is True


def text_of(outputs: Any) -> str:
    """Return the text of an LM's outputs; empty if there is none."""
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    text = first.get("text") if isinstance(first, dict) else first
    return text if isinstance(text, str) else ""


def only_thinking_of(outputs: Outputs) -> str:
    """Return what the model thought, told apart by its server, if its reply holds nothing else."""
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    return str(first.get("reasoning_content") or "") if isinstance(first, dict) and not text_of(outputs) else ""


def filled_window(outputs: Outputs, entry: HistoryEntry) -> int:
    """Return the tokens of a prompt that left no room for a reply, so that the reply is empty; else 0.

    Some servers reply like this where others reject the request. It is detected only if usage is reported.
    """
    usage = entry.get("usage") or {}
    read, written = count_of(usage.get("prompt_tokens")), usage.get("completion_tokens")
    is_empty = isinstance(outputs, list) and not text_of(outputs) and not only_thinking_of(outputs)
    cut = is_empty and written == 0 and set(finish_reasons(entry.get("response"))) & _CUT
    return read if cut and read is not None and read >= _LEAST_WINDOW else 0


def readable(outputs: Outputs, entry: HistoryEntry, lm: dspy.BaseLM) -> Outputs:
    """Return an LM's outputs without the thinking in their texts.

    Args:
        outputs: The outputs of the LM.
        entry: The call's entry in `lm.history`.
        lm: The LM.

    Raises:
        ReplyCut: If one of them was truncated.
        ReplyWithheld: If the model refused, or its provider withheld the reply.
    """
    if not isinstance(outputs, list):  # the response of an explicit request
        return outputs
    callers = dspy.settings.caller_modules  # tags named like the predictor's fields are not thinking
    fields = callers[-1].signature.output_fields if callers and isinstance(callers[-1], dspy.Predict) else ()
    outputs = [
        {**each, "text": _answer(each.get("text"), fields)} if isinstance(each, dict) else _answer(each, fields)
        for each in outputs
    ]
    if not text_of(outputs):  # several choices that nobody asked for, of which the first may be empty
        outputs = [each for each in outputs if text_of([each])] or outputs
    response = entry.get("response")
    reasons = set(finish_reasons(response))
    if words := "" if text_of(outputs) else _refusal(response):
        raise ReplyWithheld("is a refusal", words)
    if reasons & _WITHHELD:
        raise ReplyWithheld("was cut off by the provider's content filter", text_of(outputs))
    bodies = (response, value(response, "provider_data"))  # of a stream its last chunk, which has the usage alone
    lacks = [] in (value(body, "choices") for body in bodies if value(body, "object") != "chat.completion.chunk")
    if not text_of(outputs) and lacks:
        raise ReplyWithheld("was withheld: its server sent no choices", "")
    if reasons & _BROKEN_OFF:
        raise ReplyCut("was broken off by its provider", text_of(outputs), too_long=False)
    if reasons & _CUT:
        tokens = entry["usage"].get("completion_tokens") or longest_reply(lm)
        raise ReplyCut(f"was cut off after {tokens:,} tokens" if tokens else "was cut off", text_of(outputs))
    return outputs


def _answer(text: Any, fields: Collection[str]) -> Any:
    is_plain = not isinstance(text, str) or MAY_BE_THINKING.search(text) is None
    return text if is_plain else split_thinking(text, fields=fields)[1]


def finish_reasons(response: Any) -> list[str]:
    """Return the finish reasons of a provider's replies in lower case, in its own and in DSPy's terms.

    Args:
        response: What DSPy keeps of a request in the history of an LM: a `Response`, several, or what OpenAI's
            client gives.
    """
    if isinstance(response, tuple):
        return [reason for part in response for reason in finish_reasons(part)]
    of_whole = [value(response, "finish_reason"), value(value(response, "incomplete_details"), "reason")]
    choices = value(response, "choices") or ()
    of_choices = [value(choice, "finish_reason") for choice in choices]
    of_choices += [value(value(choice, "provider_specific_fields"), "native_finish_reason") for choice in choices]
    as_sent = value(response, "provider_data")  # names unknown to DSPy are only there
    found = [str(reason).lower() for reason in (*of_whole, *of_choices) if reason]
    return found + (finish_reasons(as_sent) if as_sent else [])


def _refusal(response: Any) -> str:
    """Return the words with which the model refused, if its provider tells them apart from its text."""
    parts = value(value(response, "message"), "parts") or ()
    found = [value(part, "text") for part in parts if value(part, "type") == "refusal"]
    for message in (value(choice, "message") for choice in value(response, "choices") or ()):
        found += [value(message, "refusal"), value(value(message, "provider_specific_fields"), "refusal")]
    return " ".join(words for words in found if isinstance(words, str))


def longest_reply(lm: dspy.BaseLM) -> int | None:
    """Return the maximum tokens of an LM's reply, as set or known; None if neither."""
    kwargs = getattr(lm, "kwargs", {})  # a replayed run has no LM
    limit = next((kwargs[name] for name in REPLY_LIMITS if kwargs.get(name)), None)
    known: int | None = limit or _info(lm).get("max_output_tokens") or getattr(lm, "context_window", None)
    return known


REPLY_LIMITS = ("max_completion_tokens", "max_tokens")
"""The settings for the maximum reply of DSPy's LMs; the first is that of OpenAI's reasoning models."""


def tokens_at_most(prompt: str | None, messages: Iterable[dict[str, Any]] | None) -> int:
    """Estimate a request's tokens from above: about twice the real number for English."""
    parts: list[Any] = list(messages or []) or [prompt]
    return sum(tokens_in(part) + _TOKENS_PER_MESSAGE for part in parts)


def tokens_in(value: Any) -> int:
    """Estimate the tokens of the text in a value from above.

    Tokenizers join several lower-case letters in one token, but in the worst case a digit, a capital, a sign or
    a non-ASCII byte is one token.
    """
    if isinstance(value, dict):
        return sum(map(tokens_in, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(tokens_in, value))
    text = value if isinstance(value, str) else str(value)
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return size - sum(map(len, _SMALL.findall(text))) // 2


def tokens_of(usage: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens of a provider's usage (OpenAI's field names), by the fields of `Usage`.

    Servers report all sorts of values; what is not a number of tokens counts as not reported.
    """
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, dict) else getattr(details, "cached_tokens", None)
    return {
        "input_tokens": count_of(usage.get("prompt_tokens")) or 0,
        "cached_input_tokens": count_of(cached) or 0,
        "output_tokens": count_of(usage.get("completion_tokens")) or 0,
    }


def count_of(value: JsonValue) -> int | None:
    """Return a valid number of tokens; None for text, NaN or negative numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < _MOST_TOKENS else None


def _info(lm: dspy.BaseLM) -> dict[str, Any]:
    """Return the table's entry of an LM.

    The table is not used for models that cannot be in it, because DSPy downloads it at the first use
    unless `LITELLM_LOCAL_MODEL_COST_MAP=True`.
    """
    model = str(getattr(lm, "model", ""))
    if not isinstance(getattr(lm, "engine", None), str):  # a custom engine of the caller
        known = is_routed if (providers := providers_of(lm)) else _is_routed
        if not known(model, getattr(lm, "model_type", "chat"), providers):
            return {}
    return _table(model)


_is_routed = functools.lru_cache(maxsize=256)(is_routed)


@functools.lru_cache(maxsize=256)
def _table(model: str) -> dict[str, Any]:
    provider, _, name = model.rpartition("/")
    info: dict[str, Any] = model_info(provider or "openai", name)
    return info


def _rates(info: Mapping[str, Any], names: tuple[str, ...]) -> list[float]:
    """Return the prices with this name prefix, except tiers that must be requested."""
    asked_for = ("_priority", "_flex", "_batches")
    chosen = (key for key in info if key.startswith(names) and not key.endswith(asked_for))
    return [found for key in chosen if (found := rate(info, key)) is not None]
