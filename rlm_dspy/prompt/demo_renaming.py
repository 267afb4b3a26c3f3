"""Renames a demo's fields to match another task, so that a demo of one signature helps on others."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from typing import Any

from rlm_dspy.replies.code_blocks import tree_of
from rlm_dspy.signatures import Environment
from rlm_dspy.trajectory import Trajectory

_Kind = tuple[str, bool]
"""A field's type, and whether it is a long text."""
_IN_BRACES = re.compile(r"\{[^{}]*\}")
_QUOTED_NAME = re.compile(r"(?<=`)\w+(?=`)")


@dataclass(frozen=True)
class _Names:
    """New names by old ones: of inputs (variables) and of outputs (arguments of `SUBMIT`)."""

    inputs: dict[str, str]
    outputs: dict[str, str]

    def __bool__(self) -> bool:
        return any(old != new for old, new in (self.inputs | self.outputs).items())


def renamed(demo: dict[str, Any], here: Environment) -> dict[str, Any]:
    """Rename the fields of an `act` demo to those of another environment.

    Its inputs are matched by name, else by type, long texts with long ones if there are, in order; its outputs
    likewise. If a field has no match, or its new name has another meaning in the demo's code, the demo is
    unchanged.

    Args:
        demo: `environment`, `trajectory`, `reasoning`, `code`.
        here: The environment of the run.
    """
    environment = Environment.of(demo["environment"])
    names = _names(environment, here)
    if not names:
        return demo
    try:
        trajectory = Trajectory.model_validate(demo.get("trajectory") or {})
        steps = tuple(
            step.model_copy(update={"code": _code_renamed(step.code, names)}) for step in trajectory.steps
        )
        code = _code_renamed(str(demo.get("code") or ""), names)
    except (ValueError, SyntaxError, tokenize.TokenError):  # not Python, or a name that is taken
        return demo
    new_environment = _environment_renamed(environment, names)
    return {**demo, "environment": new_environment, "trajectory": Trajectory(steps=steps), "code": code}


def under(environment: Environment, here: Environment) -> Environment:
    """Return a demo's environment with the functions and the runtime of the run.

    So these parts are equal in all demos and appear only once, in the system message.

    Args:
        environment: Of the demo.
        here: Of the run.
    """
    return environment.model_copy(update={"functions": here.functions, "runtime": here.runtime})


def _names(demo: Environment, run: Environment) -> _Names:
    inputs = _matched(*({v.name: (v.type, v.long) for v in each.variables} for each in (demo, run)))
    outputs = _matched(*({o.name: (o.type, False) for o in each.outputs} for each in (demo, run)))
    if not inputs or not outputs or len(demo.outputs) != len(run.outputs):
        return _Names({}, {})
    return _Names(inputs, outputs)


def _matched(old: dict[str, _Kind], new: dict[str, _Kind]) -> dict[str, str]:
    """Return the new name of each old one; empty if one has no match. Long texts match long texts first."""
    names = {name: name for name in old if name in new}
    for name, kind in old.items():
        if name not in names:
            free = [(other, of) for other, of in new.items() if of[0] == kind[0] and other not in names.values()]
            if not free:
                return {}
            names[name] = next((other for other, of in free if of == kind), free[0][0])
    return names


def _environment_renamed(environment: Environment, names: _Names) -> Environment:
    """Return an environment with its fields renamed, also where its task quotes their names in backticks."""
    all_names = names.inputs | names.outputs
    variables = (v.model_copy(update={"name": names.inputs[v.name]}) for v in environment.variables)
    outputs = (o.model_copy(update={"name": names.outputs[o.name]}) for o in environment.outputs)
    return environment.model_copy(
        update={
            "task": _QUOTED_NAME.sub(lambda found: all_names.get(found[0], found[0]), environment.task),
            "variables": tuple(variables),
            "outputs": tuple(outputs),
        }
    )


def _code_renamed(code: str, names: _Names) -> str:
    """Return code with the variables and the arguments of `SUBMIT` renamed, in f-strings too.

    Raises:
        ValueError: If a new name has another meaning in the code.
        SyntaxError, tokenize.TokenError: If it is not Python.
    """
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    taken = {token.string for token in tokens if token.type == tokenize.NAME}
    if clash := (set(names.inputs.values()) - names.inputs.keys()) & taken:
        raise ValueError(f"{', '.join(clash)}: taken")
    parameters = {node.arg for node in ast.walk(tree_of(code)) if isinstance(node, ast.arg)}
    if own := parameters & names.inputs.keys():
        raise ValueError(f"{', '.join(own)}: parameters of functions of the code's own")
    lines = code.splitlines(keepends=True)
    calls: list[str] = []  # the owner of each open bracket
    edits: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    for at, token in enumerate(tokens):
        before = tokens[at - 1].string if at else ""
        after = tokens[at + 1].string if at + 1 < len(tokens) else ""
        if token.string in ("(", "[", "{"):
            calls.append(before if token.string == "(" else "")
        elif token.string in (")", "]", "}") and calls:
            calls.pop()
        elif token.type == tokenize.NAME and before != ".":
            argument = bool(calls) and after == "=" and before in ("(", ",")
            known = names.inputs if not argument else names.outputs if calls[-1] == "SUBMIT" else {}
            if token.string in known:
                edits.append((token.start, token.end, known[token.string]))
        elif token.type == tokenize.STRING and "f" in token.string.partition(token.string[-1])[0].lower():
            edits.append((token.start, token.end, _f_string_renamed(token.string, names.inputs)))
    for (row, start), (last_row, end), new in reversed(edits):
        head, tail = lines[row - 1][:start], lines[last_row - 1][end:]
        lines[row - 1 : last_row] = [head + new + tail]
    return "".join(lines)


def _f_string_renamed(text: str, names: dict[str, str]) -> str:
    """Return an f-string, one token before Python 3.12, with the variables in its braces renamed."""
    if not names:
        return text
    any_name = re.compile(rf"(?<![\w.'\"])(?:{'|'.join(map(re.escape, names))})(?![\w'\"])")
    return _IN_BRACES.sub(lambda found: any_name.sub(lambda name: names[name[0]], found[0]), text)
