"""The way of batch calls to one deployment: one after another at its pace, and no more at a time than it bears."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from pipeline.errors import (
    DeadlineExceeded,
    PipelineError,
    UpstreamBusy,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
)
from workers.providers._remaining import Remaining
from workers.routing.allowance import Allowance, Launch
from workers.routing.limit import SLOW, Limit
from workers.routing.pace import Pace

PATIENCE: Final = 2.0
"""Seconds a call may wait in its slot."""

EARLY: Final = 1.0
"""Seconds before its turn that a call which was put off is back: what moves it is that late at most."""

FAR: Final = 60.0
"""Seconds for which turns are given out; who comes later is to ask again, after half of that at least."""

LOOK_AGAIN: Final = 0.5
"""Seconds after which those are looked for again who wait for the end of calls that may hang."""

SOON: Final = 0.25


class Postponed(Exception):
    """A call's turn is too far away to wait for it in a slot: in so many seconds, or not known yet (`far`)."""

    def __init__(self, seconds: float, *, far: bool) -> None:
        super().__init__(f"not before {seconds:.3g} s from now")
        self.seconds = seconds
        self.far = far


class Ticket(NamedTuple):
    """A call under way."""

    launched: int
    cohort: int
    at: float
    launch: Launch


class Gate:
    """Lets the batch lane's calls to one deployment through, and learns from how they end."""

    def __init__(self, clock: Callable[[], float], chance: random.Random, rpm: int | None = None) -> None:
        """Make one; `rpm` is the deployment's limit as far as it is configured, in calls a minute."""
        self.pace = Pace(clock, rpm)
        self.limit = Limit()
        self._allowance = Allowance(clock)
        self._clock = clock
        self._chance = chance
        self._waiting: deque[asyncio.Future[Ticket]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0
        self._seconds = 0.0
        """Of a call that is answered, on average."""
        self._lately = 0.0
        """Seconds of the one that was answered last."""
        self._given_out = 0.0
        """Until when turns are given out to calls that were put off."""

    def delay(self) -> float:
        """Return the seconds a call that comes now would wait; 0 when it may begin."""
        return self._delay_behind(len(self._waiting))

    def _delay_behind(self, others: int) -> float:
        wait = self.pace.wait
        if not others and self._room >= 1:
            return wait
        # Of a pace that is still being looked for nothing can be said, and it will be found within seconds.
        paced = wait + others / self.pace.rate if self.pace.known else self.pace.rest
        before = others + 1 - self._room
        return max(paced, before * self._seconds / self.limit.value if before > 0 else 0.0)

    async def enter(self) -> Ticket:
        """Wait for a call's turn. Raises Postponed when that would take too long; `leave` must follow otherwise."""
        if not self._waiting and not self.opens():
            return self.begin()
        if self.delay() > PATIENCE:
            raise self.postponed()
        turn: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._set_timer()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.limit.in_flight -= 1  # it came at the last moment
                self._release()
            raise

    def leave(self, ticket: Ticket, error: PipelineError | None = None, remaining: Remaining | None = None) -> None:
        """Take note of how a call ended and what the provider says is left, and let the next through."""
        if error is None or isinstance(error, UpstreamRejected):  # how soon it fails says nothing of its answers
            self._measure(self._clock() - ticket.at)
        limited = isinstance(error, UpstreamOverloaded)
        spent = self._allowance.told(ticket.launch, remaining) if remaining is not None else None
        asked = error.retry_after if error is not None else None
        if limited and asked is None:
            asked = spent
        overload = _overload(error)
        self.limit.end(ticket.cohort, 1.0 if limited and not asked else overload)
        if limited or (overload and asked):
            self.pace.refused(ticket.launched, asked)
            self._shed()
        elif spent is not None and self.pace.believes(spent):
            self.hold(spent)
        elif overload:
            self.pace.failed(ticket.launched)
        self._release()

    def _measure(self, seconds: float) -> None:
        self._lately = seconds
        self._seconds += 0.1 * (seconds - self._seconds) if self._seconds else seconds

    def hold(self, retry_after: float | None) -> None:
        """Rest: the provider's limit was met by a call of the other lane, or is by its own word."""
        self.pace.limited(retry_after)
        self._shed()

    def postponed(self, least: float = 0.0) -> Postponed:
        """Return when a call that cannot wait is to come back: those who are told come back one after another."""
        now, rate = self._clock(), self._rate()
        first = now + max(least, self.delay())
        turn = max(self._given_out, first) + 1 / rate
        if turn - now > FAR:
            return Postponed(max(least, self.pace.rest, FAR / 2) + self._chance.uniform(0, FAR / 2), far=True)
        self._given_out = turn
        return Postponed(max(SOON, turn - now - EARLY), far=False)

    def _rate(self) -> float:
        return min(self.pace.rate, self.limit.value / self._seconds if self._seconds else self.pace.rate)

    def opens(self) -> float:
        """Return the seconds until a call may begin; infinite while one under way has to end first."""
        return self.pace.wait_beside(self.limit.in_flight) if self._room >= 1 else math.inf

    @property
    def _room(self) -> float:
        under_way = self.limit.in_flight
        if self.pace.known:
            return self.limit.room
        return min(self.limit.room, self.pace.most - under_way, self._allowance.room(under_way))

    def begin(self) -> Ticket:
        """Count a call that begins; `leave` must follow."""
        launched = self.pace.launch(self._lately)
        return Ticket(launched, self.limit.begin(), self._clock(), self._allowance.begin())

    def _release(self) -> None:
        while self._waiting and not self.opens():
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self.begin())
        self._set_timer()

    def _set_timer(self) -> None:
        if not self._waiting or self.limit.room < 1:
            return
        now = self._clock()
        seconds = min(self.opens(), LOOK_AGAIN)
        if self._timer is not None:
            if self._fires_at <= now + seconds:
                return
            self._timer.cancel()
        self._fires_at = now + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._release()

    def _shed(self) -> None:
        """Put off those whose turn is far away now."""
        self._given_out = 0.0
        self._allowance.forget()
        later = []
        while self._waiting and self._delay_behind(len(self._waiting) - 1) > PATIENCE:
            later.append(self._waiting.pop())
        for turn in reversed(later):  # who waited first comes back first
            if not turn.done():
                turn.set_exception(self.postponed())


def _overload(error: PipelineError | None) -> float:
    """Return what an error counts as an overload by too many calls in flight."""
    match error:
        case DeadlineExceeded() | UpstreamTimeout(upstream_status=0):  # our own word; the provider may be well
            return SLOW
        case UpstreamBusy() | UpstreamTimeout():
            return 1.0
        case _:
            return 0.0
