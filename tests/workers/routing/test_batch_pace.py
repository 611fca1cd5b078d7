"""The pace of batch calls against simulated limits, on a simulated clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from fakes.limiters import Limiter, Verdict, fixed_window, sliding_log, token_bucket

from pipeline.errors import UpstreamOverloaded
from workers.providers._remaining import Remaining
from workers.routing.gate import Gate, Ticket
from workers.routing.pace import IDLE, LONGEST, UNASKED, Pace

ROUND_TRIP = 0.01
LATE = 0.003
"""Seconds a timer is late at most."""
EFFORT = 0.000125
"""Seconds a process is busy with a call's beginning, and with its end: 4,000 calls a second are all it can make."""


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Provider:
    """A limit, and how it is told."""

    limit: Limiter
    latency: float = 0.0
    """Seconds of an accepted call."""
    slow_to_refuse: bool = False
    headers: bool = False
    exact: bool = False
    """It says to a fraction of a second when to ask again."""
    say: Callable[[Verdict], Remaining] = lambda said: Remaining(said.left, said.reset)


@dataclass
class Figures:
    accepted: int = 0
    refused: int = 0

    @property
    def waste(self) -> float:
        return self.refused / (self.accepted + self.refused)


@dataclass
class Process:
    """What makes calls: a gate, and as many calls as it lets through."""

    gate: Gate
    figures: Figures = field(default_factory=Figures)


@dataclass(order=True)
class Answer:
    at: float
    number: int
    process: Process = field(compare=False)
    ticket: Ticket = field(compare=False)
    said: Verdict = field(compare=False)


class Simulation:
    """Processes that call as fast as their gates let them; a refusal is heard of a round trip later."""

    def __init__(self, provider: Provider, processes: int = 1, begin: float = 0.0, rpm: int | None = None) -> None:
        self.clock, self._chance, self._numbers = Clock(begin), random.Random(7), itertools.count()
        self._provider = provider
        self.processes = [Process(Gate(self.clock, self._chance, rpm)) for _ in range(processes)]
        self._answers: list[Answer] = []

    def run(self, until: float) -> list[Figures]:
        while True:
            waits = [process.gate.opens() for process in self.processes]
            at, process = self.clock.now + min(waits), self.processes[waits.index(min(waits))]
            at += self._chance.uniform(0, LATE) if at > self.clock.now else 0.0
            if self._answers and self._answers[0].at <= at:
                self._hear(heapq.heappop(self._answers))
            elif at >= until:
                return [process.figures for process in self.processes]
            else:
                self.clock.now = at + EFFORT
                self._call(process)

    def _call(self, process: Process) -> None:
        ticket = process.gate.begin()
        said = self._provider.limit(self.clock.now + ROUND_TRIP / 2)
        if said.accepted:
            process.figures.accepted += 1
        else:
            process.figures.refused += 1
        seconds = self._provider.latency if said.accepted or self._provider.slow_to_refuse else 0.0
        back = self.clock.now + seconds + ROUND_TRIP * self._chance.uniform(0.7, 1.3)
        heapq.heappush(self._answers, Answer(back, next(self._numbers), process, ticket, said))

    def _hear(self, answer: Answer) -> None:
        self.clock.now = max(self.clock.now, answer.at) + EFFORT
        said = answer.said
        again = said.again if self._provider.exact else said.retry_after
        error = None if said.accepted else UpstreamOverloaded("slow down", retry_after=again)
        answer.process.gate.leave(answer.ticket, error, self._provider.say(said) if self._provider.headers else None)


def simulate(limiter: Limiter, seconds: float, processes: int = 1, begin: float = 0.0) -> list[Figures]:
    return Simulation(Provider(limiter), processes, begin).run(begin + seconds)


def unlimited(_: float) -> Verdict:
    return Verdict(accepted=True, left=1, again=0, reset=0)


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
    assert first.waste < 0.01


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
    assert pace.rest == LONGEST


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
