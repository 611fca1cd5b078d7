"""The rise of a learned rate."""

from __future__ import annotations

import pytest

from workers.routing.climb import AGAIN, FADE, PROOF, Climb


def test_a_goal_is_reached_within_its_seconds_and_slowly_left() -> None:
    climb = Climb()
    climb.learn(10, 40, 20)
    assert climb.rate == 10
    climb.grow(10)
    assert climb.rate == pytest.approx(20)
    climb.grow(10)
    assert climb.rate == pytest.approx(40)
    climb.grow(30)
    assert climb.rate == pytest.approx(40.4, rel=0.001)
    climb.grow(300)
    assert climb.rate > 70


def test_what_was_proven_is_doubled_towards_after_a_while() -> None:
    climb = Climb()
    climb.prove(80, 2 * PROOF)
    climb.learn(10, 10, 0)
    rates = []
    for _ in range(6):
        climb.grow(AGAIN)
        rates.append(climb.rate)
    assert rates[:4] == pytest.approx([10.3, 20, 40, 80], rel=0.01)
    assert rates[5] == pytest.approx(80)
    climb.grow(10_000 * AGAIN)
    assert climb.rate > 80


def test_what_was_proven_fades_while_less_is_accepted_and_a_short_time_proves_nothing() -> None:
    climb = Climb()
    climb.prove(100, PROOF)
    climb.prove(1000, PROOF / 2)
    assert climb.proven == 100
    climb.prove(25, FADE)
    assert climb.proven == pytest.approx(50)
    climb.prove(60, PROOF)
    assert climb.proven == 60
