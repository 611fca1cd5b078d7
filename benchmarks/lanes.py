"""`python -m benchmarks.lanes`: live requests beside a batch; what each of them costs the other."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import tempfile
import time
from pathlib import Path

import httpx2

from benchmarks import measure, rig
from benchmarks.batches import write_input
from benchmarks.openloop import Clients
from benchmarks.paced import create
from benchmarks.slow_upstream import slow_upstream

LIVE = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}
SETTLING = 12.0
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


class Phase:
    """Counts what happens within it: lines a second, and the share of the processors that is busy."""

    def __init__(self, http: httpx2.Client, *, batch: bool = True) -> None:
        self._http = http
        self._batch = batch
        self.rate = self.busy = 0.0

    def __enter__(self) -> Phase:
        self._before = done(self._http) if self._batch else 0
        self._busy, self._began = measure.busy_seconds(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._began
        self.busy = (measure.busy_seconds() - self._busy) / seconds / (os.cpu_count() or 1)
        if self._batch:
            self.rate = (done(self._http) - self._before) / seconds


def live(port: int, body: bytes, rate: float, seconds: float) -> tuple[float, float]:
    """Ask at a given rate; return the median and the 99th percentile in milliseconds."""

    async def run() -> list[float]:
        clients = Clients(port, body)
        await clients.offer(rate, seconds)
        clients.close()
        return sorted(result.seconds if result.status == 200 else 999.0 for result in clients.results)

    times = asyncio.run(run())
    return times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000


def compare(url: str, options: argparse.Namespace, path: Path) -> None:
    """Measure live alone, the batch alone, both, and the batch alone again."""
    port = int(url.rpartition(":")[2])
    body = json.dumps({**LIVE, **({"prompt_id": "1234"} if options.prompt else {})}).encode()
    live(port, body, options.live, 3)
    with httpx2.Client(base_url=url, timeout=120) as http:
        with Phase(http, batch=False) as idle:
            alone = live(port, body, options.live, options.seconds)
        create(http, path)
        while done(http) < 1:
            time.sleep(0.1)
        time.sleep(SETTLING)
        with Phase(http) as before:
            time.sleep(options.seconds / 2)
        metrics = live_means(http)
        with Phase(http) as beside:
            both = live(port, body, options.live, options.seconds)
        waited, jobs, worked, _ = (now - then for now, then in zip(live_means(http), metrics, strict=True))
        with Phase(http) as after:
            time.sleep(options.seconds / 2)
    rate, busy = (before.rate + after.rate) / 2, (before.busy + after.busy) / 2
    print(f"live alone: p50 {alone[0]:.1f} ms, p99 {alone[1]:.1f} ms")
    print(f"beside the batch: p50 {both[0]:.1f} ms, p99 {both[1]:.1f} ms ({both[1] / alone[1]:.2f} times)")
    print(
        f"of that, on average: waited {waited / jobs * 1000:.1f} ms for dispatch, {worked / jobs * 1000:.1f} ms there"
    )
    left = 1 - idle.busy
    print(f"the batch: {beside.rate:,.0f} lines/s, {beside.rate / rate:.0%} of its rate alone, {rate:,.0f}")
    print(f"live alone leaves {left:.0%} of the processors, so that is {beside.rate / rate / left:.0%} of what is left")
    print(f"processors busy: {idle.busy:.0%} by live alone, {busy:.0%} by the batch alone, {beside.busy:.0%} by both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=1.0, help="of the upstream, in seconds")
    parser.add_argument("--live", type=float, default=50, help="live requests a second")
    parser.add_argument("--lines", type=int, default=300_000)
    parser.add_argument("--prompt", action="store_true", help="send requests and lines through a prompt manager")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "in.jsonl"
        write_input(path, options.lines, "gpt-4", "1234" if options.prompt else "")
        upstream = slow_upstream(options.latency) if options.latency else rig.upstream(directory)
        with upstream as url, rig.gateway(directory, url) as gateway:
            compare(gateway.url, options, path)


if __name__ == "__main__":
    main()
