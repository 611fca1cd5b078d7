"""What a batch's pace learns where others use the limit too, on a simulated clock."""

from __future__ import annotations

import pytest
from fakes.limiters import Limiter, Verdict, fixed_window
from fakes.paced_calls import Clock, Provider, Simulation, minutes

from workers.routing.pace import LONG, UNASKED, Pace

LIMIT = 600


def beside_live_calls(batch: Simulation, limit: Limiter, each_second: float, seconds: float) -> float:
    """Run a batch beside live calls of its process; returns the share of those that were refused."""
    count, refused, began = int(seconds * each_second), 0, batch.clock.now
    for number in range(count):
        batch.run(began + number / each_second)
        batch.clock.now = max(batch.clock.now, began + number / each_second)
        if not (said := limit(batch.clock.now)).accepted:
            refused += 1
            batch.processes[0].gate.hold(said.retry_after)
    return refused / count


@pytest.mark.parametrize("seconds", [30.0, 180.0])
def test_a_limit_that_live_calls_had_used_up_is_found_again_within_minutes(seconds: float) -> None:
    limit = fixed_window(LIMIT)
    batch = Simulation(Provider(limit, latency=0.2))
    batch.run(300.0)
    beside_live_calls(batch, limit, 20, seconds)
    counts = minutes(batch, 15)
    assert counts[3] > 0.3 * LIMIT
    assert min(counts[5:]) > 0.9 * LIMIT


def test_a_batch_that_looks_for_more_leaves_live_calls_their_part() -> None:
    limit = fixed_window(LIMIT)
    batch = Simulation(Provider(limit, latency=0.2))
    batch.run(300.0)
    assert beside_live_calls(batch, limit, 8, 1200.0) < 0.07


@pytest.mark.parametrize("ends", [290.0, 300.0], ids=["at its pace", "in a rest"])
def test_a_time_without_calls_is_not_taken_for_a_low_limit(ends: float) -> None:
    batch = Simulation(Provider(fixed_window(LIMIT)))
    batch.run(ends)
    gate = batch.processes[0].gate
    for batch.clock.now in (900.0, 901.0, 1800.0, 3589.0, 3590.0):
        gate.hold(5)
        assert gate.pace.rest == 5
    batch.clock.now = 3600.0
    assert min(minutes(batch, 5)) > 0.95 * LIMIT


def test_a_pause_of_a_batch_does_not_lower_what_it_learns_from_the_next_refusal() -> None:
    clock = Clock()
    pace = Pace(clock, rpm=LIMIT)
    for _ in range(3):
        for _ in range(100):
            clock.now += 0.1
            launched = pace.launch(0.01)
        clock.now += 10 * LONG
    clock.now -= 10 * LONG
    pace.refused(launched, 3)
    clock.now += 3
    pace.launch(0.01)
    assert 0.8 * LIMIT < 60 * pace.rate <= LIMIT


def test_a_provider_that_refuses_from_the_first_call_on_is_left_alone_for_longer_and_longer() -> None:
    clock = Clock()
    pace = Pace(clock)
    rests = []
    for _ in range(2000):
        pace.refused(pace.launch(), None)
        rests.append(pace.rest)
        clock.now += pace.rest
    assert rests[:7] == [1, 2, 4, 8, 16, UNASKED, UNASKED]
    assert set(rests[7:]) == {UNASKED}


def test_who_asks_for_too_little_again_and_again_gets_more() -> None:
    window = fixed_window(LIMIT)

    def hasty(now: float) -> Verdict:
        return window(now)._replace(again=0.05)

    found = Simulation(Provider(hasty, exact=True))
    counts = minutes(found, 5)
    assert counts[0] == LIMIT
    assert min(counts) > 0.8 * LIMIT
    assert found.processes[0].figures.refused < 50
