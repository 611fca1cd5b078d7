"""The disk is full, or fails: a batch rests, half a line is never there, and it goes on when there is room."""

from __future__ import annotations

import functools
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from chaos.arena import Arena
from chaos.batches import ENDS, LINES, WINDOW
from chaos.scenario import Verdict, scenario
from chaos.scenarios.batch_kills import KEPT, ONE, SECONDS, again, took_over
from fakes.uploads import put
from fakes.waiting import wait_until

FULL_FOR = 3.0
"""Seconds without room."""

MORE = 10_000
"""Bytes a file may still grow by: room for some lines, and for a piece of one."""

UPLOAD = 4 * 2**20


@contextmanager
def no_room(pids: list[int], size: int) -> Iterator[None]:
    """Let no file of these processes grow beyond `size` bytes: the kernel writes what fits, and then fails."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    try:
        for pid, (_, hard) in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


async def full(step: str, arena: Arena, chance: random.Random) -> Verdict:
    """Leave the feed without room for a while, in the middle or at a step of a batch."""
    pids = arena.pids("feed")
    held = arena.arm(f"feed.{step}", "sleep(1000)") if step else None
    async with arena.batch() as batch:
        if held is None:
            await batch.reaches(chance.uniform(0.1, 0.6))
        else:
            await wait_until(lambda: not held.exists(), timeout=ENDS)
        with no_room(pids, 0 if held is not None else largest(arena) + MORE):
            await anyio.sleep(FULL_FOR)
            assert not batch.ended, "it needed no room"
            torn = [path.name for path in arena.stored("batches") if "-results-" in path.name and not whole(path)]
            assert not torn, f"half a line is in {torn}"
        lifted = time.monotonic()
    told = arena.events("batch waits for the disk") + arena.events("batch rests")
    assert told, "nobody was told"
    assert arena.pids("feed") == pids, "a feed process ended"
    return Verdict(again=again(arena, 0), kept=KEPT, figures=await took_over(arena, batch, lifted))


def largest(arena: Arena) -> int:
    """Return the size of the largest file of results."""
    return max(path.stat().st_size for path in arena.stored("batches") if "-results-" in path.name)


def whole(path: os.PathLike[str]) -> bool:
    """Whether a file ends with a whole line."""
    with open(path, "rb") as file:
        return file.read()[-1:] in (b"", b"\n")


for _step in ("", "validating", "before_rename"):
    scenario(
        f"batch-disk-full.{_step or 'running'}",
        "F30",
        f"no room for the feed for {FULL_FOR:.0f} s, in a batch of {LINES:,} lines: {_step or 'running'}",
        layout=ONE,
        seconds=SECONDS,
    )(functools.partial(full, _step))


async def fails(arena: Arena, chance: random.Random) -> Verdict:
    """Let the disk say that it failed when it is to keep what was written, five times."""
    async with arena.batch() as batch:
        for _ in range(5):
            file = arena.arm("feed.before_fsync", "eio")
            await wait_until(lambda: batch.ended or not file.exists(), timeout=ENDS)  # noqa: B023 - waited for here
            await anyio.sleep(chance.uniform(0, 0.3))
        failed = time.monotonic()
    file.unlink(missing_ok=True)
    assert arena.events("batch waits for the disk"), "nobody was told"
    return Verdict(again=again(arena, 0), kept=KEPT, figures=await took_over(arena, batch, failed))


scenario("batch-disk-fails", "F30", "EIO at five writes of a batch's results", layout=ONE, seconds=SECONDS)(fails)


async def upload(arena: Arena, chance: random.Random) -> Verdict:
    """Upload what there is no room for: 507, nothing of it stays, and requests go on; then there is room."""
    http, contents = arena.load.client, b'{"x":"' + chance.randbytes(UPLOAD // 2).hex().encode() + b'"}\n'
    with no_room(arena.pids("ingress"), UPLOAD // 2):
        answers = [await put(http, contents) for _ in range(3)]
        beside = await arena.load.burst(5)
    assert all(outcome.whole for outcome in beside), beside
    assert [answer.status_code for answer in answers] == [507] * 3, answers[0].text
    assert not set(arena.stored("files")) - arena.stored_before, "something was kept"
    assert (await put(http, contents)).status_code == 200
    async with arena.batch(WINDOW):
        pass
    return Verdict(kept=KEPT, figures={"code": answers[0].json()["error"]["code"]})


scenario("batch-disk-full.uploads", "F30", "three uploads into too little room", layout=ONE, seconds=SECONDS)(upload)
