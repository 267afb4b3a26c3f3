"""Tells which errors of a provider may pass, which hold a reply of the model, and what the server said."""

from __future__ import annotations

import functools
import json
import math
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dspy
from dspy.lm15 import OpenAIChatLM

from rlm_dspy.redaction import hidden, secrets_of

if TYPE_CHECKING:
    from pydantic import JsonValue

_OK = 200
_AGAIN = (409, 425)
"""A lock that timed out, after which the SDKs of OpenAI and Anthropic ask again; and "too early"."""
_NOT_READY = re.compile(
    r"model (?:is not ready|unloaded|has crashed|is (?:still )?loading)|\bchannel error\b"  # Bedrock, LM Studio
    r"|unexpected token \d+ while expecting start token",  # vLLM, of a reply of gpt-oss that it cannot parse
    re.IGNORECASE,
)
"""A local server loads the model again at the next request, or the model writes another reply."""
_MALFORMED_CALL = re.compile(r"malformed function call:?\s*", re.IGNORECASE)  # Gemini
_WITHHELD = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "OTHER"})
"""Finish reasons of replies that Gemini made and does not send."""
_NOT_SENT = {
    "UNEXPECTED_TOOL_CALL": "was a tool call, and no tool was offered",
    "TOO_MANY_TOOL_CALLS": "was a tool call, and no tool was offered",
    "MALFORMED_RESPONSE": "was malformed, so that its provider did not send it",
}
"""Finish reasons of replies that Gemini does not send because of their form, and what the model is told."""
_BLOCKED = re.compile(
    r"content[ _](?:management )?(?:policy|filter)|prompt blocked"  # OpenAI, Azure, Gemini
    r"|(?:prompt|input) was flagged|content exists risk|data_?inspection_?failed",  # OpenRouter, DeepSeek, Alibaba
    re.IGNORECASE,
)
"""Words and codes of a provider that does not give a prompt to its model, because of the content."""
_REFUSED = (400, 403, 422, None)
_NO_JSON = re.compile(r": line \d+ column \d+ \(char \d+\)$")
"""Ends the message of Python's JSON parser; DSPy keeps no more of that error."""
_CUT_EVENT = "the stream has an event that is no JSON: the server, or a proxy before it, cut it off"
_NOT_FOUND = 404
_OF_A_STREAM = re.compile(r"\bstream(?:_options|ing)?\b", re.IGNORECASE)
_NO_CONNECTION = re.compile(
    r"connection error|connect(?:ion)? (?:refused|failed)|failed to connect|timed out connecting|TLS handshake",
    re.IGNORECASE,
)
_NO_TLS_SPOKEN = re.compile(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE")
_NO_TLS = re.compile(f"{_NO_TLS_SPOKEN.pattern}|CERTIFICATE_VERIFY_FAILED")
_WAIT = re.compile(
    r"(?:try again|retry) (?:in|after) (?=\d)(?:(\d+) ?h(?:ours?)?)?\s*(?:(\d+) ?m(?!s)(?:in(?:utes?)?)?)?\s*"
    r"(?:(\d+(?:\.\d+)?) ?(m?s))?|\"retryDelay\": ?\"(\d+(?:\.\d+)?)s\"",
    re.IGNORECASE,
)
"""How long to wait, in the words of OpenAI, Azure, Groq and Gemini."""
_TRACEBACK = "\nTraceback (most recent call last):"
_TAG = re.compile(r"<!--.*?-->|<[^<>]*>", re.DOTALL)


def may_pass(error: BaseException, *, is_stream: bool) -> bool:
    """Whether the same request may succeed a moment later.

    That includes invalid JSON from a provider, a local server that loads its model, and in a stream an early end
    or an error, which has no status. A server that speaks no TLS, or has an invalid certificate, keeps to that.
    """
    if not isinstance(error, dspy.LMError) or _finds(_NO_TLS, error):
        return False
    if dspy.is_retryable_lm_error(error) or error.status in _AGAIN or _NOT_READY.search(error.message):
        return True
    if is_stream and error.status is None and type(error) in (dspy.LMStreamAssemblyError, dspy.LMProviderError):
        return True
    if is_stream and _is_cut_event(error):
        return True
    return type(error) is dspy.LMProviderError and error.status == _OK


def _is_cut_event(error: dspy.LMError) -> bool:
    """Whether a client could not read an event of a stream, which its server or a proxy cut."""
    return isinstance(error, dspy.LMUnexpectedError) and _NO_JSON.search(error.message) is not None


def is_withheld(error: Exception) -> bool:
    """Whether a provider withholds the reply that the model made, because of its content."""
    return isinstance(error, dspy.LMInvalidRequestError) and error.provider_code in _WITHHELD


def why_not_sent(error: Exception) -> str:
    """Return why a provider does not send the reply that the model made, if it is for its form; else empty."""
    return _NOT_SENT.get(error.provider_code or "", "") if isinstance(error, dspy.LMInvalidRequestError) else ""


def is_blocked(error: dspy.LMError) -> bool:
    """Whether a provider refuses a prompt because of its content: the same prompt is refused again."""
    text = f"{error.provider_code} {error.message}" if isinstance(error, dspy.LMProviderError) else ""
    return getattr(error, "status", None) in _REFUSED and _BLOCKED.search(text) is not None


def refuses_streams(error: Exception) -> bool:
    """Whether a server may answer the same request without a stream: it sent none, or refuses an option of one."""
    refused = isinstance(error, dspy.LMInvalidRequestError) and _OF_A_STREAM.search(error.message) is not None
    return refused or type(error) is dspy.LMStreamAssemblyError


def add_words(error: Exception, lm: dspy.BaseLM | None = None) -> None:
    """Add what the server said to the message of an error, where a client keeps it only in the error's cause.

    The SDK of OpenAI, from version 3 on, does this for an error that is a string, such as LM Studio's. HTML pages
    are reduced to their text, and the traceback that LiteLLM puts into a message goes. If no server responded, or
    it has no such path, its address is added. The LM's secrets are redacted, such as a password in that address.
    """
    if isinstance(error, dspy.LMError):
        message = _without_tags(error.message).partition(_TRACEBACK)[0]
        if _is_cut_event(error) and _CUT_EVENT not in message:
            message = f"{_CUT_EVENT}: {message}"
        message = message.replace("Timeouts(read=...)", "dspy.LM(..., timeout=SECONDS)")  # what a user can set
        _set_message(error, message if lm is None else hidden(message, secrets_of(lm)))
        _add_address(error, str(getattr(lm, "kwargs", {}).get("api_base") or ""))
    cause = error.__cause__ or error.__context__
    while cause is not None and isinstance(error, dspy.LMError):
        words = _words(getattr(cause, "body", None))
        if words and words not in error.message:
            _set_message(error, f"{error.message}: {words}")
            return
        cause = cause.__cause__ or cause.__context__


def asked_pause(error: Exception) -> float | None:
    """Return the seconds that a provider asks to wait, in a header or in words, as Gemini does; else None."""
    asked = getattr(error, "retry_after", None)
    if isinstance(asked, int | float):
        return None if math.isnan(asked) else asked
    found = _WAIT.search(error.message) if isinstance(error, dspy.LMError) else None
    if found is None:
        return None
    hours, minutes, seconds, unit, delay = found.groups(default="")
    rest = float(seconds or delay or 0) / (1_000 if unit.lower() == "ms" else 1)
    return 3_600 * int(hours or 0) + 60 * int(minutes or 0) + rest


def add_wait(error: Exception, asked: float, most: float) -> None:
    """Add to the message of an error the pause that its provider asks for, which is longer than a run waits."""
    if isinstance(error, dspy.LMError):
        _add(
            error,
            f"(it asks to wait {asked:,.0f} s; this run waits at most {most:,.0f} s: set max_seconds for more)",
        )


def _add_address(error: dspy.LMError, url: str) -> None:
    """Add the server's address to the message of an error that a wrong address has, and how it may be wrong."""
    address = _shown_address(url)
    is_wrong = getattr(error, "status", None) == _NOT_FOUND or _finds(_NO_CONNECTION, error)
    if not is_wrong or not address or address in error.message:
        return
    hint = ""
    if _finds(_NO_TLS_SPOKEN, error):
        hint = "; the server seems to speak http, not https"
    elif "@" in urlsplit(url).netloc:
        hint = "; not every client reads the user and password in it: send them in extra_headers"
    _add(error, f"(api_base: {address}{hint})")


def _add(error: dspy.LMError, words: str) -> None:
    """Add words to the first paragraph of an error's message, which is shown alone where one line must do."""
    first, *rest = error.message.split("\n\n", 1)
    _set_message(error, "\n\n".join([f"{first} {words}", *rest]))


def _finds(pattern: re.Pattern[str], error: dspy.LMError) -> bool:
    """Whether an error has such words, or one that caused it: LiteLLM says only "Connection error"."""
    cause: BaseException | None = error
    while cause is not None:
        if pattern.search(cause.message if isinstance(cause, dspy.LMError) else str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _shown_address(url: str) -> str:
    """Return an address without the user, password and query in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if url else ""


def _refused_field(detail: dict[str, JsonValue]) -> str:
    place = detail.get("loc")
    return f"{'.'.join(map(str, place if isinstance(place, list) else ()))}: {detail.get('msg')}"


def _set_message(error: dspy.LMError, message: str) -> None:
    """Give an error another message."""
    if message != error.message:
        error.args = (str(error).replace(error.message, message) if error.message else f"{error} {message}",)
        error.message = message


def _without_tags(message: str) -> str:
    """Return a message without the markup of a page in HTML."""
    start = message.lower().find("<html")
    if start < 0:
        return message
    return " ".join(f"{message[:start]}{_TAG.sub(' ', message[start:])}".split())


def _words(body: JsonValue) -> str:
    """Return the words of an error's body: a text, or an object that has them directly; FastAPI lists them."""
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    if isinstance(said, list):
        said = "; ".join(_refused_field(each) for each in said if isinstance(each, dict))
    return " ".join(said.split()) if isinstance(said, str) else ""


def reply_in(error: Exception) -> str:
    """Return what the model wrote, if its provider rejected that as an invalid tool call; else an empty text.

    Groq sends it as `failed_generation`, Gemini behind "Malformed function call:".
    """
    if not isinstance(error, dspy.LMInvalidRequestError):
        return ""
    if error.provider_code == "MALFORMED_FUNCTION_CALL":
        return _MALFORMED_CALL.sub("", error.message, count=1)
    rejected = getattr(error, "partial", None)
    return rejected if isinstance(rejected, str) else _failed_generation(_json_in(error.message))


@functools.cache
def keep_rejected_replies() -> None:
    """Patch DSPy's client of chat completions to keep `failed_generation` in its errors, as `partial`, and words.

    Older versions of vLLM send them beside an `error`, not in it, and Gemini sends a list of one object; DSPy then
    raises an empty message.

    It applies to the whole process from the first model call of a run on.
    """
    normalize = OpenAIChatLM.normalize_error

    def normalize_error(self: OpenAIChatLM, status: int, body: str) -> Any:
        listed = _object(body)
        if isinstance(listed, list) and listed and isinstance(listed[0], dict):
            body = json.dumps(listed[0])
        error = normalize(self, status, body)
        if rejected := _failed_generation(_json_in(body)):
            error.partial = rejected
        if not error.message:
            error.message = _words(_object(body))
        return error

    OpenAIChatLM.normalize_error = normalize_error


def _object(text: str) -> JsonValue:
    """Return the JSON value of a text; None if it is not JSON."""
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return None
    return value


def _json_in(text: str) -> JsonValue:
    """Return the JSON object that a text ends with; None without one."""
    if "failed_generation" not in text:
        return None
    return _object(text[text.find("{") :])


def _failed_generation(body: JsonValue) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    text = error.get("failed_generation") if isinstance(error, dict) else None
    return text if isinstance(text, str) else ""
