"""How a deployment is called until its limit is met, on a simulated clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from fakes.limiters import Limiter, fixed_window, sliding_log
from fakes.paced_calls import Clock, Provider, Simulation, unlimited

from pipeline.errors import PipelineError, UpstreamOverloaded, UpstreamUnavailable
from workers.routing.pace import IDLE, Pace
from workers.routing.ramp import Ramp


@pytest.mark.parametrize("limit", [60, 600, 6000])
@pytest.mark.parametrize("kind", [fixed_window, sliding_log])
@pytest.mark.parametrize("latency", [0.0, 1.0])
def test_the_first_minute_wastes_little_where_refusals_are_quick(
    kind: Callable[[int], Limiter], limit: int, latency: float
) -> None:
    (found,) = Simulation(Provider(kind(limit), latency)).run(59.0)
    assert found.accepted >= 0.95 * limit
    assert found.waste < 0.02


SLOW = {0.02: 0.03, 0.1: 0.1, 0.2: 0.15}
"""Seconds after which a refusal is heard of, and the share of the first window that may be under way then."""


@pytest.mark.parametrize("latency", SLOW)
def test_who_refuses_slowly_is_called_more_carefully(latency: float) -> None:
    for limit in (600, 6000):
        (found,) = Simulation(Provider(fixed_window(limit), latency, slow_to_refuse=True)).run(59.0)
        assert found.accepted == limit
        assert found.refused < SLOW[latency] * limit


SECONDS = {0.0: 6, 0.1: 10, 0.5: 10, 2.0: 8}
"""What a call takes, and when a process is to make all the calls it can; the clock's own round trip comes to it."""


@pytest.mark.parametrize("latency", SECONDS)
def test_without_a_limit_thousands_of_calls_a_second_are_reached_within_seconds(latency: float) -> None:
    found = Simulation(Provider(unlimited, latency))
    found.run(SECONDS[latency])
    (process,) = found.processes
    before = process.figures.accepted
    found.run(SECONDS[latency] + 1)
    assert process.gate.limit.in_flight > 2500 * latency
    assert process.figures.accepted - before > 2000  # with the end of earlier calls, all that it can make
    assert not process.gate.pace.known


def test_a_provider_without_latency_is_called_at_full_speed_within_two_seconds() -> None:
    clock = Clock()
    pace = Pace(clock)
    while pace.rate < 4000:
        clock.now += pace.wait
        pace.launch(0.001)
    assert clock.now < 2
    while pace.rate < math.inf:
        clock.now += pace.wait
        pace.launch(0.001)
    assert clock.now < 3
    clock.now += pace.wait
    for _ in range(10):
        pace.launch(0.001)
    assert pace.wait == 0
    clock.now += 2 * IDLE
    pace.launch(0.001)
    assert pace.rate < 300


def test_what_waits_for_this_process_alone_is_bounded_until_a_limit_is_unlikely() -> None:
    clock = Clock()
    pace = Pace(clock)
    most = {}
    for number in range(20_001):
        clock.now += pace.wait
        pace.launch(0.3 if number > 500 else 0.001)  # a process that cannot do what it began
        most[number] = pace.most
    assert most[600] < 20
    assert most[6000] < 0.03 * 6000
    assert most[20_000] > 500
    before = pace.most
    clock.now += 5
    assert pace.most - before == pytest.approx(5, abs=0.1)  # those under way may hang


QUICK = {
    "answered from a cache": [None] * 10,
    "while the provider starts": [UpstreamUnavailable("cannot be reached")] * 40,
    "refused": [UpstreamOverloaded("slow down", retry_after=1.0)],
}


@pytest.mark.parametrize("first", QUICK.values(), ids=QUICK)
def test_first_calls_that_end_at_once_do_not_keep_a_slow_provider_at_few_calls(
    first: Sequence[PipelineError | None],
) -> None:
    found = Simulation(Provider(unlimited, latency=10.0, first=first))
    found.run(15.0)
    (process,) = found.processes
    assert process.gate.limit.in_flight > 200


def test_calls_that_waited_while_the_process_stood_still_do_not_make_a_slow_provider() -> None:
    ramp = Ramp()
    for _ in range(100):
        ramp.grow(0.01, 0.0)
    before = ramp.most
    for _ in range(3):
        ramp.grow(0.31, 0.3)
    assert ramp.most < 1.1 * before
    ramp.grow(5.0, 0.3)
    assert ramp.most > 5 * before
