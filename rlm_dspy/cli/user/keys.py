"""Finds the keys that the configuration file refers to."""

from __future__ import annotations

import os
from pathlib import Path

from rlm_dspy.errors import UsageError

_KINDS = ("env:", "file:", "keyring:")


def names_key(value: str) -> bool:
    """Return whether a value refers to a key, rather than being one."""
    return value.startswith(_KINDS)


def key_of(value: str, configuration: Path, name: str) -> str:
    """Return the key that a value of the configuration file refers to or is.

    Args:
        value: `env:VARIABLE`, `file:PATH` (from the configuration file), `keyring:SERVICE/USER`, or the key.
        configuration: The configuration file.
        name: The name of the value in it, for messages.

    Raises:
        UsageError: If there is no such key.
    """
    kind, _, where = value.partition(":")
    if not names_key(value):
        return value
    try:
        key = {"env": _of_environment, "file": _of_file, "keyring": _of_keyring}[kind](where, configuration)
    except OSError as error:
        raise UsageError(f"{configuration}: {name}: {where} cannot be read: {error.strerror}.") from None
    if not key:
        fix = {
            "env": f"set the environment variable {where}",
            "file": f"write the key to {where}",
            "keyring": f"store it: keyring set {where.replace('/', ' ')}",
        }[kind]
        raise UsageError(f'{configuration}: {name}: "{value}" has no key; {fix}.')
    return key


def _of_environment(variable: str, _: Path) -> str:
    return os.environ.get(variable, "").strip()


def _of_file(path: str, configuration: Path) -> str:
    return (configuration.parent / Path(path).expanduser()).read_text(encoding="utf-8").strip()


def _of_keyring(entry: str, configuration: Path) -> str:
    try:
        import keyring
    except ImportError:
        raise UsageError(
            f"{configuration}: keyring:{entry} needs the package keyring: pip install keyring."
        ) from None
    service, _, user = entry.partition("/")
    return keyring.get_password(service, user) or ""
