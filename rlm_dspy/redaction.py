"""Keeps secrets out of what is written down of a run: finds those that LMs hold, and puts `***` in their place."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HIDDEN = "***"
_NAMES = re.compile(r"key|token|secret|password|credential|authorization|headers|cookie", re.IGNORECASE)
_NAMES_IN_ENVIRONMENT = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_MIN_CHARS = 10
"""Shorter ones are stand-ins for a key that no server asks for, and words of the text as well."""


def names_secret(name: str) -> bool:
    """Return whether a setting of this name holds a secret, if it holds a text: `api_key`, `extra_headers`."""
    return bool(_NAMES.search(name))


def secrets_of(lm: Any) -> set[str]:
    """Return the secrets among the settings of an LM: strings under a name like `api_key`, also inside dicts."""
    return {part for secret in _under_secret_names(getattr(lm, "kwargs", {})) for part in _parts(secret)}


def secrets_of_environment() -> set[str]:
    """Return the values of environment variables that are named like a key."""
    values = [value for name, value in os.environ.items() if _NAMES_IN_ENVIRONMENT.search(name)]
    return {part for value in values for part in _parts(value)}


def _parts(secret: str) -> list[str]:
    """Return a secret and what is left of it without a scheme, as in `Bearer ...`."""
    return [part for part in (secret, *secret.split()[1:]) if len(part) >= _MIN_CHARS]


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
