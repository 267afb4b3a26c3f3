"""`Kept` bounds what is open for clients, never closes what is in use, and closes the rest."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from rlm_dspy.sessions.kept import ConversationBusy, ConversationGone, Kept


class Opened:
    """Remembers whether it was closed, and in which thread."""

    def __init__(self) -> None:
        self.closed: list[int] = []

    def close(self) -> None:
        """Close it."""
        self.closed.append(threading.get_ident())


async def test_the_one_unused_for_longest_is_closed_for_another() -> None:
    """Those in use stay; it is closed in another thread, which may take its time."""
    kept = Kept[str, Opened](2, 60)
    values = {name: Opened() for name in "abcd"}
    for name in "ab":
        kept.add(name, values[name])
    with kept.using("a") as used:
        assert used is values["a"]
        kept.add("c", values["c"])
    kept.add("d", values["d"])
    with pytest.raises(ConversationGone, match="Begin another"):
        kept.get("b")
    await kept.close()
    assert [len(each.closed) for each in values.values()] == [1, 1, 1, 1]
    assert threading.get_ident() not in values["b"].closed


async def test_one_that_is_not_used_for_a_while_is_closed() -> None:
    """The time begins anew with each use, and does not run during it."""
    kept, value = Kept[str, Opened](2, 0.05), Opened()
    kept.add("a", value)
    with kept.using("a"):
        await asyncio.sleep(0.2)
        assert not value.closed
    while not value.closed:  # noqa: ASYNC110 (closed by a thread)
        await asyncio.sleep(0.01)
    with pytest.raises(ConversationGone), kept.using("a"):
        pass


async def test_one_use_at_a_time() -> None:
    """A second is refused, as is closing; afterwards both work, also if the first failed."""
    kept, value = Kept[str, Opened](2, 60), Opened()
    kept.add("a", value)
    with contextlib.suppress(ZeroDivisionError), kept.using("a"):
        with pytest.raises(ConversationBusy), kept.using("a"):
            pass
        with pytest.raises(ConversationBusy):
            kept.discard("a")
        raise ZeroDivisionError
    with kept.using("a"):
        pass
    kept.discard("a")
    with pytest.raises(ConversationGone):
        kept.discard("a")
    await kept.close()
    assert len(value.closed) == 1
