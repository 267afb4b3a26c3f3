"""Policies: what `act` has learned (instructions and demos), by name or by file.

A policy is a JSON object: `version`, `name`, `model` (what it was found for), `provenance` (how, on what, with
which result) and `act` (the state of the predictor).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

_SHIPPED = Path(__file__).parent / "policies"
POLICY_VERSION = 1


def load_policy(policy: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state of `act` that a policy holds, for `Act.load_state`.

    Args:
        policy: The name of a shipped policy (see `shipped_policies`), or the path of a policy file.

    Raises:
        ValueError: If there is no such policy, or the file is none.
    """
    path = _path_of(policy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        state: dict[str, Any] = content["act"]
        version = content["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{policy} is no policy file: {error!r}. Shipped are: {shipped_policies()}.") from error
    if version != POLICY_VERSION:
        raise ValueError(f"{policy} has policy version {version}; this release reads version {POLICY_VERSION}.")
    return state


def policy_for(lm: Any) -> str | None:
    """Return the name of the policy that is shipped for an LM, by its model's name; None if there is none."""
    model = getattr(lm, "model", None) or ""
    name = str(model).rsplit("/", 1)[-1].lower()
    return name if name in shipped_policies() else None


def shipped_policies() -> list[str]:
    """Return the names of the policies in the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))


def _path_of(policy: str | os.PathLike[str]) -> Path:
    if str(policy) in shipped_policies():
        return _SHIPPED / f"{policy}.json"
    return Path(policy)
