"""Batch calls to one deployment on a simulated clock: real gates, a provider's limit, and what it says of it."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fakes.limiters import Limiter, Verdict

from pipeline.errors import PipelineError, UpstreamOverloaded
from workers.providers._remaining import Remaining
from workers.routing.gate import LOOK_AGAIN, Gate, Ticket

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
    first: Sequence[PipelineError | None] = ()
    """How the first calls end, before the round trip is over."""
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
    error: PipelineError | None = field(compare=False)


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
            process = self.processes[waits.index(min(waits))]
            at = self.clock.now + (min(waits) if min(waits) < math.inf else LOOK_AGAIN)
            at += self._chance.uniform(0, LATE) if at > self.clock.now else 0.0
            if self._answers and self._answers[0].at <= at:
                self._hear(heapq.heappop(self._answers))
            elif at >= until:
                self.clock.now = max(self.clock.now, until)
                return [process.figures for process in self.processes]
            elif min(waits) == math.inf:
                self.clock.now = at
            else:
                self.clock.now = at + EFFORT
                self._call(process)

    def _call(self, process: Process) -> None:
        ticket, number, provider = process.gate.begin(), next(self._numbers), self._provider
        said = provider.limit(self.clock.now + ROUND_TRIP / 2)
        if said.accepted:
            process.figures.accepted += 1
        else:
            process.figures.refused += 1
        again = said.again if provider.exact else said.retry_after
        error = None if said.accepted else UpstreamOverloaded("slow down", retry_after=again)
        seconds = provider.latency if said.accepted or provider.slow_to_refuse else 0.0
        if number < len(provider.first):
            seconds, error = 0.0, provider.first[number]
        back = self.clock.now + seconds + ROUND_TRIP * self._chance.uniform(0.7, 1.3)
        heapq.heappush(self._answers, Answer(back, number, process, ticket, said, error))

    def _hear(self, answer: Answer) -> None:
        self.clock.now = max(self.clock.now, answer.at) + EFFORT
        remaining = self._provider.say(answer.said) if self._provider.headers else None
        answer.process.gate.leave(answer.ticket, answer.error, remaining)


def simulate(limiter: Limiter, seconds: float, processes: int = 1, begin: float = 0.0) -> list[Figures]:
    return Simulation(Provider(limiter), processes, begin).run(begin + seconds)


def minutes(simulation: Simulation, count: int) -> list[int]:
    """Run so many minutes more; returns the calls accepted in each."""
    began, done = simulation.clock.now, sum(process.figures.accepted for process in simulation.processes)
    counts = []
    for minute in range(1, count + 1):
        before, done = done, sum(figures.accepted for figures in simulation.run(began + 60 * minute))
        counts.append(done - before)
    return counts


def unlimited(_: float) -> Verdict:
    return Verdict(accepted=True, left=1, again=0, reset=0)
