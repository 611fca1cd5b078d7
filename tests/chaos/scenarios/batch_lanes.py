"""Lanes have processes of their own: what dies in one of them is nothing to the other."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterable

import anyio
from chaos.arena import Arena
from chaos.batches import ENDS, Batch
from chaos.load import percentile
from chaos.scenario import Verdict, scenario
from chaos.scenarios.batch_kills import KEPT, ONE, again, took_over
from chaos.scenarios.kills import OWN_TIME
from chaos.scenarios.rolling import BOOT, traffic
from chaos.witness import named
from fakes.waiting import wait_until

from pipeline.job import BATCH, LIVE

RATE = 15.0
"""Live requests a second, of all kinds."""

KILLS = 3
TAKES = 1.0
"""Seconds of a provider call: a batch is to run for as long as processes die."""

MANY = 3_000
"""Lines of the batch that loses nothing by it."""

_WAITED = re.compile(r'"endpoint":"chat".*"queue_ms":([\d.]+)')


async def batch_side_dies(arena: Arena, chance: random.Random) -> Verdict:
    """Kill all that serves batches, again and again: no live request waits for any of it."""
    arena.witness.takes = TAKES
    dead = 0
    async with traffic(arena, RATE), arena.batch() as batch:
        for _ in range(KILLS):
            pids = [*arena.pids("feed"), *_workers(arena, BATCH)]
            killed = await _kill(arena, pids, batch, chance)
            dead += len(pids)
        await wait_until(lambda: batch.ended, timeout=ENDS)
    waited = [float(found) / 1000 for found in _WAITED.findall(arena.log)]
    assert max(waited) < arena.layout.lease, f"a live request waited for {max(waited):.1f} s"
    assert not arena.events("claimed", lane=LIVE), "live requests changed hands"
    assert not (twice := _called_again(arena, (outcome.name for outcome in arena.load.outcomes))), twice
    figures = {"waited_p99_s": round(percentile(waited, 0.99), 3), "waited_most_s": max(waited)}
    return Verdict(
        again=again(arena, dead),
        parts=KILLS,
        kept=KEPT,
        figures={"killed": dead, **figures, **await took_over(arena, batch, killed)},
    )


async def live_side_dies(arena: Arena, chance: random.Random) -> Verdict:
    """Kill all workers of live requests, again and again: the batch goes on all the while, and calls nobody twice."""
    arena.witness.takes = TAKES
    called = []
    async with traffic(arena, RATE), arena.batch(MANY) as batch:
        for _ in range(KILLS):
            killed = await _kill(arena, _workers(arena, LIVE), batch, chance)
            called.append(_called(arena, batch, killed))
        await wait_until(lambda: batch.ended, timeout=ENDS)
    assert all(called), f"the batch stood still: {called}"
    assert await arena.owners(batch) == 1
    assert not (twice := _called_again(arena, batch.names)), twice
    return Verdict(
        codes=frozenset({"worker_lost"}),
        again=_called_again(arena, (outcome.name for outcome in arena.load.outcomes)),
        within=KILLS * (arena.layout.lease + 2) + TAKES + OWN_TIME,
        kept=KEPT,
        figures={"called": called, **await took_over(arena, batch, killed)},
    )


def _workers(arena: Arena, lane: str) -> list[int]:
    return arena.pids("resolve", lane) + arena.pids("dispatch", lane)


async def _kill(arena: Arena, pids: list[int], batch: Batch, chance: random.Random) -> float:
    """Kill these processes, and wait until there have been others for a while; return when."""
    await batch.reaches((batch.done + 1) / len(batch.names))
    assert not batch.ended, "it was over too soon"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    for pid in pids:
        await arena.ended(pid)
    await wait_until(arena.complete, timeout=BOOT, every=0.25)
    await anyio.sleep(chance.uniform(0, 1))
    return killed


def _called(arena: Arena, batch: Batch, since: float) -> int:
    """Return how many calls for lines of the batch began after `since` (`time.monotonic()`)."""
    names = set(batch.names)
    return sum(call.time >= since and named(call) in names for call in arena.witness.received)


def _called_again(arena: Arena, names: Iterable[str]) -> int:
    """Return how many calls were made beyond one for each of these."""
    calls = arena.witness.calls
    return sum(calls[name] - 1 for name in names if calls[name])


scenario(
    "batch-kill-batch-side",
    "F3 F4 M3",
    f"kill -9 of the feed and all workers of the batch lane, {KILLS} times, {RATE:.0f} live requests a second beside",
    layout=ONE,
    seconds=35,
)(batch_side_dies)
scenario(
    "batch-kill-live-side",
    "F3 F4 M3",
    f"kill -9 of all workers of the live lane, {KILLS} times, {RATE:.0f} live requests a second beside a batch",
    layout=ONE,
    seconds=25,
)(live_side_dies)
