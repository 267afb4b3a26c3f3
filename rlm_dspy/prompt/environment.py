"""Writes the first message of a run: task, variables, functions and how to answer.

The whole protocol is here and not in the instructions, which an optimizer may rewrite.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any

from rlm_dspy.inputs import Text, Variable, describe
from rlm_dspy.repl.defining_tool import DefiningTool
from rlm_dspy.repl.in_repl import rows
from rlm_dspy.repl.type_names import constraints_of, description_of, shown_signature, type_name
from rlm_dspy.signatures import Environment, Output
from rlm_dspy.text import all_sendable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import dspy
    from pydantic.fields import FieldInfo

    from rlm_dspy.limits import Limits

_MAX_DESCRIPTION_CHARS = 300
_BEGINNING_CHARS = 5_000
"""What of a text is read to see whether it consists of rows or entries: more than these functions look at."""
_consists_of_rows: Callable[[str], bool] = rows.consists_of_rows
_consists_of_entries: Callable[[str], bool] = rows.consists_of_entries
_FIND_PASSAGES = (
    "- find_passages(text: str, words: str, count=5) -> list[str]  # the parts of a text that match words best"
)
_FIND_RECORDS = (
    "- find_records(text: str) -> list[dict[str, str]]  # its blocks of lines `name: value`, or its lines"
)
_QUERY_PASSAGES = "- query_passages(text: str, prompt: str) -> str  # asks a model about the parts that match best"


def write_environment(
    signature: type[dspy.Signature],
    inputs: Mapping[str, Any],
    tools: dict[str, dspy.Tool],
    limits: Limits,
    runtime: str,
    calls: Sequence[str] = (),
) -> Environment:
    """Return the `environment` input of `act`.

    Args:
        signature: The user's `dspy.Signature` class.
        inputs: The input values by name; long ones are described, not shown.
        tools: The user's tools by name.
        limits: What the run may spend.
        runtime: The description from the interpreter; may be empty.
        calls: Lines about the functions that call models; see `write_calls`.
    """
    notes, outputs = _fields_of(signature)  # type: ignore[arg-type]  # its metaclass has a hash
    environment = Environment(
        task=signature.instructions.strip(),
        variables=tuple(_described(name, value, notes[name]) for name, value in inputs.items()),
        outputs=outputs,
        functions=_functions(tools, limits, calls),
        runtime=runtime,
        turns=limits.max_iters,
    )
    return Environment.model_validate(all_sendable(environment.model_dump()))


def _described(name: str, value: Any, note: str) -> Variable:
    variable = describe(name, value, note)
    if not variable.long or not isinstance(value, str | Text):
        return variable
    text = value if isinstance(value, str) else value.beginning(_BEGINNING_CHARS)
    form = "rows" if _consists_of_rows(text) else "entries" if _consists_of_entries(text) else ""
    return variable.model_copy(update={"form": form})


@functools.lru_cache(maxsize=256)
def _fields_of(signature: type[dspy.Signature]) -> tuple[dict[str, str], tuple[Output, ...]]:
    """Return the notes of the input fields by name, and the outputs."""
    notes = {name: _note(name, field) for name, field in signature.input_fields.items()}
    outputs = (
        Output(name=name, type=type_name(field.annotation), note=_note(name, field))
        for name, field in signature.output_fields.items()
    )
    return notes, tuple(outputs)


def _note(name: str, field: FieldInfo) -> str:
    return "; ".join(filter(None, (description_of(name, field), constraints_of(field))))


def _functions(tools: dict[str, dspy.Tool], limits: Limits, calls: Sequence[str]) -> str:
    lines = [*calls, f"  ({limits.max_llm_calls} model calls in total)"] if limits.max_llm_calls else []
    for name, tool in tools.items():
        lines.append(f"- {name}{_stub(tool)}{_noted(' '.join((tool.desc or '').split()))}")
        lines += [f"  {line}" for line in tool.listing] if isinstance(tool, DefiningTool) else []
    lines += [_FIND_PASSAGES, *([_QUERY_PASSAGES] if limits.max_llm_calls else []), _FIND_RECORDS]
    lines.append("- SHOW_VARS()  # names, types and sizes of the variables")
    lines.append("- INPUTS[name]  # the original value of an input")
    return "\n".join(lines)


def write_calls(subs: Sequence[dict[str, Any]], *, children: bool, awaits: bool) -> list[str]:
    """Return the lines about the functions that call models.

    Args:
        subs: The declared subs, with `name`, `usage` and `doc` each.
        children: Whether child RLMs may be made.
        awaits: Whether code may use `await` at the top level.
    """
    lines = [f"- {sub['usage']}{_noted(sub['doc'])}" for sub in subs]
    if subs:
        others = "".join(f", {name}=..." for name in subs[0]["fields"][1:2])
        lines.append(
            f"  {subs[0]['name']}.map(items{others}): runs concurrently, in order; a failed item is falsy"
        )
    lines += [
        "- llm_query(prompt: str) -> str  # asks a model about a small piece of text",
        "- llm_query_batched(prompts: list[str]) -> list[str]  # runs concurrently; a failed item is falsy",
        '- dspy.Predict("text, topic -> score: int")(text=..., topic=...).score  # typed; .map; ChainOfThought',
    ]
    if children:
        lines.append(
            "- rlm_query(prompt: str, context) -> str  # a child with its own REPL works on a large part; "
            "rlm_query_batched([(prompt, context), ...]); typed: dspy.RLM(signature)(...)"
        )
    return [*lines, "  (async: `await name.acall(...)`)"] if awaits else lines


def _noted(text: str) -> str:
    return f"  # {text[:_MAX_DESCRIPTION_CHARS]}" if text else ""


def _stub(tool: dspy.Tool) -> str:
    """Return `(query: str, k: int = 5) -> list[str]` of a tool."""
    for unquoted in (True, False):
        with contextlib.suppress(Exception):  # an annotation in quotes may name, or do, anything
            return shown_signature(inspect.signature(tool.func, eval_str=unquoted))
    return f"({', '.join(tool.args or {})})"
