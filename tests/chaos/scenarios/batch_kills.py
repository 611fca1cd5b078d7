"""Processes die while a batch runs, at every step of it and at any moment: each line has one outcome, and its own."""

from __future__ import annotations

import functools
import os
import random
import signal
import time

import anyio
import msgspec
from chaos.arena import Arena, Layout
from chaos.batches import ENDS, LINES, WINDOW, Batch
from chaos.scenario import Verdict, scenario
from chaos.scenarios.kills import DISPATCH, RESOLVE
from chaos.scenarios.server import kill_server, start_server
from fakes.waiting import wait_until

SETTINGS = f"batch_window: {WINDOW}"
ONE = Layout(settings=SETTINGS, lease=2.0, apart=True)
TWO = msgspec.structs.replace(ONE, feed=2)
"""Two feed processes: the other one takes over."""

KEPT = 24 * 2**20
"""Bytes a process may keep of a batch, on top of what is allowed after single requests: pools, caches, its code."""

FEED = ("validating", "mid_feed", "before_fsync", "after_append", "before_rename", "before_terminal", "after_terminal")
IN_A_ROW = 4
SECONDS = 14


async def fired(arena: Arena, point: str) -> float:
    """Arm a failpoint that kills, and wait until it has; return when."""
    file = arena.arm(point)
    await wait_until(lambda: not file.exists(), timeout=ENDS)
    return time.monotonic()


def again(arena: Arena, faults: int = 1) -> int:
    """Return how many calls may be made again: a window a fault, and what a busy machine let run out of its lease."""
    return faults * WINDOW + arena.events("lease lost") + arena.events("stale settle")


async def took_over(arena: Arena, batch: Batch, killed: float) -> dict[str, float]:
    """Return the figures of a batch that is over."""
    return {"owners": await arena.owners(batch), "after_the_fault_s": round(batch.ended - killed, 1)}


async def kill_owner(point: str, arena: Arena, chance: random.Random) -> Verdict:
    """Kill the owner when it reaches `point`; its batch goes on from what is on the disk."""
    file = arena.arm(f"feed.{point}")
    async with arena.batch() as batch:
        await wait_until(lambda: not file.exists(), timeout=ENDS)
        killed = time.monotonic()
        if point == "before_fsync":
            tear(arena, chance)
    # Three, where a busy machine let a lease run out; and who finds one that is over only tidies up.
    assert await arena.owners(batch) >= 1 + (point != "after_terminal"), "nobody took it over"
    return Verdict(again=again(arena), parts=1, kept=KEPT, figures=await took_over(arena, batch, killed))


def tear(arena: Arena, chance: random.Random) -> None:
    """Take the end off the last line that was written: what was not synced yet, a power cut leaves in pieces."""
    (results,) = [path for path in arena.stored("batches") if "-results-" in path.name]
    *_, last = results.read_bytes().splitlines()
    os.truncate(results, results.stat().st_size - chance.randint(1, len(last)))


for _layout, _prefix in ((ONE, "batch-kill-feed"), (TWO, "batch-kill-one-of-two-feeds")):
    for _point in FEED:
        scenario(
            f"{_prefix}.{_point}",
            "F3 M3",
            f"kill -9 of the owner of a batch of {LINES:,} lines at feed.{_point}, {_layout.feed} feed processes",
            layout=_layout,
            seconds=SECONDS,
        )(functools.partial(kill_owner, _point))


async def kill_worker(point: str, arena: Arena, chance: random.Random) -> Verdict:
    """Kill the worker that reaches `point` with a line in its hands."""
    async with arena.batch() as batch:
        await batch.reaches(chance.uniform(0.05, 0.5))
        killed = await fired(arena, point)
    return Verdict(again=again(arena), kept=KEPT, figures=await took_over(arena, batch, killed))


for _stage, _points in (("resolve", RESOLVE), ("dispatch", DISPATCH)):
    for _point in _points:
        scenario(
            f"batch-kill-{_stage}.{_point}",
            "F3 M3",
            f"kill -9 of a {_stage} worker at {_stage}.{_point}, in a batch of {LINES:,} lines",
            layout=ONE,
            seconds=SECONDS,
        )(functools.partial(kill_worker, f"{_stage}.{_point}"))


async def kill_part(part: str, arena: Arena, chance: random.Random) -> Verdict:
    """Kill every process of a part at some moment."""
    async with arena.batch() as batch:
        await batch.reaches(chance.uniform(0.0, 0.7))  # on an idle machine the rest is a matter of half a second
        assert not batch.ended, "it was over too soon"
        killed = time.monotonic()
        if part == "server":
            await kill_server(arena)
            await anyio.sleep(chance.uniform(0, 2))
            await start_server(arena)
        else:
            parts = arena.layout.scales if part == "everything" else (part,)
            for pid in [pid for name in parts for pid in arena.pids(name)]:
                os.kill(pid, signal.SIGKILL)
    return Verdict(again=again(arena), parts=2, kept=KEPT, figures=await took_over(arena, batch, killed))


for _part in ("ingress", "resolve", "dispatch", "feed", "server", "everything"):
    scenario(
        f"batch-kill-{_part}",
        "F3 M3",
        f"kill -9 of {_part} at some moment of a batch of {LINES:,} lines",
        layout=ONE,
        seconds=SECONDS,
    )(functools.partial(kill_part, _part))


async def _owned(arena: Arena, batch: Batch, times: int) -> None:
    """Wait until the batch was taken up so often."""

    async def taken() -> bool:
        return await arena.owners(batch) >= times

    await wait_until(taken, timeout=ENDS, every=0.05)


async def kill_owners(arena: Arena, chance: random.Random) -> Verdict:
    """Kill owner after owner, each when it has had the batch for a moment; the last one ends it."""
    arena.witness.takes = 1.0  # or the batch would be over before them
    async with arena.batch() as batch:
        for number in range(1, IN_A_ROW + 1):
            await _owned(arena, batch, number)
            await anyio.sleep(chance.uniform(0, 0.7))
            for pid in arena.pids("feed"):
                os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
    assert await arena.owners(batch) > IN_A_ROW, f"{await arena.owners(batch)} owners"
    return Verdict(
        again=again(arena, IN_A_ROW), parts=IN_A_ROW, kept=KEPT, figures=await took_over(arena, batch, killed)
    )


scenario(
    "batch-kill-owner-after-owner",
    "F3 M3",
    f"kill -9 of {IN_A_ROW} owners of a batch of {LINES:,} lines, one after the other",
    layout=TWO,
    seconds=30,
)(kill_owners)
