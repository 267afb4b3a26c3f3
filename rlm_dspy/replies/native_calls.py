"""Reads code from the native tool calls of an LM's output, as DSPy keeps them beside its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rlm_dspy.replies.tool_calls import code_of_object, read_json
from rlm_dspy.text import sendable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NOT_JSON = "partial_json"
"""The key under which DSPy hands over arguments that are not valid JSON."""


def codes_of_calls(output: Mapping[str, Any]) -> list[str]:
    """Return the code of each native tool call that can be read.

    Args:
        output: An output of an LM by its fields; without calls if it has no `tool_calls`.
    """
    return [sendable(code) for code in map(code_of_object, _calls(output)) if code]


def unread_calls(output: Mapping[str, Any]) -> str:
    """Return the native tool calls as text if none of them can be read; else empty."""
    written = [f"{call['name']}({call['arguments']})" for call in _calls(output)]
    return "" if codes_of_calls(output) else sendable("\n".join(written))


def with_calls(output: Mapping[str, Any]) -> str:
    """Return the text of an output, with the code of each native tool call as a block behind it."""
    blocks = (f"```python\n{code}\n```" for code in codes_of_calls(output))
    return "\n".join(filter(None, [output.get("text"), *blocks]))


def _calls(output: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the name and the arguments of each call."""
    for call in output.get("tool_calls") or []:
        fields = call.model_dump() if isinstance(call, BaseModel) else call
        if isinstance(fields, dict):
            function = fields.get("function") or fields
            arguments = function.get("arguments") or function.get("input") or ""
            parsed = read_json(arguments) if isinstance(arguments, str) else arguments
            if isinstance(parsed, dict) and parsed.keys() == {_NOT_JSON}:
                arguments = parsed[_NOT_JSON]
            yield {"name": function.get("name") or "", "arguments": arguments}
