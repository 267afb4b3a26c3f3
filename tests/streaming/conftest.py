"""What the tests of streams share."""

from __future__ import annotations

import pytest

from tests.streaming.speaking import Speaks


@pytest.fixture(
    params=[(False, False), (True, False), (False, True), (True, True)],
    ids=["sync", "async", "sync, read by a sync generator", "async, read by a sync generator"],
)
def speak(request: pytest.FixtureRequest) -> Speaks:
    awaited, sync = request.param
    return Speaks(awaited=awaited, sync=sync)
