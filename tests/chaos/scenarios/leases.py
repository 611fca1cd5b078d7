"""Jobs of a dead worker stand behind thousands that live workers hold: they are found all the same."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from chaos.arena import Arena, Layout, elapsed
from chaos.scenario import Verdict, scenario
from chaos.scenarios.zombies import held_by, holder
from chaos.witness import now
from fakes.waiting import wait_until

from pipeline.job import LIVE
from pipeline.transport import keyspace
from pipeline.transport.stage_stream import BLOCK, CLAIM_EVERY

LIVE_LEASES = 6000
"""More than ten times what one claim may take, and more than one claim looks at."""

REQUESTS = 24
SCAN = 1.2 * CLAIM_EVERY + BLOCK
"""Seconds from one claim to the next, at most: a worker without other work waits for new jobs in between."""

BUSY = 1.0
"""Seconds by which a busy machine is late with all of it."""

_STREAM = keyspace.jobs("dispatch", LIVE)
_CHUNK = 1000

_TAKE = """
for _ = 1, ARGV[2] do redis.call('XADD', KEYS[1], '*', 'x', '') end
local read = redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'COUNT', ARGV[2], 'STREAMS', KEYS[1], '>')
local taken = {}
for _, entry in ipairs(read[1][2]) do taken[#taken + 1] = entry[1] end
return taken
"""
"""Adds entries and hands them to a consumer at once, so that no worker of the gateway gets any of them."""


@asynccontextmanager
async def holding(arena: Arena, count: int) -> AsyncIterator[None]:
    """Let another worker of the dispatch stage hold `count` deliveries, and renew their leases, until the end."""
    (taken,) = await arena.redis(("EVAL", _TAKE, 1, _STREAM, "rival", count))
    assert isinstance(taken, list)
    assert len(taken) == count
    chunks = [taken[at : at + _CHUNK] for at in range(0, count, _CHUNK)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_renew, arena, chunks)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                for chunk in chunks:
                    await arena.redis(("XACK", _STREAM, keyspace.GROUP, *chunk), ("XDEL", _STREAM, *chunk))
                await arena.redis(("XGROUP", "DELCONSUMER", _STREAM, keyspace.GROUP, "rival"))


async def _renew(arena: Arena, chunks: Sequence[Sequence[bytes]]) -> None:
    while True:
        await arena.redis(*(("XCLAIM", _STREAM, keyspace.GROUP, "rival", 0, *chunk, "JUSTID") for chunk in chunks))
        await anyio.sleep(arena.layout.lease / 6)


async def orphans_at_the_tail(arena: Arena, chance: random.Random) -> Verdict:
    """Kill a worker whose deliveries stand behind the live ones."""
    arena.witness.takes = 1.0
    began = now()
    async with holding(arena, LIVE_LEASES), anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, REQUESTS, "whole")
        await wait_until(lambda: arena.witness.begun(began) >= REQUESTS, timeout=15)
        pid = await holder(arena, "dispatch")
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        orphans = await held_by(arena, "dispatch", pid)
        assert orphans, "the killed worker held nothing"

        async def reclaimed() -> bool:
            return not await held_by(arena, "dispatch", pid)

        await wait_until(reclaimed, timeout=30)
        took = elapsed(killed)
    limit = arena.layout.lease + 2 * SCAN
    assert took < limit + BUSY, f"reclaimed after {took:.1f} s, more than the lease and two scans, {limit:.1f} s"
    return Verdict(
        again=len(orphans),
        within=limit + BUSY + 2 * arena.witness.takes + 3,
        figures={"live_leases": LIVE_LEASES, "orphans": len(orphans), "reclaimed_s": round(took, 2)},
    )


scenario(
    "orphans-behind-live-leases",
    "F7 M4",
    f"kill -9 of a worker whose deliveries stand behind {LIVE_LEASES:,} live leases of another",
    layout=Layout(lease=3),
    seconds=9,
)(orphans_at_the_tail)
