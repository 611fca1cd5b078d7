"""Limits of providers as pure functions of time: what they accept, and what they say."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Verdict(NamedTuple):
    """What a limit says of a call."""

    accepted: bool
    left: int
    """Calls that would be accepted at once."""
    again: float
    """Seconds until one is, of a refused call."""
    reset: float
    """Seconds until as many are left as may be."""

    @property
    def retry_after(self) -> int:
        """What most say: whole seconds."""
        return max(1, math.ceil(self.again))


Limiter = Callable[[float], Verdict]
"""From a call's time to what is said of it."""


def fixed_window(limit: int) -> Limiter:
    """Accept `limit` calls in each minute of the clock."""
    minute = count = 0

    def ask(now: float) -> Verdict:
        nonlocal minute, count
        if now // 60 != minute:
            minute, count = int(now // 60), 0
        count += 1
        left, ends = limit - count, 60 - now % 60
        return Verdict(left >= 0, max(0, left), ends, ends)

    return ask


def sliding_log(limit: int) -> Limiter:
    """Accept `limit` calls in any 60 seconds."""
    calls: deque[float] = deque()

    def ask(now: float) -> Verdict:
        while calls and calls[0] <= now - 60:
            calls.popleft()
        accepted = len(calls) < limit
        if accepted:
            calls.append(now)
        ends = calls[0] + 60 - now
        return Verdict(accepted, limit - len(calls), ends, ends)

    return ask


def token_bucket(limit: int, burst: float) -> Limiter:
    """Accept a call per token; there are `limit` a minute, and no more than `burst` are kept."""
    rate, tokens, at = limit / 60, burst, 0.0

    def ask(now: float) -> Verdict:
        nonlocal tokens, at
        tokens, at = min(burst, tokens + (now - at) * rate), now
        accepted = tokens >= 1
        tokens -= accepted
        return Verdict(accepted, int(tokens), (1 - tokens) / rate, (burst - tokens) / rate)

    return ask
