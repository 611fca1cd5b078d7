"""How fast a deployment may be called on the batch lane, learned from its refusals; pure, with a clock passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from workers.providers._errors import LONGEST_REST
from workers.routing.climb import AGAIN, Climb
from workers.routing.ramp import Ramp

FULL: Final = 20_000.0
"""Calls a second that are as good as no limit for one process."""

MARGIN: Final = 0.98
"""Of what is known to be accepted, what is begun with: the limit is then met again after a minute or two."""

SLACK: Final = 0.025
"""Seconds a late call is made up for: timers are that late on a busy machine."""

SEARCH: Final = 6.0
"""Seconds in which a pace is doubled that was learned once only: others may have had their part of that period."""

HIGHER: Final = 1.25
"""How many times as much is more than chance."""

LONG: Final = 2.5
"""A longer rest ends a period of the provider's; a shorter one may mostly be its rounding up to a whole second."""

MEMORY: Final = 120.0
"""Seconds after which what was accepted counts half."""

IDLE: Final = 60.0
"""Seconds without a call after which what was found of a provider without a limit is out of date."""

UNASKED: Final = 32.0
"""Seconds of the longest rest where the provider does not say how long: 1, 2, 4 … up to these while it refuses."""


class _Cycle(msgspec.Struct):
    """The calls between two rests."""

    began: float
    accepted: float = 0.0
    hit: float = 0.0
    """Calls a second, and when, as the first refusal came."""
    hit_at: float = 0.0
    known: float = 0.0
    """Calls a second that were learned before it; 0 when none were."""


