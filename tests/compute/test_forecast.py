"""What the next run is likely to use, from past ones."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from rlm_dspy.compute import forecast
from rlm_dspy.report.record import Digest, Record
from rlm_dspy.usage import RunUsage

if TYPE_CHECKING:
    from rlm_dspy.report.record import Stop


def past(
    tokens: int, *, model: str = "a", signature: str = "x -> y", size: int = 100, stop: Stop = "submitted"
) -> Record:
    """Return the record of a run that cost a dollar for a million tokens."""
    usage = RunUsage(input_tokens=tokens - 1, output_tokens=1, cost=tokens / 1e6, seconds=tokens / 100)
    digests = {"x": Digest(size=size, sha256="", whole=True)}
    return Record(signature=signature, inputs={}, digests=digests, model=model, stop=stop, usage=usage)


def test_of_many_runs_it_is_one_of_them() -> None:
    cast = forecast([past(1_000 * n) for n in range(1, 21)])
    assert (cast.runs, cast.tokens.p50, cast.tokens.p95) == (20, 10_500, 20_000)
    assert cast.cost is not None
    assert (cast.cost.p95, cast.seconds.p95) == (0.02, 200)
    told = "10,500 tokens (95 %: 20,000), $0.01 (95 %: $0.02), 1 min 45 s (95 %: 3 min 20 s), by 20 past runs"
    assert str(cast) == told


def test_of_few_runs_it_is_wider_than_all_of_them() -> None:
    few, more = (forecast([past(1_000), past(2_000)] * times).tokens for times in (1, 5))
    assert few.p95 > more.p95 > 2_000
    assert forecast([past(1_000)]).tokens.p95 > 5_000


def test_runs_of_the_model_and_the_signature_count() -> None:
    runs = [past(10, model="b"), *[past(100)] * 6, *[past(900, signature="other -> y")] * 4]
    assert forecast(runs, model="b").tokens.p50 == 10
    assert forecast(runs, model="a", signature="x -> y").runs == 6
    assert forecast(runs, model="a", signature="other -> y").runs == 10  # four are too few


def test_the_runs_of_the_nearest_size_count() -> None:
    runs = [past(size, size=size) for size in (10, 1_000) for _ in range(60)]
    assert forecast(runs, input_size=9).tokens.p50 == 10
    assert forecast(runs, input_size=5_000).tokens.p50 == 1_000


def test_runs_that_did_not_end_do_not_count() -> None:
    assert forecast([past(5, stop="failed"), past(5, stop="killed"), past(7)]).runs == 1


def test_nothing_to_forecast_from_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"No past run of c to forecast from; log some with RunLog\."):
        forecast([past(5)], model="c")


@pytest.mark.parametrize("count", [3, 8, 30])
def test_runs_stay_within_it_about_as_often_as_it_says(count: int) -> None:
    rng = random.Random(1)
    within = 0
    for _ in range(400):
        *runs, following = (past(round(rng.lognormvariate(9, 0.6))) for _ in range(count + 1))
        within += following.usage.input_tokens < forecast(runs).tokens.p95
    assert within / 400 > 0.92
