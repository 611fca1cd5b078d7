"""`python -m benchmarks.lanes`: live requests beside a batch; what each of them costs the other."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from pathlib import Path

import httpx2

from benchmarks import rig
from benchmarks.batches import write_input
from benchmarks.openloop import Clients
from benchmarks.paced import create
from benchmarks.slow_upstream import slow_upstream

LIVE = json.dumps({"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}).encode()
SETTLING = 6.0
"""Seconds a batch gets to come up to its rate."""


def done(http: httpx2.Client) -> int:
    """Return how many lines have an outcome."""
    counts = http.get("/v1/batches").json()["data"][0]["request_counts"]
    return int(counts["completed"] + counts["failed"])


def live_means(http: httpx2.Client) -> list[float]:
    """Return sum and count of the seconds that live jobs waited for dispatch, and then were there."""
    found = []
    for metric in ("queue_seconds", "job_seconds"):
        for kind in ("sum", "count"):
            pattern = rf'promptmill_{metric}_{kind}{{[^}}]*lane="live"[^}}]*stage="dispatch"[^}}]*}} (\S+)'
            found.append(sum(map(float, re.findall(pattern, http.get("/metrics").text))))
    return found


def batch_rate(http: httpx2.Client, seconds: float) -> float:
    """Return lines a second, while nothing else goes on."""
    before, began = done(http), time.monotonic()
    time.sleep(seconds)
    return (done(http) - before) / (time.monotonic() - began)


def live(port: int, rate: float, seconds: float) -> tuple[float, float]:
    """Ask at a given rate; return the median and the 99th percentile in milliseconds."""

    async def run() -> list[float]:
        clients = Clients(port, LIVE)
        await clients.offer(rate, seconds)
        clients.close()
        return sorted(result.seconds if result.status == 200 else 999.0 for result in clients.results)

    times = asyncio.run(run())
    return times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000


def measure(url: str, options: argparse.Namespace, path: Path) -> None:
    """Measure live alone, both, and the batch alone."""
    port = int(url.rpartition(":")[2])
    live(port, options.live, 3)
    alone = live(port, options.live, options.seconds)
    with httpx2.Client(base_url=url, timeout=120) as http:
        create(http, path)
        while done(http) < 1:
            time.sleep(0.1)
        time.sleep(SETTLING)
        before = batch_rate(http, options.seconds / 2)
        counted, began = done(http), time.monotonic()
        metrics = live_means(http)
        both = live(port, options.live, options.seconds)
        beside = (done(http) - counted) / (time.monotonic() - began)
        waited, jobs, worked, _ = (now - then for now, then in zip(live_means(http), metrics, strict=True))
        after = batch_rate(http, options.seconds / 2)
    left = (before + after) / 2 - options.live
    print(f"live alone: p50 {alone[0]:.1f} ms, p99 {alone[1]:.1f} ms")
    print(f"beside the batch: p50 {both[0]:.1f} ms, p99 {both[1]:.1f} ms ({both[1] / alone[1]:.2f} times)")
    print(
        f"of that, on average: waited {waited / jobs * 1000:.1f} ms for dispatch, {worked / jobs * 1000:.1f} ms there"
    )
    print(f"the batch: {beside:,.0f} lines/s, {beside / left:.0%} of what is left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=1.0, help="of the upstream, in seconds")
    parser.add_argument("--live", type=float, default=50, help="live requests a second")
    parser.add_argument("--lines", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "in.jsonl"
        write_input(path, options.lines, "gpt-4", "")
        with slow_upstream(options.latency) as url, rig.gateway(directory, url) as gateway:
            measure(gateway.url, options, path)


if __name__ == "__main__":
    main()
