"""The first message of a run: the task, the variables, the functions, how to answer.

All that the protocol needs stands here and not in the instructions, which an optimizer may rewrite.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
from typing import TYPE_CHECKING, Any

from rlm_dspy.inputs import describe
from rlm_dspy.repl.type_names import constraints_of, shown_signature, type_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dspy

    from rlm_dspy.limits import Limits

_MAX_DESCRIPTION_CHARS = 300


def write_environment(
    signature: Any,
    inputs: dict[str, Any],
    tools: dict[str, dspy.Tool],
    limits: Limits,
    runtime: str,
    calls: Sequence[str] = (),
) -> str:
    """Return the text that `act` reads as its field `environment`.

    Args:
        signature: The user's `dspy.Signature` class.
        inputs: The input values by name; long ones are described, not shown.
        tools: The user's tools by name.
        limits: What the run may spend.
        runtime: What the interpreter says of itself; may be empty.
        calls: Lines about the functions that call models; see `write_calls`.
    """
    number = limits.max_iters
    turns = f"There are {number} turns." if number > 1 else "This is the last turn: call SUBMIT in it."
    sections = [
        f"Task: {signature.instructions.strip()}",
        _variables(signature, inputs),
        _answer(signature),
        _functions(tools, limits, calls),
        f"Runtime: {runtime}" if runtime else "",
        f"Write one ```python block a turn. {turns}",
    ]
    return "\n\n".join(section for section in sections if section)


def _variables(signature: Any, inputs: dict[str, Any]) -> str:
    lines = ["Variables:"]
    for name, value in inputs.items():
        hides = f"hides Python's {name}; builtins.{name} has it" if hasattr(builtins, name) else ""
        note = "; ".join(filter(None, (_description(name, signature.input_fields[name]), hides)))
        lines.append(f"- {describe(name, value)}{f'  # {note}' if note else ''}")
    return "\n".join(lines)


def _answer(signature: Any) -> str:
    call = f"SUBMIT({', '.join(f'{name}=...' for name in signature.output_fields)})"
    lines = [f"When you know the answer, end with {call}:"]
    for name, field in signature.output_fields.items():
        note = _description(name, field)
        lines.append(f"- {name}: {type_name(field.annotation)}{f'  # {note}' if note else ''}")
    return "\n".join(lines)


def _functions(tools: dict[str, dspy.Tool], limits: Limits, calls: Sequence[str]) -> str:
    lines = ["Functions:"]
    if limits.max_llm_calls:
        lines += [*calls, f"  ({limits.max_llm_calls} model calls in all)"]
    for name, tool in tools.items():
        lines.append(f"- {name}{_stub(tool)}{_noted(' '.join((tool.desc or '').split()))}")
    lines.append("- SHOW_VARS()  # names, types and sizes of the variables")
    lines.append("- INPUTS[name]  # the variable of that name as it was given")
    return "\n".join(lines)


def write_calls(subs: Sequence[dict[str, Any]], *, children: bool, awaits: bool) -> list[str]:
    """Return the lines about functions that call models.

    Args:
        subs: The declared subs, with `name`, `usage` and `doc` each.
        children: Whether child RLMs may be made.
        awaits: Whether code may use `await` at the top level.
    """
    lines = [f"- {sub['usage']}{_noted(sub['doc'])}" for sub in subs]
    if subs:
        lines.append(
            f"  {subs[0]['name']}.map(items, same=for_all): many at once, in order; a failed one is false"
        )
    lines += [
        "- llm_query(prompt: str) -> str  # asks a model about a small piece of text",
        "- llm_query_batched(prompts: list[str]) -> list[str]  # many at once; a failed one is false",
        '- dspy.Predict("text, topic -> score: int")(text=..., topic=...).score  # typed; .map; ChainOfThought',
    ]
    if children:
        lines.append(
            "- rlm_query(prompt: str, context) -> str  # a child with a REPL of its own, for a large part; "
            "rlm_query_batched([(prompt, context), ...]); typed: dspy.RLM(signature)(...)"
        )
    return [*lines, "  (each also as `await name.acall(...)`)"] if awaits else lines


def _noted(text: str) -> str:
    return f"  # {text[:_MAX_DESCRIPTION_CHARS]}" if text else ""


def _stub(tool: dspy.Tool) -> str:
    """Return `(query: str, k: int = 5) -> list[str]` of a tool."""
    for unquoted in (True, False):
        with contextlib.suppress(Exception):  # an annotation in quotes may name, or do, anything
            return shown_signature(inspect.signature(tool.func, eval_str=unquoted))
    return f"({', '.join(tool.args or {})})"


def _description(name: str, field: Any) -> str:
    """Return the user's `desc` of a field; DSPy fills in `${name}` where there is none."""
    extra = field.json_schema_extra or {}
    desc = extra.get("desc") or ""
    return "; ".join(part for part in ("" if desc == f"${{{name}}}" else desc, constraints_of(field)) if part)
