"""Chooses the demos of a run from a larger pool: those whose tasks are worded most like its own.

Nearness is that of the instructions and small inputs plus that of the fields. Each is the cosine of two sets of
character trigrams, weighted by their rarity in the pool. No model is asked, and long inputs are not read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from rlm_dspy.prompt.adapter import is_labeled, label, longest_of_each_run
from rlm_dspy.signatures import Environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dspy

_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"\w+")


def demos_for_run(act: dspy.Predict, here: Environment, count: int | None) -> list[dict[str, Any]] | None:
    """Return the demos that a run shows, in the order of the pool; None for all of them.

    If some demos have long inputs of the types that this run's have, those with others are not shown.

    In this order, runs that show the same demos send the same first messages, so a prompt cache hits.

    Args:
        act: The predictor of the turns; its `demos` are the pool.
        here: The environment of the run.
        count: The maximum number of conversations, and of labeled examples; None for all.
    """
    demos = _for_such_inputs(act.demos, here)
    if count is None:
        return None if len(demos) == len(act.demos) else demos
    labeled = [demo for demo in demos if is_labeled(demo)]
    chosen = [*_nearest(longest_of_each_run(demos), here, count), *_nearest(labeled, here, count)]
    return [demo for demo in demos if any(demo is each for each in chosen)]


def _for_such_inputs(demos: list[dict[str, Any]], here: Environment) -> list[dict[str, Any]]:
    """Return the demos without those whose long inputs are of other types: code for a text does not fit a table.

    Texts of rows, texts of entries and others are types of their own, if there are demos over such a text. All
    demos if none is left.
    """
    shown = [None if is_labeled(demo) else Environment.of(demo["environment"]) for demo in demos]
    for with_form in (True, False):
        wanted = _long_inputs(here, with_form)
        inputs = [set() if each is None else _long_inputs(each, with_form) for each in shown]
        if any(each & wanted for each in inputs):
            break
    fitting = [demo for demo, each in zip(demos, inputs, strict=True) if not (each and wanted) or each & wanted]
    return fitting or demos


def _long_inputs(environment: Environment, with_form: bool) -> set[tuple[str, str]]:
    """Return the types of the long inputs, and of each what it consists of, if that is to be told."""
    return {(each.type, with_form * each.form) for each in environment.variables if each.long}


def _nearest(demos: list[dict[str, Any]], here: Environment, count: int) -> list[dict[str, Any]]:
    """Return the nearest demos, the nearest first; a second one of the same task comes after all other tasks."""
    tasks = [_task_of(demo, here) for demo in demos]
    of_each_part = (_cosines(pool, wanted) for *pool, wanted in zip(*tasks, _wording(here), strict=True))
    near = [sum(parts) for parts in zip(*of_each_part, strict=True)]
    ranked = sorted(range(len(demos)), key=lambda at: (tasks[:at].count(tasks[at]), -near[at]))
    return [demos[at] for at in ranked[:count]]


def _cosines(pool: list[str], wanted: str) -> list[float]:
    """Return how near each text of a pool is to another text, from 0 to 1."""
    grams, asked = [_trigrams(text) for text in pool], _trigrams(wanted)
    found_in = Counter(gram for each in grams for gram in each)

    def weight(some: frozenset[str]) -> float:  # `fsum`: sets have another order in every process
        return math.fsum(math.log(len(pool) / (found_in[gram] or 1)) ** 2 for gram in some)

    return [weight(each & asked) / (math.sqrt(weight(each) * weight(asked)) or 1) for each in grams]


def _trigrams(text: str) -> frozenset[str]:
    """Return the trigrams of the words of a text; all digits count as the same."""
    words = _WORD.findall(_DIGIT.sub("0", text.casefold()))
    return frozenset(f" {word} "[at : at + 3] for word in words for at in range(len(word)))


def _task_of(demo: Mapping[str, Any], here: Environment) -> tuple[str, str]:
    """Return what a demo asks: its small inputs, and its fields.

    Of a labeled example, the fields that are small inputs of the run `here`; all fields if it has none of them.
    """
    if not is_labeled(demo):
        return _wording(Environment.of(demo["environment"]))
    fields = dict(demo)
    small = [variable.name for variable in here.variables if not variable.long and variable.name in fields]
    return " ".join(label(fields[name]) for name in small or fields), " ".join(fields)


def _wording(environment: Environment) -> tuple[str, str]:
    """Return what an environment asks: its instructions with the small inputs, and its fields with their types."""
    variables, outputs = environment.variables, environment.outputs
    small = " ".join([environment.task, environment.text, *(v.value for v in variables if not v.long)])
    return small, " ".join([*(f"{v.name} {v.type} {v.note}" for v in variables), *map(str, outputs)])
