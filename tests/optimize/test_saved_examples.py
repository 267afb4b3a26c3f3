"""Labeled examples among the demos of a program: what of them a saved state and a policy hold."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import dspy
import pandas as pd
import pytest

from rlm_dspy import RLM, Files, Table, Text
from rlm_dspy.optimize import save_policy
from tests.optimize.matrix_checks import asked
from tests.optimize.matrix_programs import SIGNATURE, Two, examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = pd.DataFrame({"amount": range(1_000)})
SUBS: dict[str, Any] = {"count": "passage -> n: int"}


def labeled(program: dspy.Module, answer: Any) -> Any:
    """Return a program with labeled examples, as each of its predictors gets them."""
    return dspy.LabeledFewShot(k=2).compile(
        program, trainset=[each.copy(answer=answer) for each in examples(2, chars=5_000)]
    )


@pytest.mark.parametrize("suffix", ["json", "pkl"])
@pytest.mark.parametrize("make", [lambda: RLM(SIGNATURE, subs=SUBS), Two], ids=["an RLM", "a program"])
def test_a_program_with_labeled_examples_is_saved(make: Callable[[], Any], suffix: str, tmp_path: Path) -> None:
    """As JSON and as pickle; what is loaded sends the same messages."""
    program, path = labeled(make(), "v0"), tmp_path / f"state.{suffix}"
    program.save(str(path))
    loaded = make()
    loaded.load(str(path), allow_pickle=True)
    assert asked(loaded)[1] == asked(program)[1]


@pytest.mark.parametrize("as_dict", [False, True], ids=["examples", "dicts"])
@pytest.mark.parametrize(
    "value",
    [
        Decimal("1.5"),
        math.nan,
        {"a", "b"},
        {15, 7},  # each copy of it iterates in another order
        ROWS,
        dt.timedelta(hours=1),
        [Text("t" * 5_000)],
        Table.open(ROWS),
        Files.open([__file__]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_json_cannot_hold_is_saved_as_it_is_shown(value: Any, as_dict: bool, tmp_path: Path) -> None:
    """In the state of an RLM, with that of its subs, and in a policy; DSPy keeps some demos as plain dicts."""
    rlm = labeled(RLM(SIGNATURE, subs=SUBS), value)
    for predictor in rlm.predictors() if as_dict else []:
        predictor.demos = [dict(demo) for demo in predictor.demos]
    shown = asked(rlm)[1][0][0]["content"]
    rlm.save(str(tmp_path / "state.json"))
    save_policy(rlm, tmp_path / "policy.json", name="p")
    loaded = RLM(SIGNATURE, subs=SUBS)
    loaded.load(str(tmp_path / "state.json"))
    assert asked(loaded)[1][0][0]["content"] == shown
    assert asked(RLM(SIGNATURE, policy=tmp_path / "policy.json"))[1][0][0]["content"].endswith(shown[-100:])


def test_a_query_keeps_no_long_text_of_an_example_that_it_does_not_show(tmp_path: Path) -> None:
    """An example of the whole task is none of a prompt and its answer."""
    labeled(RLM(SIGNATURE), "v0").query.save(str(tmp_path / "query.json"))
    assert (tmp_path / "query.json").stat().st_size < 3_000
