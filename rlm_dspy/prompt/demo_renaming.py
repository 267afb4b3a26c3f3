"""Demos told in the names of another task, so that what was learned on one signature helps on others."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from typing import Any

from rlm_dspy.trajectory import Trajectory

_Kind = tuple[str, bool]
_VARIABLES, _ANSWER = "Variables:", "When you know the answer"
_OF_THE_RUN = ("Functions:", "Runtime:")
_FIELDS = {
    _VARIABLES: re.compile(r"(?m)^- (?P<name>\w+): (?P<kind>[^,\n]+)(?P<long>, [\d,]+ (?:characters|bytes)\b)?"),
    _ANSWER: re.compile(r"(?m)^- (?P<name>\w+): (?P<kind>.+?)(?P<long>)(?:  #|$)"),
}
_IN_BRACES = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class _Names:
    """What is called otherwise: inputs, which are variables, and outputs, which `SUBMIT` takes."""

    inputs: dict[str, str]
    outputs: dict[str, str]

    def __bool__(self) -> bool:
        return any(old != new for old, new in (self.inputs | self.outputs).items())


def retold(demo: dict[str, Any], environment: str) -> dict[str, Any]:
    """Return a demo of `act` in the names of the task whose environment is given.

    Its inputs are matched by name, else by type, long texts with long ones if there are, in order; its outputs
    likewise. Where a field finds no match, or its new name means something else in the demo's code, the demo stays
    as it was.

    Args:
        demo: `environment`, `trajectory`, `reasoning`, `code`.
        environment: Of the run that the demo is shown in (`environment.write_environment`).
    """
    names = _names(str(demo["environment"]), environment)
    if not names:
        return demo
    try:
        trajectory = Trajectory.model_validate(demo.get("trajectory") or {})
        steps = tuple(
            step.model_copy(update={"code": _code_retold(step.code, names)}) for step in trajectory.steps
        )
        code = _code_retold(str(demo.get("code") or ""), names)
    except (ValueError, SyntaxError, tokenize.TokenError):  # no Python, or a name that is taken
        return demo
    told = _environment_retold(str(demo["environment"]), names)
    return {**demo, "environment": told, "trajectory": Trajectory(steps=steps), "code": code}


def under(environment: str, here: str) -> str:
    """Return a demo's environment with the functions and the runtime of the run that it is shown in.

    They are what the demo would be told there, and stand once in the system message then, as what all share.

    Args:
        environment: Of the demo.
        here: Of the run.
    """
    own = {start: next((p for p in here.split("\n\n") if p.startswith(start)), "") for start in _OF_THE_RUN}
    parts = environment.split("\n\n")
    kept = [part for part in parts[:-1] if not part.startswith(_OF_THE_RUN)]
    return "\n\n".join([*kept, *filter(None, own.values()), parts[-1]])


def _names(demo: str, run: str) -> _Names:
    parts = {start: (_fields(demo, start), _fields(run, start)) for start in (_VARIABLES, _ANSWER)}
    matched = {start: _matched(old, new) for start, (old, new) in parts.items()}
    old_outputs, new_outputs = parts[_ANSWER]
    if not all(matched.values()) or len(old_outputs) != len(new_outputs):
        return _Names({}, {})
    return _Names(matched[_VARIABLES], matched[_ANSWER])


def _fields(environment: str, start: str) -> dict[str, _Kind]:
    """Return by name the type of each field that a paragraph lists, and whether it is a long text."""
    paragraph = next((part for part in environment.split("\n\n") if part.startswith(start)), "")
    return {found["name"]: (found["kind"], bool(found["long"])) for found in _FIELDS[start].finditer(paragraph)}


def _matched(old: dict[str, _Kind], new: dict[str, _Kind]) -> dict[str, str]:
    """Return the new name of each old one; nothing if one has none. Long texts take long ones if there are."""
    names = {name: name for name in old if name in new}
    for name, kind in old.items():
        if name not in names:
            free = [(other, of) for other, of in new.items() if of[0] == kind[0] and other not in names.values()]
            if not free:
                return {}
            names[name] = next((other for other, of in free if of == kind), free[0][0])
    return names


def _environment_retold(environment: str, names: _Names) -> str:
    places = {
        "Task:": (names.inputs | names.outputs, r"(?<=`){}(?=`)"),
        _VARIABLES: (names.inputs, r"(?m)(?<=^- ){}(?=: )"),
        _ANSWER: (names.outputs, r"(?m)(?<=^- ){}(?=: )|\b{}(?==\.\.\.)"),
    }

    def told(part: str) -> str:
        place = next((place for start, place in places.items() if part.startswith(start)), None)
        return _replaced(part, *place) if place else part

    return "\n\n".join(map(told, environment.split("\n\n")))


def _replaced(text: str, names: dict[str, str], where: str) -> str:
    """Replace all names at once, each where the pattern with it in braces finds it."""
    if not names:
        return text
    any_name = "(?:" + "|".join(map(re.escape, names)) + ")"
    return re.sub(where.replace("{}", any_name), lambda found: names[found[0]], text)


def _code_retold(code: str, names: _Names) -> str:
    """Return code with the variables and the arguments of `SUBMIT` renamed, in f-strings too.

    Raises:
        ValueError: If a new name means something else in the code.
        SyntaxError, tokenize.TokenError: If it is no Python.
    """
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    taken = {token.string for token in tokens if token.type == tokenize.NAME}
    if clash := (set(names.inputs.values()) - names.inputs.keys()) & taken:
        raise ValueError(f"{', '.join(clash)}: taken")
    parameters = {node.arg for node in ast.walk(ast.parse(code)) if isinstance(node, ast.arg)}
    if own := parameters & names.inputs.keys():
        raise ValueError(f"{', '.join(own)}: parameters of functions of the code's own")
    lines = code.splitlines(keepends=True)
    calls: list[str] = []  # what each open bracket belongs to
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
            edits.append((token.start, token.end, _f_string_retold(token.string, names.inputs)))
    for (row, start), (last_row, end), new in reversed(edits):
        head, tail = lines[row - 1][:start], lines[last_row - 1][end:]
        lines[row - 1 : last_row] = [head + new + tail]
    return "".join(lines)


def _f_string_retold(text: str, names: dict[str, str]) -> str:
    """Return an f-string, one token before Python 3.12, with the variables in its braces renamed."""
    return _IN_BRACES.sub(lambda found: _replaced(found[0], names, r"(?<![\w.'\"]){}(?![\w'\"])"), text)
