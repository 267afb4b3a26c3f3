"""Compares two runs side by side: task and models, answers, usage, and turn by turn."""

from __future__ import annotations

import json
import re
from collections import Counter
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rlm_dspy.report.formatting import all_calls
from rlm_dspy.report.rendering import highlighted, template
from rlm_dspy.text import price, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm_dspy.report.record import Record
    from rlm_dspy.trajectory import Step

_ALIKE = 0.5
_WORDS = re.compile(r"\w+|[^\w\s]")
Pair = tuple[int | None, int | None]
"""The indices of two similar turns; None if a run has no counterpart."""
Difference = tuple[str, str, str]
"""A name, and its value in each of the two runs."""
Side = tuple["Step", int, Markup] | None
"""A turn, its number and its highlighted code; None if the run has no counterpart."""


def settings(a: Record, b: Record) -> list[Difference]:
    """Return the differences in signature, instructions, models and inputs."""
    names = ("signature", "instructions", "model", "sub_model")
    compared = [(name, str(getattr(a, name) or ""), str(getattr(b, name) or "")) for name in names]
    inputs = dict.fromkeys([*a.inputs, *b.inputs])
    compared += [(f"input {name}", a.inputs.get(name, ""), b.inputs.get(name, "")) for name in inputs]
    return [one for one in compared if one[1] != one[2]]


def answers(a: Record, b: Record) -> list[Difference]:
    """Return the differences in the output fields and in why the runs ended."""
    fields = dict.fromkeys([*a.outputs, *b.outputs])
    compared = [(name, _written(a.outputs, name), _written(b.outputs, name)) for name in fields]
    return [one for one in [*compared, ("stop", a.stop, b.stop)] if one[1] != one[2]]


def usages(a: Record, b: Record) -> list[Difference]:
    """Return the usage of both runs, including equal figures."""
    first, second = _used(a), _used(b)
    return [(name, first[name], second[name]) for name in first]


def _used(record: Record) -> dict[str, str]:
    usage, steps = record.usage, record.trajectory
    calls = list(all_calls(steps))
    return {
        "turns": f"{len(steps):,}",
        "failed turns": f"{sum(step.failed for step in steps):,}",
        "sub-calls": f"{len(calls):,}",
        "failed sub-calls": f"{sum(bool(call.error) for call in calls):,}",
        "tokens in": f"{usage.input_tokens:,}",
        "tokens in, cached": f"{usage.cached_input_tokens:,}",
        "tokens out": f"{usage.output_tokens:,}",
        "cost": price(usage.cost),
        "time": seconds(usage.seconds),
        "limit reached": usage.limit or "none",
    }


def aligned(a: Sequence[Step], b: Sequence[Step]) -> list[Pair]:
    """Return the turns of two runs in order, paired by similar code.

    Pairs share at least half of their words. Of all ordered pairings, this is the one with the
    largest sum of shares.
    """
    words = [[Counter(_WORDS.findall(step.code or step.reasoning)) for step in steps] for steps in (a, b)]
    best = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]
    alike = [[_alike(one, other) for other in words[1]] for one in words[0]]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], alike[i][j] + best[i + 1][j + 1])
    pairs: list[Pair] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if alike[i][j] and best[i][j] == alike[i][j] + best[i + 1][j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            pairs.append((i, None))
            i += 1
        else:
            pairs.append((None, j))
            j += 1
    return [*pairs, *((n, None) for n in range(i, len(a))), *((None, n) for n in range(j, len(b)))]


def diff_text(a: Record, b: Record, names: tuple[str, str] = ("a", "b")) -> str:
    """Return the differences between two runs as text.

    Args:
        a: One run.
        b: The other.
        names: Their names.
    """
    return _rendered("diff.txt", a, b, names).rstrip("\n")


def diff_html(a: Record, b: Record, names: tuple[str, str] = ("a", "b")) -> str:
    """Return two runs side by side as an HTML page, as `page.report_html` makes them.

    Args:
        a: One run.
        b: The other.
        names: Their names.
    """
    return _rendered("diff.html", a, b, names)


def _rendered(name: str, a: Record, b: Record, names: tuple[str, str]) -> str:
    return template(name).render(
        runs=list(zip(names, (a, b), strict=True)),
        asked=settings(a, b),
        answered=answers(a, b),
        used=usages(a, b),
        pairs=[_beside(a.trajectory, b.trajectory, *pair) for pair in aligned(a.trajectory, b.trajectory)],
    )


def _beside(a: Sequence[Step], b: Sequence[Step], i: int | None, j: int | None) -> tuple[list[str], list[Side]]:
    """Return what differs in two turns, and both of them."""
    if i is None or j is None:
        return [], [_alone(a, i), _alone(b, j)]
    code = _marked(highlighted(a[i].code).split("\n"), highlighted(b[j].code).split("\n"))
    differing = [name for name in ("code", "output") if getattr(a[i], name) != getattr(b[j], name)]
    return differing, [(a[i], i + 1, code[0]), (b[j], j + 1, code[1])]


def _alone(steps: Sequence[Step], i: int | None) -> Side:
    return None if i is None else (steps[i], i + 1, highlighted(steps[i].code))


def _marked(first: list[Markup], second: list[Markup]) -> list[Markup]:
    """Return two blocks of code with marks on lines that only one has."""
    mine, theirs = list(first), list(second)
    for kind, i, i_end, j, j_end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if kind != "equal":
            mine[i:i_end] = [Markup("<del>{}</del>").format(line) for line in mine[i:i_end]]
            theirs[j:j_end] = [Markup("<ins>{}</ins>").format(line) for line in theirs[j:j_end]]
    return [Markup("\n").join(lines) for lines in (mine, theirs)]


def _written(outputs: Mapping[str, Any], name: str) -> str:
    if name not in outputs:
        return ""
    value = outputs[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _alike(one: Counter[str], other: Counter[str]) -> float:
    """Return the share of common words of two texts; 0 below one half."""
    both = one.total() + other.total()
    found = 2 * (one & other).total() / both if both else 1.0
    return found if found >= _ALIKE else 0.0
