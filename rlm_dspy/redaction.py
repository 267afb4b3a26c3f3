"""Redacts secrets, such as the API keys of LMs, from what a run writes or reports."""

from __future__ import annotations

import html
import itertools
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import dspy

HIDDEN = "***"
_NAMES = re.compile(r"key|token|secret|password|credential|authorization|headers|cookie", re.IGNORECASE)
_NAMES_IN_ENVIRONMENT = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)")
_CREDENTIALS = re.compile(
    r"(?<=\bbearer )[\w.~+/=-]{8,}|(?<=\bbasic )[\w+/=-]{8,}|\b(?:sk|pk|gh[a-z]|xox[a-z]|hf)[-_][\w-]{16,}"
    rf"|{_IN_ADDRESS.pattern}",
    re.IGNORECASE,
)
"""What looks like a key anywhere: after `Bearer`, with a provider's prefix, in an address."""
_MIN_CHARS = 10
"""Shorter values are placeholders for keys that no server requires, and may be ordinary words."""
_MIN_LEFT = 6
"""Fewer characters of a truncated secret may stay visible."""
_LEFT_OUT = re.compile(r"['\"]?\s?\.\.\.\s?['\"]?")


def names_secret(name: str) -> bool:
    """Return whether a setting of this name, such as `api_key` or `extra_headers`, holds a secret."""
    return bool(_NAMES.search(name))


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return an LM's settings without texts and dicts whose name marks them as secret."""
    return {
        name: without_secrets(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if not (names_secret(str(name)) and isinstance(value, str | bytes | Mapping))
    }


def lm_state(lm: object) -> list[Any]:
    """Return what an LM's answers depend on: its name and options, without keys and headers."""
    kwargs = getattr(lm, "kwargs", None)
    return [getattr(lm, "model", None), without_secrets(kwargs) if kwargs else {}]


def secrets_of(lm: dspy.BaseLM) -> set[str]:
    """Return the secrets in an LM's settings: strings under a name like `api_key`, also inside dicts.

    Also the user and password in an address: a client may quote them without what is around them.
    """
    settings = getattr(lm, "kwargs", {})
    addresses = (value for value in settings.values() if isinstance(value, str))
    in_addresses = {found for address in addresses for found in _IN_ADDRESS.findall(address)}
    return in_addresses | {part for secret in _under_secret_names(settings) for part in _parts(secret)}


def lms_of(program: dspy.Module) -> list[dspy.BaseLM]:
    """Return the LMs that a program may call: those of its predictors and RLMs, and that of `dspy.settings`."""
    from dspy import settings  # noqa: PLC0415 (the command line imports this module, and is quick without DSPy)

    found = [predictor.lm for _, predictor in program.named_predictors()]
    found += [getattr(module, "sub_lm", None) for _, module in program.named_sub_modules()]
    return [lm for lm in (*found, settings.lm) if lm is not None]


def without_passwords(text: str) -> str:
    """Redact the user and password of the addresses in a text."""
    return _IN_ADDRESS.sub(HIDDEN, text)


def secrets_of_environment() -> set[str]:
    """Return the values of environment variables whose names mark them as keys."""
    values = [value for name, value in os.environ.items() if _NAMES_IN_ENVIRONMENT.search(name)]
    return {part for value in values for part in _parts(value)}


def safe_message(error: BaseException, *lms: Any) -> str:
    """Return an error's message for code that must not know the host's secrets.

    Args:
        error: The error of a model's server or of a tool; it may quote a request with its headers.
        lms: The LMs whose secrets to redact.
    """
    return without_credentials(str(error), *lms)


def without_credentials(text: str, *lms: Any) -> str:
    """Redact in a text the secrets of the environment and of some LMs, and what looks like a key."""
    secrets = secrets_of_environment().union(*map(secrets_of, lms))
    return _CREDENTIALS.sub(HIDDEN, hidden(text, secrets))


def safe_error(error: Exception, *lms: Any) -> Exception:
    """Return the error if it reveals no secret; else an error of the same type and message, redacted."""
    message = safe_message(error, *lms)
    return error if message == str(error) else RuntimeError(f"{type(error).__name__}: {message}")


def in_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Apply a function to each string in JSON-like data, names included."""
    whole = [value]
    waiting: list[Any] = [whole]
    while waiting:
        part = waiting.pop()
        for key, item in enumerate(part) if isinstance(part, list) else list(part.items()):
            if isinstance(item, str):
                part[key] = change(item)
            elif isinstance(item, dict):
                part[key] = {change(name) if isinstance(name, str) else name: item[name] for name in item}
                waiting.append(part[key])
            elif isinstance(item, list):
                part[key] = list(item)
                waiting.append(part[key])
    return whole[0]


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Replace each secret in a text, also a truncated one, by `***`."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return without_cut(text, secrets) if "..." in text else text


def without_cut(text: str, secrets: Iterable[str]) -> str:
    """Replace the rest of a truncated secret by `***`, wherever `...` marks an omission."""
    edges = [(match.start(), match.end()) for match in _LEFT_OUT.finditer(text)]
    edges = [(0, 0), *edges, (len(text), len(text))]
    pieces = [text[end:start] for (_, end), (start, _) in itertools.pairwise(edges)]
    known = [secret for secret in secrets if len(secret) > _MIN_LEFT]
    pieces = [_without_ends(piece, known) for piece in pieces]
    marks = [text[start:end] for start, end in edges[1:-1]]
    return "".join(part for pair in itertools.zip_longest(pieces, marks, fillvalue="") for part in pair)


def _without_ends(piece: str, secrets: list[str]) -> str:
    """Remove the end of a secret at the start of a piece, and the beginning of one at its end."""
    begun = max((_shared(piece, secret, -1) for secret in secrets), default=0)
    ended = max((_shared(piece, secret, 1) for secret in secrets), default=0)
    piece = HIDDEN + piece[begun:] if begun else piece
    return piece[: len(piece) - ended] + HIDDEN if ended else piece


def _shared(piece: str, secret: str, way: int) -> int:
    """Return how many characters of a secret's end (way -1) start a piece, or of its beginning (1) end it."""
    for length in range(min(len(secret) - 1, len(piece)), _MIN_LEFT - 1, -1):
        if piece.startswith(secret[-length:]) if way < 0 else piece.endswith(secret[:length]):
            return length
    return 0


def _parts(secret: str) -> list[str]:
    """Return a secret with and without a scheme such as `Bearer`, in all forms."""
    parts = [part for part in (secret, *secret.split()[1:]) if len(part) >= _MIN_CHARS]
    return list(dict.fromkeys(form for part in parts for form in _forms(part)))


def _forms(secret: str) -> tuple[str, ...]:
    """Return a secret as it may appear in texts: unchanged, in JSON, as a Python literal, in HTML."""
    in_json = json.dumps(secret, ensure_ascii=False)[1:-1], json.dumps(secret)[1:-1]
    return secret, *in_json, repr(secret)[1:-1], html.escape(secret), html.escape(in_json[0])


def _under_secret_names(value: Any, *, named: bool = False) -> Iterator[str]:
    if isinstance(value, str):
        if named:
            yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _under_secret_names(item, named=named or names_secret(str(name)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _under_secret_names(item, named=named)
