"""`python -m benchmarks.streams`: many slow streams at once through one ingress, and how late their events arrive."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import measure, rig, upstreams

REQUEST: Final = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
BODY: Final = json.dumps({"model": "gpt-4", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT: Final = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4","choices":[{"index":0,'
    b'"delta":{"content":"word "},"finish_reason":null}],"at":%.6f}\n\n'
)
DONE: Final = b"data: [DONE]\n\n"
AT: Final = re.compile(rb'"at":([0-9.]+)')
RAMP: Final = 2.0
"""Seconds over which the streams are opened."""


class Upstream(upstreams.Wire):
    """Answers every request with events at a steady rate; each says when it was sent."""

    def __init__(self, rate: float, seconds: float) -> None:
        self._pause = 1 / rate
        self._count = round(rate * seconds)
        self._left = 0

    def take(self, call: bytes) -> None:
        """Begin."""
        self._left = self._count
        self._transport.write(HEAD)
        phase = random.random() * self._pause
        self._next = asyncio.get_running_loop().time() + phase
        asyncio.get_running_loop().call_at(self._next, self._send)

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        if not self._left:
            self._transport.write(_chunk(DONE) + b"0\r\n\r\n")
            return
        self._left -= 1
        self._transport.write(_chunk(EVENT % time.monotonic()))
        self._next += self._pause
        asyncio.get_running_loop().call_at(self._next, self._send)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Client(asyncio.Protocol):
    """Reads one stream and notes how late each event is, in seconds."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.complete = False
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(REQUEST % (len(BODY), BODY))

    def data_received(self, data: bytes) -> None:
        """Note what came; an event is written in one piece, so it hardly ever comes in two."""
        now = time.monotonic()
        self.delays += [now - float(at) for at in AT.findall(data)]
        if DONE.strip() in data:
            self.complete = True
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The stream is over, complete or not."""
        self.ended.set()


async def serve_upstream(rate: float, seconds: float) -> None:
    """Serve until the process is ended."""
    server = await upstreams.listen(lambda: Upstream(rate, seconds))
    await server.serve_forever()


async def read_streams(port: int, count: int) -> list[Client]:
    """Open `count` streams and return them when all are over."""
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(count):
        _, client = await loop.create_connection(Client, "127.0.0.1", port)
        clients.append(client)
        await asyncio.sleep(RAMP / count)
    for client in clients:
        await client.ended.wait()
    return clients


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its figures: milliseconds, megabytes, and CPU in microseconds an event."""
    with (
        tempfile.TemporaryDirectory(prefix="promptmill-streams-") as name,
        upstreams.running("streams", "--upstream", "--rate", options.rate, "--seconds", options.seconds) as url,
        rig.gateway(Path(name), url) as gateway,
    ):
        found = measure.processes(gateway.pid)
        before = {role: sum(map(measure.cpu_seconds, pids)) for role, pids in found.items()}
        clients = asyncio.run(read_streams(int(gateway.url.rpartition(":")[2]), options.streams))
        spent = {role: sum(map(measure.cpu_seconds, pids)) - before[role] for role, pids in found.items()}
        memory = {role: sum(map(measure.rss_bytes, pids)) / 2**20 for role, pids in found.items()}
    delays = sorted(delay for client in clients for delay in client.delays)
    percentiles = statistics.quantiles(delays, n=100, method="inclusive") if len(delays) > 1 else [0.0] * 99
    return {
        "streams": options.streams,
        "events": len(delays),
        "expected": options.streams * round(options.rate * options.seconds),
        "cut": sum(not client.complete for client in clients),
        "p50_ms": percentiles[49] * 1000,
        "p95_ms": percentiles[94] * 1000,
        "p99_ms": percentiles[98] * 1000,
        "cpu_us": {role: 1e6 * seconds / max(1, len(delays)) for role, seconds in spent.items()},
        "rss_mb": memory,
    }


def main() -> int:
    """Measure and print; returns the exit status, 1 when an event was lost."""
    options = _options()
    if options.upstream:
        asyncio.run(serve_upstream(options.rate, options.seconds))
        return 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    figures = run(options)
    if options.json:
        print(json.dumps(figures))
    else:
        _print(figures)
    return 0 if figures["events"] == figures["expected"] and not figures["cut"] else 1


def _print(figures: dict[str, Any]) -> None:
    print(f"events delivered  {figures['events']:,} of {figures['expected']:,}, {figures['cut']} streams cut")
    print("added delay, ms   p50 {p50_ms:.1f}   p95 {p95_ms:.1f}   p99 {p99_ms:.1f}".format(**figures))
    for title, unit in (("cpu_us", "CPU an event, µs"), ("rss_mb", "memory, MB")):
        print(f"{unit:<18}" + ", ".join(f"{role} {value:.0f}" for role, value in sorted(figures[title].items())))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000, help="concurrent streams (default: 1000)")
    parser.add_argument("--rate", type=float, default=10, help="events a second in each (default: 10)")
    parser.add_argument("--seconds", type=float, default=10, help="length of each stream (default: 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
