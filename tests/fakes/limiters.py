"""Limits of providers as pure functions of time: what they accept, and what their `Retry-After` says."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

Limiter = Callable[[float], int]
"""From a call's time to 0 when it is accepted, else its `Retry-After`."""


def fixed_window(limit: int) -> Limiter:
    """Accept `limit` calls in each minute of the clock."""
    minute = count = 0

    def ask(now: float) -> int:
        nonlocal minute, count
        if now // 60 != minute:
            minute, count = int(now // 60), 0
        count += 1
        return 0 if count <= limit else math.ceil(60 - now % 60)

    return ask


def sliding_log(limit: int) -> Limiter:
    """Accept `limit` calls in any 60 seconds."""
    calls: deque[float] = deque()

    def ask(now: float) -> int:
        while calls and calls[0] <= now - 60:
            calls.popleft()
        if len(calls) < limit:
            calls.append(now)
            return 0
        return max(1, math.ceil(calls[0] + 60 - now))

    return ask


def token_bucket(limit: int, burst: float) -> Limiter:
    """Accept a call per token; there are `limit` a minute, and no more than `burst` are kept."""
    rate, tokens, at = limit / 60, burst, 0.0

    def ask(now: float) -> int:
        nonlocal tokens, at
        tokens, at = min(burst, tokens + (now - at) * rate), now
        if tokens < 1:
            return math.ceil((1 - tokens) / rate)
        tokens -= 1
        return 0

    return ask
