"""`python -m benchmarks.overload`: three times what the workers can do, and what admitted and refused clients see."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio

from benchmarks import measure, rig, upstreams
from benchmarks.openloop import Clients, Result

LATENCY: Final = 0.05
"""Seconds the upstream takes: with `SLOTS` it sets what the gateway can do, whatever the machine."""

SLOTS: Final = 10
SETTLING: Final = 2.0
"""Seconds after the begin of the overload that do not count: the backlog fills."""

SLOW: Final = 10 * LATENCY
"""An answer that took longer is not back to normal."""


class Upstream(upstreams.Wire):
    """Answers every request after `LATENCY`."""

    def take(self, call: bytes) -> None:
        """Answer."""
        asyncio.get_running_loop().call_later(LATENCY, self._transport.write, upstreams.http(rig.COMPLETION))


async def serve_upstream() -> None:
    """Serve until the process is ended."""
    server = await upstreams.listen(Upstream)
    await server.serve_forever()


class Phases:
    """The three loads, one after another, and the memory of every process during the second."""

    def __init__(self, gateway: rig.Gateway, options: argparse.Namespace) -> None:
        self._gateway = gateway
        self._options = options
        self._body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}], "timeout": options.timeout}
        self.memory: list[dict[str, float]] = []

    async def run(self) -> dict[str, Any]:
        """Return the figures: seconds, megabytes, and shares of what the gateway does at its peak."""
        clients = Clients(int(self._gateway.url.rpartition(":")[2]), json.dumps(self._body).encode())
        loop, seconds = asyncio.get_running_loop(), self._options.seconds
        await clients.saturate(2 * SLOTS, 1)
        peak = _goodput(await self._measured(clients, clients.saturate(2 * SLOTS, min(10.0, seconds / 2))))
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._sample)
            begin = loop.time()
            overload = await self._measured(clients, clients.offer(3 * peak, seconds))
            beside.cancel_scope.cancel()
        end = begin + seconds
        after = await self._measured(clients, clients.offer(peak / 2, self._options.after))
        clients.close()
        steady = [r for r in overload if begin + SETTLING <= r.at + r.seconds <= end]
        bad = [r.at + r.seconds - end for r in after if r.status != 200 or r.seconds > SLOW]
        return {
            "peak": peak,
            "goodput": len([r for r in steady if r.status == 200]) / (seconds - SETTLING) / peak,
            "statuses": {str(s): sum(r.status == s for r in overload) for s in sorted({r.status for r in overload})},
            "admitted": _percentiles([r.seconds for r in overload if r.status == 200]),
            "refused": _percentiles([r.seconds for r in overload if r.status == 429]),
            "retry_after": _percentiles([r.retry_after for r in overload if r.status == 429]),
            "recovered": max(bad, default=0.0),
            "rss_mb": self._growth(),
        }

    async def _measured(self, clients: Clients, load: Any) -> list[Result]:
        clients.results = []
        await load
        return clients.results

    async def _sample(self) -> None:
        found = measure.processes(self._gateway.pid)
        await asyncio.sleep(SETTLING)
        while True:
            self.memory.append({role: sum(map(measure.rss_bytes, pids)) / 2**20 for role, pids in found.items()})
            await asyncio.sleep(self._options.seconds / 40)

    def _growth(self) -> dict[str, tuple[float, float]]:
        """Return every role's memory in the first and in the last quarter of the overload."""
        quarter = max(1, len(self.memory) // 4)
        return {
            role: (
                statistics.median(sample[role] for sample in self.memory[:quarter]),
                statistics.median(sample[role] for sample in self.memory[-quarter:]),
            )
            for role in self.memory[0]
        }


def _goodput(results: Sequence[Result]) -> float:
    """Return answers per second, from the first request to the last answer."""
    good = [r for r in results if r.status == 200]
    return len(good) / (max(r.at + r.seconds for r in good) - min(r.at for r in good))


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    found = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": found[49], "p99": found[98]}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    settings = f"promptmill_settings: {{dispatch_slots: {SLOTS}, max_backlog: {options.backlog}}}\n"
    with (
        tempfile.TemporaryDirectory(prefix="promptmill-overload-") as name,
        upstreams.running("overload", "--upstream") as url,
        rig.gateway(Path(name), url, settings) as gateway,
    ):
        return asyncio.run(Phases(gateway, options).run())


def main() -> int:
    """Measure and print; returns the exit status."""
    options = _options()
    if options.upstream:
        asyncio.run(serve_upstream())
        return 0
    figures = run(options)
    if options.json:
        print(json.dumps(figures))
        return 0
    print(f"peak {figures['peak']:.0f} requests/s; goodput at three times that: {figures['goodput']:.0%} of the peak")
    print(f"statuses {figures['statuses']}")
    for name in ("admitted", "refused", "retry_after"):
        print(f"{name}, seconds: " + ", ".join(f"{p} {value:.4f}" for p, value in figures[name].items()))
    print("memory, MB: " + ", ".join(f"{role} {a:.0f} -> {b:.0f}" for role, (a, b) in figures["rss_mb"].items()))
    print(f"back to normal {figures['recovered']:.1f} s after the overload")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the overload (default: 120)")
    parser.add_argument("--after", type=float, default=15.0, help="seconds of half the load after it (default: 15)")
    parser.add_argument("--backlog", type=int, default=400, help="max_backlog of the gateway (default: 400)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds each client waits (default: 60)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
