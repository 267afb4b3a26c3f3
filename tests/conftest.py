"""What the tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.playing import play_awaiting, play_blocking

if TYPE_CHECKING:
    from tests.playing import Play


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of tests that take more than ten seconds; `-m "not long"` leaves them out."""
    config.addinivalue_line("markers", "long: takes more than ten seconds")


@pytest.fixture(params=[play_blocking, play_awaiting], ids=["blocking", "awaiting"])
def play(request: pytest.FixtureRequest) -> Play:
    """Call a module in both of its ways: each fact holds for `rlm(...)` and for `await rlm.acall(...)`."""
    play: Play = request.param
    return play
