"""Compares two runs side by side: task and models, answers, usage, and turn by turn."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rlm_dspy.observe.formatting import all_calls
from rlm_dspy.observe.report.page import answer
from rlm_dspy.observe.report.rendering import highlighted, template
from rlm_dspy.text import counted, one_line, price, seconds
from rlm_dspy.trajectory import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rlm_dspy.observe.record import Record
    from rlm_dspy.observe.report.page import AnswerView
    from rlm_dspy.trajectory import Mark, Step

_ALIKE = 0.5
_WORDS = re.compile(r"\w+|[^\w\s]")
_VALUE_CHARS = 300
Pair = tuple[int | None, int | None]
"""The indices of two similar turns; None where a run has no such turn."""
Difference = tuple[str, str, str]
"""A name, and its value in each of the two runs."""


@dataclass(frozen=True)
class RunView:
    """The head of one of the two runs."""

    name: str
    model: str
    answer: AnswerView


@dataclass(frozen=True)
class SideView:
    """A turn of one run; the lines of its code that the other run lacks are marked."""

    step: Step
    number: int
    mark: Mark
    about: str
    code: Markup


@dataclass(frozen=True)
class PairView:
    """Turns that stand side by side; None on the side that has no turn like the other."""

    same: bool
    sides: tuple[SideView | None, SideView | None]


@dataclass(frozen=True)
class DiffView:
    """All data that the page of two runs shows."""

    runs: tuple[RunView, ...]
    asked: list[Difference]
    used: list[Difference]
    pairs: tuple[PairView, ...]


def settings(a: Record, b: Record) -> list[Difference]:
    """Return the differences in signature, instructions, models and inputs."""
    names = ("signature", "instructions", "model", "sub_model")
    told = [(name, str(getattr(a, name) or ""), str(getattr(b, name) or "")) for name in names]
    inputs = dict.fromkeys([*a.inputs, *b.inputs])
    told += [(f"input {name}", a.inputs.get(name, ""), b.inputs.get(name, "")) for name in inputs]
    return [one for one in told if one[1] != one[2]]


def answers(a: Record, b: Record) -> list[Difference]:
    """Return the differences in the output fields and in why the runs ended."""
    fields = dict.fromkeys([*a.outputs, *b.outputs])
    told = [(name, _written(a.outputs, name), _written(b.outputs, name)) for name in fields]
    return [one for one in [*told, ("stop", a.stop, b.stop)] if one[1] != one[2]]


def usages(a: Record, b: Record) -> list[Difference]:
    """Return the usage of both runs, equal figures included."""
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
    """Return the turns of two runs in order, those with similar code as pairs.

    The pairs share at least half of their words. Of all ways to pair the turns in order, it is the one with the
    largest sum of these shares.
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
    lines = [f"a: {names[0]}", f"b: {names[1]}"]
    for title, told in (("asked", settings(a, b)), ("answered", answers(a, b))):
        lines += ["", f"{title}:" if told else f"{title}: the same"]
        lines += [line for name, first, second in told for line in (f"  {name}", *_two_lines(first, second))]
    lines += ["", "used:"]
    lines += [f"  {name}: {x}" + ("" if x == y else f" -> {y}") for name, x, y in usages(a, b)]
    return "\n".join([*lines, "", "turns:", *_turn_lines(a.trajectory, b.trajectory)])


def _two_lines(first: str, second: str) -> list[str]:
    told = (one_line(text, _VALUE_CHARS) for text in (first, second))
    return [f"    {mark} {text}" for mark, text in zip("ab", told, strict=True)]


def _turn_lines(a: Sequence[Step], b: Sequence[Step]) -> Iterator[str]:
    for i, j in aligned(a, b):
        if i is not None and j is not None:
            told = " and ".join(_differing(a[i], b[j]))
            yield f"  a {i + 1} = b {j + 1}: {f'different {told}' if told else 'the same'}"
        elif i is not None:
            yield f"  a {i + 1} only: {KINDS[a[i].kind].label}"
        elif j is not None:
            yield f"  b {j + 1} only: {KINDS[b[j].kind].label}"


def _differing(one: Step, other: Step) -> list[str]:
    return [name for name in ("code", "output") if getattr(one, name) != getattr(other, name)]


def diff_html(a: Record, b: Record, names: tuple[str, str] = ("a", "b")) -> str:
    """Return two runs side by side as an HTML page, as `page.report_html` makes them.

    Args:
        a: One run.
        b: The other.
        names: Their names.
    """
    view = DiffView(
        runs=tuple(RunView(name, run.model, answer(run)) for name, run in zip(names, (a, b), strict=True)),
        asked=settings(a, b),
        used=usages(a, b),
        pairs=tuple(_pair(a.trajectory, b.trajectory, pair) for pair in aligned(a.trajectory, b.trajectory)),
    )
    return template("diff.html").render(view=view)


def _pair(a: Sequence[Step], b: Sequence[Step], pair: Pair) -> PairView:
    i, j = pair
    one, other = (a[i] if i is not None else None), (b[j] if j is not None else None)
    code = _coded(one.code if one else None, other.code if other else None)
    same = one is not None and other is not None and not _differing(one, other)
    return PairView(same, (_side(one, i, code[0]), _side(other, j, code[1])))


def _side(step: Step | None, number: int | None, code: Markup) -> SideView | None:
    if step is None or number is None:
        return None
    about = f"took {seconds(step.seconds)}"
    if step.calls:
        failed = sum(bool(call.error) for call in step.calls)
        about += f" · {counted(len(step.calls), 'sub-call')}" + (f", {failed:,} failed" if failed else "")
    return SideView(step, number + 1, KINDS[step.kind], about, code)


def _coded(one: str | None, other: str | None) -> tuple[Markup, Markup]:
    """Highlight two blocks of code; if both exist, mark the lines that only one has."""
    first, second = (highlighted(code or "").split("\n") for code in (one, other))
    mine, theirs = list(first), list(second)
    if one is not None and other is not None:
        for kind, i, i_end, j, j_end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
            if kind != "equal":
                mine[i:i_end] = [Markup("<del>{}</del>").format(line) for line in mine[i:i_end]]
                theirs[j:j_end] = [Markup("<ins>{}</ins>").format(line) for line in theirs[j:j_end]]
    return Markup("\n").join(mine), Markup("\n").join(theirs)


def _written(outputs: Mapping[str, Any], name: str) -> str:
    if name not in outputs:
        return ""
    value = outputs[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _alike(one: Counter[str], other: Counter[str]) -> float:
    """Return the share of words that two texts have in common; 0 if it is below one half."""
    both = one.total() + other.total()
    found = 2 * (one & other).total() / both if both else 1.0
    return found if found >= _ALIKE else 0.0
