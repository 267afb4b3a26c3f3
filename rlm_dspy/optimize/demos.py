"""Builds demos from runs, and chooses which of them to put into prompts."""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.inputs import HostInput, Text
from rlm_dspy.prompt.adapter import is_labeled
from rlm_dspy.replies.code_blocks import bound_names, parse
from rlm_dspy.text import cut
from rlm_dspy.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlm_dspy.optimize.traced_runs import TracedRun

_REASONING_CHARS = 400
_COMPARED_CHARS = 2_000
_MOST_TURNS = 4
"""Maximum number of turns of a demo, before the last."""
_ITEMS = 4
"""Number of items of a long list or dict that a demo shows."""
_ALIKE = 0.9
"""Two demos with at least this `difflib` ratio of code show the same solution."""


@dataclass(frozen=True)
class Demo:
    """A candidate demo.

    Attributes:
        example: The fields, as in a predictor's `demos`.
        score: The metric's score of the whole call.
        chars: Its length.
        recovered: Whether it shows a failure and its repair.
        nested: Whether it comes from a child.
    """

    example: dspy.Example
    score: float
    chars: int
    recovered: bool = False
    nested: bool = False


def from_run(run: TracedRun, score: float, *, output_chars: int = 400, environment_chars: int = 4_000) -> Demo:
    """Return the demo of a run: its first turn, a failed turn and its repair, the last turn and the one before.

    If there are fewer than four before the last, the latest are added that bind a name which their code uses.
    """
    failed = run.recovered_at
    wanted = {0, len(run.steps) - 1} | (set() if failed is None else {failed, failed + 1})
    wanted = {at for at in wanted if 0 <= at < len(run.steps)}
    binding = _binding([*(step.code for step in run.steps), run.code], wanted)
    kept = sorted(wanted.union(binding[: _MOST_TURNS - len(wanted)]))
    after = [*kept[1:], len(run.steps)][: len(kept)]
    steps = tuple(_short(run.steps[at], upto - at - 1, output_chars) for at, upto in zip(kept, after, strict=True))
    example = dspy.Example(
        augmented=True,
        environment=run.environment.shortened(environment_chars),
        trajectory=Trajectory(steps=steps),
        reasoning=cut(run.reasoning, _REASONING_CHARS),
        code=run.code,
    )
    shown = [str(example.environment), example.reasoning, example.code]
    chars = sum(map(len, shown)) + sum(len(s.reasoning) + len(s.code) + len(s.observation) for s in steps)
    return Demo(example, score, chars, recovered=failed is not None, nested=run.nested)


def _binding(codes: list[str], wanted: set[int]) -> list[int]:
    """Return the turns, the latest first, that bind names which a wanted turn, or the last, uses."""
    needed: set[str] = set()
    binding: list[int] = []
    for at in reversed(range(len(codes))):
        tree = parse(codes[at]) or ast.Module([], [])
        bound = bound_names([tree])
        is_wanted = at in wanted or at == len(codes) - 1
        if is_wanted or bound & needed:
            binding += [] if is_wanted else [at]
            nodes = ast.walk(tree)
            needed = (needed - bound) | {node.id for node in nodes if isinstance(node, ast.Name)}
    return binding


def from_call(
    inputs: Mapping[str, Any], outputs: dspy.Prediction, score: float, *, input_chars: int = 400
) -> Demo:
    """Return the demo of one call of an ordinary predictor, with long input texts cut."""
    short = {name: _short_input(value, input_chars) for name, value in inputs.items()}
    example = dspy.Example(augmented=True, **short, **outputs)
    return Demo(example, score, sum(len(str(value)) for value in example.values()))


def choose(demos: list[Demo], *, max_demos: int, max_chars: int) -> list[Demo]:
    """Choose the demos to show, in the order in which they were found.

    The best score comes first, then the shortest. Among equal scores, a demo whose code resembles a chosen one
    comes last, so that tasks with longer solutions are shown too. The very first demo, one with a recovery and
    one of a child take precedence.

    Args:
        demos: The candidates.
        max_demos: The maximum number.
        max_chars: Their maximum total length.
    """
    distinct: dict[str, Demo] = {}
    for demo in demos:
        distinct.setdefault(str(sorted((name, str(value)) for name, value in demo.example.items())), demo)
    ranked = sorted(distinct.values(), key=lambda demo: (-demo.score, demo.chars))
    kinds: list[Callable[[Demo], bool]] = [lambda _: True, lambda demo: demo.recovered, lambda demo: demo.nested]
    leading = [next((demo for demo in ranked if wanted(demo)), None) for wanted in kinds]
    chosen: list[Demo] = []

    def take(demo: Demo, *, fresh: bool) -> None:
        fits = len(chosen) < max_demos and sum(taken.chars for taken in chosen) + demo.chars <= max_chars
        if fits and not any(demo is taken or (fresh and _alike(demo, taken)) for taken in chosen):
            chosen.append(demo)

    for demo in filter(None, leading):
        take(demo, fresh=False)
    for _, equals in itertools.groupby(ranked, key=lambda demo: demo.score):
        group = list(equals)
        for fresh in (True, False):
            for demo in group:
                take(demo, fresh=fresh)
    return [demo for demo in demos if any(demo is taken for taken in chosen)]


def _alike(one: Demo, other: Demo) -> bool:
    """Whether two demos of `act` run nearly the same code; ordinary demos never count as alike."""
    first, second = _code(one), _code(other)
    return bool(first) and SequenceMatcher(None, first, second, autojunk=False).ratio() > _ALIKE


def _code(demo: Demo) -> str:
    """Return the part of an `act` demo's code to compare; empty for an ordinary demo."""
    if is_labeled(demo.example):
        return ""
    steps = Trajectory.model_validate(demo.example.trajectory).steps
    return "\n".join([*(step.code for step in steps), demo.example.code])[:_COMPARED_CHARS]


def _short(step: Step, left_out: int, output_chars: int) -> Step:
    gap = f"({left_out} turns are left out here.)" if left_out else ""
    return Step(
        reasoning=cut(step.reasoning, _REASONING_CHARS),
        code=step.code,
        output=cut(step.output, output_chars),
        kind=step.kind,
        notice="\n".join(part for part in (step.notice, gap) if part),
    )


def _short_input(value: Any, chars: int) -> Any:
    """Return an input with truncated texts, and long containers reduced to their first items."""
    if isinstance(value, Text | HostInput):
        return repr(value)
    if isinstance(value, str):
        return cut(value, chars)
    if not isinstance(value, list | tuple | dict) or len(str(value)) <= chars:
        return value
    share = max(chars // _ITEMS, 1)
    if isinstance(value, dict):
        return {name: _short_input(item, share) for name, item in list(value.items())[:_ITEMS]}
    kept = [_short_input(item, share) for item in value[:_ITEMS]]
    return tuple(kept) if isinstance(value, tuple) else kept
