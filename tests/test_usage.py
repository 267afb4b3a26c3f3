"""What usages add up to, and what of them is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from rlm_dspy import RLM
from rlm_dspy.usage import Usage
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [(None, None, None), (0.5, None, 0.5), (None, 0.5, 0.5), (0.0, None, 0.0), (0.25, 0.5, 0.75)],
)
def test_costs_add_up_where_one_is_known(one: float | None, other: float | None, both: float | None) -> None:
    assert (Usage(cost=one) + Usage(cost=other)).cost == both


@pytest.mark.parametrize(
    ("now", "before", "since"), [(None, None, None), (0.5, None, 0.5), (0.75, 0.5, 0.25), (0.5, 0.5, 0.0)]
)
def test_what_was_used_since_has_a_cost_if_any_is_known(
    now: float | None, before: float | None, since: float | None
) -> None:
    assert (Usage(cost=now) - Usage(cost=before)).cost == since


def test_every_field_is_added_and_taken_away() -> None:
    one = Usage(**dict.fromkeys(Usage.model_fields, 3))
    other = Usage(**dict.fromkeys(Usage.model_fields, 2))
    assert set((one + other).model_dump().values()) == {5}
    assert set((one - other).model_dump().values()) == {1}
    assert sum([one, other, other], Usage()) == one + other + other


def test_a_usage_does_not_change() -> None:
    with pytest.raises(ValidationError):
        Usage().calls = 1


def test_a_prediction_has_its_usage_as_plain_data(play: Play) -> None:
    """Dicts all the way down, under these names."""
    usage = play(RLM("q -> answer"), [block("SUBMIT(answer='a')")], q="?").prediction.usage
    of_calls = [*Usage.model_fields]
    own = ["seconds", "waited", "limit", "by_role", "by_model", "reused", "failed", "ad_hoc"]
    assert [*usage] == [*of_calls, *own]
    assert type(usage["by_role"]["act"]) is dict
    assert [*usage["by_role"]["act"]] == [*usage["by_model"]["scripted/lm"]] == of_calls
