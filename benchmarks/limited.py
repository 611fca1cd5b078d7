"""`python -m benchmarks.limited`: an upstream that answers N calls a minute, and the others with `Retry-After`."""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from benchmarks import rig, upstreams

OK: Final = upstreams.http(rig.COMPLETION)
REFUSED: Final = b"HTTP/1.1 429 Too Many\r\nretry-after: %d\r\ncontent-length: 2\r\n\r\n{}"


class Limiter(Protocol):
    """Counts calls by some rule."""

    def ask(self, now: float) -> int:
        """Return 0 when a call is accepted, else the `Retry-After` of its refusal."""


class Window:
    """N calls in each minute, counted from the first call on."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._began: float | None = None
        self._minute = 0
        self._count = 0

    def ask(self, now: float) -> int:
        """Return 0 when a call is accepted, else the `Retry-After` of its refusal."""
        self._began = now if self._began is None else self._began
        minute, second = divmod(now - self._began, 60)
        if minute != self._minute:
            self._minute, self._count = int(minute), 0
        self._count += 1
        return 0 if self._count <= self._limit else math.ceil(60 - second)


class Log:
    """N calls in any 60 seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: deque[float] = deque()

    def ask(self, now: float) -> int:
        """Return 0 when a call is accepted, else the `Retry-After` of its refusal."""
        while self._calls and self._calls[0] <= now - 60:
            self._calls.popleft()
        if len(self._calls) < self._limit:
            self._calls.append(now)
            return 0
        return max(1, math.ceil(self._calls[0] + 60 - now))


class Bucket:
    """N tokens a minute, of which it keeps those of one second."""

    def __init__(self, limit: int) -> None:
        self._rate = limit / 60
        self._most = max(10.0, self._rate)
        self._tokens = self._most
        self._at = 0.0

    def ask(self, now: float) -> int:
        """Return 0 when a call is accepted, else the `Retry-After` of its refusal."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return math.ceil((1 - self._tokens) / self._rate)
        self._tokens -= 1
        return 0


LIMITERS: Final[dict[str, Callable[[int], Limiter]]] = {"window": Window, "log": Log, "bucket": Bucket}


class Server(upstreams.Wire):
    """One connection; `GET` tells what was accepted and refused so far."""

    counts: Final = [0, 0]

    def __init__(self, limiter: Limiter, latency: float) -> None:
        self._limiter = limiter
        self._latency = latency

    def take(self, call: bytes) -> None:
        """Answer, or refuse."""
        if call.startswith(b"GET"):
            self._transport.write(upstreams.http(self.counts))
            return
        seconds = self._limiter.ask(time.time())
        self.counts[bool(seconds)] += 1
        if seconds:
            self._transport.write(REFUSED % seconds)
        elif self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._transport.write, OK)
        else:
            self._transport.write(OK)


async def serve(limiter: Limiter, latency: float) -> None:
    """Serve until the process ends."""
    server = await upstreams.listen(lambda: Server(limiter, latency))
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=sorted(LIMITERS), default="window")
    parser.add_argument("--rpm", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    asyncio.run(serve(LIMITERS[options.kind](options.rpm), options.latency))


if __name__ == "__main__":
    main()
