"""A turn belongs to one caller at a time, and an interrupt at any step leaves it free."""

from __future__ import annotations

from rlm_dspy.concurrency import turn as turn_module
from rlm_dspy.concurrency.turn import Turn
from tests.interrupting import interrupted_everywhere


def test_a_turn_is_refused_while_another_has_it() -> None:
    turn = Turn()
    with turn.tried() as first:
        with turn.tried() as second:
            assert (first, second, turn.taken) == (True, False, True)
        assert turn.taken
    assert not turn.taken


def test_an_interrupt_at_any_step_leaves_a_turn_free() -> None:
    def takes(turn: Turn) -> bool:
        with turn.tried() as is_free:
            return is_free

    def is_free(turn: Turn) -> None:
        assert takes(turn)

    assert interrupted_everywhere(Turn, takes, is_free, turn_module) > 1