class Pace:
    """
    Spreads calls evenly, at a rate learned from when they were refused.

    Between two rests a provider accepts what its limit is, whatever it counts by; see the decision "A pace learned
    from refusals" for those that round their `Retry-After` up.
    """

    def __init__(self, clock: Callable[[], float], rpm: int | None = None) -> None:
        """Make one; `rpm` is the limit that is configured, in calls a minute."""
        self._clock = clock
        self._configured = MARGIN * rpm / 60 if rpm else math.inf
        self._number = 0
        self._cycle = _Cycle(clock())
        self._last: _Cycle | None = None
        self._resting = False
        self._until = 0.0
        self._next = clock()
        self._guess = self._guessed = 0.5
        """Seconds of a rest, and of the one before, of which the provider says nothing."""
        self._ramp = Ramp()
        self._climb = Climb()
        self._kept = 0.0
        """Calls that a bucket keeps for later, at least; -1 where the provider counts periods instead."""
        self._came_back = 0.0
        """Calls that the limit allowed during this rest; infinite where it is too long for a bucket's."""

    @property
    def known(self) -> bool:
        """Whether calls are at a limit, a learned one or the one configured."""
        return self._climb.base > 0 or self._ramp.rate >= self._configured

    @property
    def rest(self) -> float:
        """Seconds the deployment still rests; 0 when it does not."""
        return max(0.0, self._until - self._clock())

    @property
    def rate(self) -> float:
        """Calls a second; infinite where no limit was met."""
        rate = self._climb.rate if self._climb.base else self._ramp.rate
        return min(rate if rate < FULL else math.inf, self._configured)

    @property
    def most(self) -> float:
        """How many calls may be under way; infinite where a limit was met, for then the rate keeps to it."""
        if self._climb.base:
            return math.inf
        # One more each second in which none began: those under way may hang.
        return self._ramp.most + max(0.0, self._clock() - self._next)

    @property
    def wait(self) -> float:
        """Seconds until the next call may be launched."""
        now = self._clock()
        return max(0.0, self._until - now, self._next - now)

    def wait_beside(self, under_way: int) -> float:
        """
        Return the seconds until the next call may be launched beside so many.

        While no limit is known, few calls under way waste few, at whatever rate they are answered.
        """
        unlimited = not self._climb.base and self._configured == math.inf
        return self.rest if unlimited and under_way + 1 <= self._ramp.few else self.wait

    def launch(self, seconds: float = 0.0) -> int:
        """Count a call; the last answer took so many seconds (0: there is none). Returns what `refused` asks for."""
        now = self._clock()
        if self._resting:
            self._resume(now)
        idle = self._skip(now)
        if idle > IDLE:
            self._ramp = Ramp()
        spacing = 1 / self.rate
        at = max(self._next, now - SLACK)
        self._next = (at if self.known else min(at, now)) + spacing
        self._climb.grow(spacing)
        self._ramp.grow(seconds, idle)
        cycle = self._cycle
        cycle.accepted += 1
        if now - cycle.began > MEMORY:
            cycle.began, cycle.accepted = now - MEMORY / 2, cycle.accepted / 2
        return self._number

    def refused(self, launched: int, retry_after: float | None) -> None:
        """Take note that a call was refused, to be asked again after so many seconds."""
        if launched == self._number:
            self._cycle.accepted -= 1
            self.limited(retry_after)
        else:  # of the time before the last rest: what was sent since then says more
            self._until = max(self._until, self._clock() + min(retry_after or 0.0, LONGEST_REST))

    def failed(self, launched: int) -> None:
        """Take note that a call was not served for another reason: that it was not refused tells nothing."""
        if launched == self._number:
            self._cycle.accepted -= 1

    def limited(self, retry_after: float | None) -> None:
        """Rest: the provider's limit is reached, by whomever."""
        now = self._clock()
        if self._resting and now - self._until > IDLE:
            self._resume(self._until)
        if not self._resting:
            if now - self._next > IDLE:  # who does not call learns nothing from what others meet
                self._until = max(self._until, now + min(retry_after or 1.0, LONGEST_REST))
                return
            self._skip(now)
            self._resting = True
            self._cycle.hit, self._cycle.hit_at = min(self.rate, FULL), now
            self._guessed, self._guess = self._guess, 1.0
        if self._cycle.accepted < 1 and self._cycle is not self._last:
            self._cycle = self._last or self._cycle  # nothing was accepted: the rest before was too short, and goes on
            self._guess = min(UNASKED, 2 * self._guessed)
        # Who asks for too little again and again gets more, by and by.
        asked = max(min(retry_after, LONGEST_REST), (self._guess - 1) / 4) if retry_after else self._guess
        self._until = max(self._until, now + asked)
        self._learn()

    def _skip(self, now: float) -> float:
        """Leave a time in which no call was to be made out of the cycle. Returns how many seconds it is."""
        idle = now - self._next
        if idle > LONG:
            self._cycle.began += idle
            self._next = now
        return idle

    def believes(self, rest: float) -> bool:
        """
        Whether the limit may be met for so many seconds.

        It may not where that would lose more than a tenth of what is known to be accepted: many say when all of their
        limit is back, although a part of it is back at once.
        """
        cycle = self._cycle
        return cycle.accepted >= 0.9 * self._climb.base * (self._clock() - cycle.began + rest)

    def _learn(self) -> None:
        cycle = self._cycle
        if self._last is None and cycle.accepted < 1:  # it had been reached before the first call, and is not known
            self._ramp, self._climb = Ramp(), Climb()
            return
        rest = self._until - cycle.hit_at
        low = self._accepted(cycle)
        high = max(cycle.hit, low)
        self._came_back = low * rest if rest <= LONG else math.inf
        if rest > LONG:
            self._learn_period(low, high)
            return
        if high < 1.2 * low:
            base, goal, seconds = MARGIN * math.sqrt(low * high), MARGIN * high, 40.0
        elif low * rest + 1 <= self._kept:  # all that came back during the rest was kept: that is the limit, about
            accepted = max(cycle.accepted, 1.0)
            base, goal, seconds = MARGIN * low, low * (1 + 1 / accepted), min(120.0, 20 * accepted)
        else:  # most of the time was the rest, and some may be lost, so the limit is somewhere between the two
            base, goal, seconds = low**0.6 * high**0.4, high, max(15.0, 15 * rest) if high < 2 * low else 6.0
        self._climb.learn(base, goal, seconds * max(1.0, 2.5 / base))  # of few calls each refusal counts more

    def _learn_period(self, low: float, high: float) -> None:
        goal = low
        # Where the rate rose within the cycle the limit is between the two; a rest that was tried out is too long.
        if low > HIGHER * self._cycle.known and self._guess <= 1:
            goal = high if self._cycle.known else 2**10 * low
        doubled = AGAIN if self._climb.proven else SEARCH
        self._climb.learn(MARGIN * low, MARGIN * goal, doubled * math.log2(goal / low))

    def _accepted(self, cycle: _Cycle) -> float:
        """Return the calls a second that were accepted in a cycle, its rest included."""
        return max(cycle.accepted, 1.0) / max(self._until - cycle.began, 0.001)

    def _resume(self, now: float) -> None:
        self._resting = False
        self._number += 1
        if self._kept >= 0:
            self._kept = max(self._kept, self._came_back) if self._came_back < math.inf else -1.0
        if self._climb.base:
            self._last = cycle = self._cycle
            if (low := self._accepted(cycle)) <= HIGHER * cycle.known:
                self._climb.prove(low, self._until - cycle.began)
        self._cycle = _Cycle(now, known=self._climb.base)
        self._next = now
