"""An upstream that takes its time with every call and little of the machine's, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from benchmarks import rig

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
        self._answer = _http(rig.COMPLETION)
        self._waiting: deque[tuple[float, asyncio.Transport]] = deque()
        self.seen = Seen()

    def take(self, data: bytes, transport: asyncio.Transport) -> None:
        """Take a call, all of it: one this small comes in one piece."""
        if data.startswith(b"GET"):
            self.seen.in_flight = len(self._waiting)
            transport.write(_http(msgspec.to_builtins(self.seen)))
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


class Wire(asyncio.Protocol):
    """One connection to the upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand a call on."""
        self._upstream.take(data, self._transport)


def _http(said: dict[str, Any]) -> bytes:
    body = json.dumps(said).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def serve(latency: float) -> None:
    """Serve until the process is ended; says its port on standard output."""
    upstream = Upstream(latency)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Wire(upstream), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await upstream.answer()


@contextmanager
def slow_upstream(latency: float) -> Iterator[str]:
    """Run the upstream and yield its URL."""
    command = [sys.executable, "-m", "benchmarks.slow_upstream", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
