"""The pace of batch calls against simulated limits, on a simulated clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from fakes.limiters import Limiter, Verdict, fixed_window, sliding_log, token_bucket
from fakes.paced_calls import Clock, Provider, Simulation, minutes, simulate, unlimited

from workers.providers._errors import LONGEST_REST
from workers.providers._remaining import Remaining
from workers.routing.pace import UNASKED, Pace

KINDS = pytest.mark.parametrize(
    "kind",
    [fixed_window, sliding_log, lambda limit: token_bucket(limit, max(10, limit / 60))],
    ids=["fixed window", "sliding log", "token bucket"],
)


MINUTES = {60: 20, 600: 5, 6000: 3, 60_000: 1}


@pytest.mark.parametrize("limit", MINUTES)
@KINDS
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


@pytest.mark.parametrize(("left", "slow"), [(10, 2), (0, 1)])
def test_a_period_that_others_had_used_up_misleads_for_a_minute_only(left: int, slow: int) -> None:
    limit = fixed_window(6000)
    for _ in range(6000 - left):
        limit(10.0)
    found = Simulation(Provider(limit), begin=10.0)
    found.run(60.0)
    counts = minutes(found, 8)
    assert min(counts[slow - 1 :]) > 0.95 * 6000
    assert found.processes[0].figures.waste < 0.02


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


@pytest.mark.parametrize(("limit", "burst"), [(60, 60), (60, 10), (90, 10), (120, 5), (600, 10), (600, 1), (6000, 10)])
@pytest.mark.parametrize("exact", [False, True])
def test_a_bucket_of_any_size_is_emptied_at_the_pace_at_which_it_fills(limit: int, burst: int, exact: bool) -> None:
    (found,) = Simulation(Provider(token_bucket(limit, burst), exact=exact)).run(240.0)
    assert found.accepted >= (0.95 if burst > 1 else 0.88) * 4 * limit
    assert found.waste < 0.022


@KINDS
@pytest.mark.parametrize("limit", [60, 3000])
def test_a_limit_that_is_configured_is_kept_to_from_the_first_call_on(
    kind: Callable[[int], Limiter], limit: int
) -> None:
    (found,) = Simulation(Provider(kind(limit), latency=1.0, slow_to_refuse=True), rpm=limit).run(120.0)
    assert found.accepted >= 0.95 * 2 * limit
    assert not found.refused


def test_quick_answers_do_not_lead_beyond_a_configured_limit() -> None:
    found = Simulation(Provider(unlimited), rpm=60_000)
    counts = [0]
    for second in range(1, 8):
        (figures,) = found.run(second)
        counts.append(figures.accepted)
    assert max(after - before for before, after in itertools.pairwise(counts)) <= 1050
    assert counts[-1] - counts[-2] >= 900


def test_a_limit_that_is_lower_than_the_one_configured_is_learned() -> None:
    (found,) = Simulation(Provider(fixed_window(600)), rpm=900).run(300.0)
    assert found.accepted >= 0.95 * 600 * 5
    assert found.waste < 0.02


@KINDS
@pytest.mark.parametrize(("limit", "latency"), [(60, 0.0), (60, 0.2), (600, 0.2), (3000, 0.0)])
def test_who_says_what_is_left_refuses_hardly_a_call(
    kind: Callable[[int], Limiter], limit: int, latency: float
) -> None:
    provider = Provider(kind(limit), latency, slow_to_refuse=True, headers=True)
    (found,) = Simulation(provider).run(180.0)
    assert found.accepted >= 0.95 * 3 * limit
    assert found.waste < 0.015
    (first,) = Simulation(provider, begin=600.0).run(659.0)
    assert first.accepted >= 0.94 * limit
    assert first.waste < 0.013


@pytest.mark.parametrize("burst", [200, 600])
def test_a_bucket_that_says_when_it_will_be_full_is_used_as_well(burst: int) -> None:
    found = Simulation(Provider(token_bucket(600, burst), latency=0.2, headers=True))
    assert min(minutes(found, 10)) >= 0.95 * 600
    assert found.processes[0].figures.waste < 0.01


@pytest.mark.parametrize(
    "say",
    [
        lambda _: Remaining(0, None),
        lambda _: Remaining(0, 60.0),
        lambda _: Remaining(1, None),
        lambda _: Remaining(5, 60.0),
        lambda said: Remaining(said.left % 2, 60.0),
    ],
    ids=["0", "0 for a minute", "1", "5 for a minute", "0 and 1 in turn"],
)
@pytest.mark.parametrize("latency", [0.0, 1.0])
def test_a_provider_that_says_what_is_not_so_is_called_as_fast_as_it_serves(
    say: Callable[[Verdict], Remaining], latency: float
) -> None:
    turns = itertools.count()

    def plenty(_: float) -> Verdict:
        return Verdict(accepted=True, left=next(turns), again=0, reset=0)

    found = Simulation(Provider(plenty, latency, headers=True, say=say))
    (figures,) = found.run(1.0)
    for second in range(2, 40):
        before = figures.accepted
        found.run(second)
        if figures.accepted - before > 500:
            return
    raise AssertionError(f"{figures.accepted - before} calls in the last second")


def test_a_limit_with_years_to_its_reset_is_not_waited_for() -> None:
    provider = Provider(fixed_window(600), headers=True, say=lambda said: Remaining(said.left, 1e9))
    (found,) = Simulation(provider).run(180.0)
    assert found.accepted >= 0.95 * 3 * 600
    assert found.waste < 0.02


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
    assert pace.rest == LONGEST_REST


def test_a_time_in_which_everything_is_refused_is_not_taken_for_the_limit() -> None:
    clock = Clock()
    pace = Pace(clock)
    while clock.now < 30:
        clock.now += max(pace.wait, 0.005)
        pace.launch(0.005)
    while clock.now < 40:
        calls = [pace.launch(0.005) for _ in range(5)]
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
