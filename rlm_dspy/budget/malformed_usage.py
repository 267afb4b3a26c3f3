"""Patches DSPy 3.4 to accept malformed usage from a server: DSPy raises, and a paid answer is lost."""

from __future__ import annotations

import functools
import json
from dataclasses import fields
from typing import Any

from rlm_dspy._dspy_compat import HttpResponse, WireUsage
from rlm_dspy.budget.lm_info import count_of

_ENOUGH_TOKENS = 10**9
"""A smaller number needs no second look."""


@functools.cache
def accept_any_usage() -> None:
    """Patch DSPy's clients to accept any usage: what is not a number of tokens counts as not reported.

    It holds for the whole process from the first model call of a run on, and changes no reply that DSPy reads
    without it.
    """
    read_json, check = HttpResponse.json, WireUsage.__post_init__
    names = [field.name for field in fields(WireUsage)]

    def json_of(self: HttpResponse) -> Any:
        body = read_json(self)
        if b"NaN" in self.body or b"Infinity" in self.body:
            body = json.loads(self.body, parse_constant=lambda _: None)
        if isinstance(body, dict) and "usage" in body:
            body["usage"] = _without_odd_parts(body["usage"])
        return body

    def post_init(self: WireUsage) -> None:
        for name in names:
            count = getattr(self, name)
            if count is not None and not (type(count) is int and 0 <= count < _ENOUGH_TOKENS):
                object.__setattr__(self, name, count_of(count))
        check(self)

    HttpResponse.json, WireUsage.__post_init__ = json_of, post_init


def _without_odd_parts(usage: Any) -> dict[str, Any]:
    """Return a usage in which details have the form that DSPy looks into."""
    if not isinstance(usage, dict):
        return {}
    return {name: part for name, part in usage.items() if isinstance(part, dict) or not name.endswith("_details")}
