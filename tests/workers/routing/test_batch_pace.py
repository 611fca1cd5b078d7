"""The pace of batch calls against simulated limits, on a simulated clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fakes.limiters import Limiter, fixed_window, sliding_log, token_bucket

from workers.routing.pace import FULL, IDLE, LONGEST, UNASKED, Pace

ROUND_TRIP = 0.01
LATE = 0.003
"""Seconds a timer is late at most."""


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Figures:
    accepted: int = 0
    refused: int = 0

    @property
    def waste(self) -> float:
        return self.refused / (self.accepted + self.refused)


def simulate(limiter: Limiter, seconds: float, processes: int = 1, begin: float = 0.0) -> list[Figures]:
    """Call as fast as the paces allow; a refusal is heard of a round trip later."""
    clock, chance, numbers = Clock(begin), random.Random(7), itertools.count()
    paces = [Pace(clock) for _ in range(processes)]
    figures = [Figures() for _ in paces]
    heard: list[tuple[float, int, int, int, int]] = []
    while True:
        turns = ((clock.now + pace.wait, number) for number, pace in enumerate(paces))
        at, number = min(turns)
        at += chance.uniform(0, LATE) if at > clock.now else 1 / FULL
        if heard and heard[0][0] <= at:
            arrives, _, whose, launched, retry_after = heapq.heappop(heard)
            clock.now = max(clock.now, arrives)
            paces[whose].refused(launched, retry_after)
            continue
        clock.now = at
        if at >= begin + seconds:
            return figures
        if paces[number].wait:
            continue
        launched = paces[number].launch()
        if retry_after := limiter(clock.now + ROUND_TRIP / 2):
            figures[number].refused += 1
            back = clock.now + ROUND_TRIP * chance.uniform(0.7, 1.5)
            heapq.heappush(heard, (back, next(numbers), number, launched, retry_after))
        else:
            figures[number].accepted += 1


MINUTES = {60: 20, 600: 5, 6000: 3, 60_000: 1}


@pytest.mark.parametrize("limit", MINUTES)
@pytest.mark.parametrize(
    "kind",
    [fixed_window, sliding_log, lambda limit: token_bucket(limit, max(10, limit / 60))],
    ids=["fixed window", "sliding log", "token bucket"],
)
def test_a_limit_is_used_and_hardly_a_call_is_wasted(kind: Callable[[int], Limiter], limit: int) -> None:
    minutes = MINUTES[limit]
    (found,) = simulate(kind(limit), 60 * minutes)
    assert found.accepted >= 0.95 * limit * minutes
    assert found.waste < 0.02


@pytest.mark.parametrize("begin", [13.0, 31.0, 50.0])
def test_it_does_not_matter_where_in_a_window_the_first_call_falls(begin: float) -> None:
    (found,) = simulate(fixed_window(600), 300 - begin, begin=begin)
    assert found.accepted >= 0.95 * 600 * 5
    assert found.waste < 0.02


def test_a_period_that_others_had_used_up_misleads_for_a_minute_only() -> None:
    left = fixed_window(6000)
    for _ in range(5990):
        left(10.0)
    (found,) = simulate(left, 60 * 5 - 10, begin=10.0)
    assert found.accepted >= 10 + 0.85 * 6000 * 3
    assert found.waste < 0.02
    used = fixed_window(6000)
    for _ in range(6000):
        used(10.0)
    (found,) = simulate(used, 60 * 4 - 10, begin=10.0)
    assert found.accepted >= 0.95 * 6000 * 3


def test_a_bucket_that_keeps_a_tenth_of_what_its_retry_after_is_rounded_up_by_is_used_as_well() -> None:
    (found,) = simulate(token_bucket(6000, 10), 240)
    assert found.accepted >= 0.95 * 6000 * 4
    assert found.waste < 0.02


@pytest.mark.parametrize("kind", [fixed_window, sliding_log])
def test_processes_that_know_nothing_of_each_other_share_a_limit(kind: Callable[[int], Limiter]) -> None:
    first, second = simulate(kind(1200), 300, processes=2)
    assert first.accepted + second.accepted >= 0.95 * 1200 * 5
    assert first.refused + second.refused < 0.02 * 1200 * 5
    assert 0.6 < first.accepted / second.accepted < 1.6


def test_a_limit_that_is_raised_is_found_within_minutes() -> None:
    low, high = fixed_window(600), fixed_window(2400)
    (found,) = simulate(lambda now: low(now) if now < 300 else high(now), 1200)
    assert found.accepted > 600 * 5 + 2400 * 15 * 0.6
    assert found.waste < 0.02


def test_without_a_limit_thousands_of_calls_a_second_are_reached_within_two_seconds() -> None:
    clock = Clock()
    pace = Pace(clock)
    while pace.rate < 4000:
        clock.now += pace.wait
        pace.launch()
    assert clock.now < 2
    assert not pace.known
    while pace.rate < math.inf:
        clock.now += pace.wait
        pace.launch()
    assert clock.now < 3
    clock.now += pace.wait
    for _ in range(10):
        pace.launch()
    assert pace.wait == 0
    clock.now += 2 * IDLE
    pace.launch()
    assert pace.rate < 300


def test_a_refusal_begins_a_rest_that_others_prolong_and_never_shorten() -> None:
    clock = Clock(100.0)
    pace = Pace(clock)
    first, second, third = pace.launch(), pace.launch(), pace.launch()
    pace.refused(first, 30)
    assert (pace.rest, pace.wait) == (30, 30)
    pace.refused(second, 40)
    pace.refused(third, 5)
    assert pace.rest == 40
    clock.now += 40
    assert pace.wait == 0
    pace.launch()
    learned = pace.rate
    pace.refused(first, 3)
    assert pace.rest == pytest.approx(3)
    assert pace.rate == learned
    clock.now += 3
    pace.limited(1e9)
    assert pace.rest == LONGEST


def test_a_time_in_which_everything_is_refused_is_not_taken_for_the_limit() -> None:
    clock = Clock()
    pace = Pace(clock)
    while clock.now < 30:
        clock.now += max(pace.wait, 0.005)
        pace.launch()
    while clock.now < 40:
        calls = [pace.launch() for _ in range(5)]
        for launched in calls:
            pace.refused(launched, 1)
        clock.now += pace.wait
    assert pace.rate > 100


def test_a_provider_that_does_not_say_how_long_is_left_alone_for_longer_and_longer() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(20):
        answered = pace.launch()
        clock.now += 0.1
    rests = []
    for _ in range(8):
        pace.refused(answered, None)
        rests.append(pace.rest)
        clock.now += pace.rest
        answered = pace.launch()
        clock.now += 0.01
    assert rests == pytest.approx([1, 2, 4, 8, 16, UNASKED, UNASKED, UNASKED])
    for _ in range(5):
        pace.launch()
    pace.refused(answered, None)
    assert pace.rest == pytest.approx(1)
