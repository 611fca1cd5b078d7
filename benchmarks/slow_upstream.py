"""An upstream that takes its time with every call and little of the machine's, in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import AbstractContextManager
from typing import Final

import msgspec

from benchmarks import rig, upstreams

TICK: Final = 0.01
"""Seconds between two looks at which answers are due: a timer a call would cost more."""


class Seen(msgspec.Struct):
    """What the upstream tells who asks it with a GET."""

    in_flight: int = 0
    most: int = 0
    answered: int = 0


class Upstream:
    """Answers every call `latency` seconds after it came."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._answer = upstreams.http(rig.COMPLETION)
        self._waiting: deque[tuple[float, asyncio.Transport]] = deque()
        self.seen = Seen()

    def take(self, data: bytes, transport: asyncio.Transport) -> None:
        """Take a call."""
        if data.startswith(b"GET"):
            self.seen.in_flight = len(self._waiting)
            transport.write(upstreams.http(msgspec.to_builtins(self.seen)))
            return
        self._waiting.append((asyncio.get_running_loop().time() + self._latency, transport))
        self.seen.most = max(self.seen.most, len(self._waiting))

    async def answer(self) -> None:
        """Answer what is due, for ever."""
        loop, waiting = asyncio.get_running_loop(), self._waiting
        while True:
            await asyncio.sleep(TICK)
            while waiting and waiting[0][0] <= loop.time():
                waiting.popleft()[1].write(self._answer)
                self.seen.answered += 1


class Wire(upstreams.Wire):
    """One connection to the upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def data_received(self, data: bytes) -> None:
        """Hand a call on, unread: one this small comes in one piece."""
        self._upstream.take(data, self._transport)


async def serve(latency: float) -> None:
    """Serve until the process is ended."""
    upstream = Upstream(latency)
    await upstreams.listen(lambda: Wire(upstream))
    await upstream.answer()


def slow_upstream(latency: float) -> AbstractContextManager[str]:
    """Run the upstream in a process of its own, and yield its URL."""
    return upstreams.running("slow_upstream", latency)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
