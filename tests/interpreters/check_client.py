"""Compare calls of a fake client with the real one: `python check_client.py < calls.json`, in its environment.

Prints what the real client does not have, a line each.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys


def missing(name: str, positional: int, named: list[str]) -> str:
    """Return what is wrong with a call (or, with -1, an attribute), or nothing."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    if positional < 0:
        known = {*dir(owner), *getattr(owner, "model_fields", ())}
        return "" if last in known or f"self.{last} = " in inspect.getsource(owner) else "no such attribute"
    function = getattr(owner, last, None)
    if function is None:
        return "no such function"
    try:
        inspect.signature(function).bind(*[None] * positional, **dict.fromkeys(named))
    except TypeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    for call in json.load(sys.stdin):
        if problem := missing(*call):
            print(f"{call[0]}: {problem}")
