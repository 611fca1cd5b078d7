"""The disk is full, read-only or fails: a batch rests, half a line is never there, and it goes on when all is well."""

from __future__ import annotations

import functools
import os
import random
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import anyio
import httpx2
import msgspec
from chaos.arena import Arena
from chaos.batches import ENDS, LINES, WINDOW, Batch
from chaos.read_only import SITE, read_only
from chaos.scenario import Verdict, scenario
from chaos.scenarios.batch_kills import KEPT, ONE, SECONDS, again, took_over
from fakes.batches import CHAT
from fakes.uploads import JSONL, field, file_part, form, put
from fakes.waiting import wait_until

from pipeline.stores.local import PART

BROKEN_FOR = 3.0
"""Seconds in which nothing can be written."""

MORE = 10_000
"""Bytes a file may still grow by: room for some lines, and for a piece of one."""

UPLOAD = 4 * 2**20

PARTS = 1
"""Files that were being written when the disk became read-only: they cannot even be removed then."""


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


Break = Callable[[Arena, str], AbstractContextManager[None]]
"""Breaks the disk of an arena, at a step of a batch, for as long as it is open."""


def full(arena: Arena, step: str) -> AbstractContextManager[None]:
    """Leave the feed without room: for nothing at a step, in the middle for some lines and a piece of one."""
    return no_room(arena.pids("feed"), 0 if step else largest(arena) + MORE)


async def held_up(breaks: Break, step: str, arena: Arena, chance: random.Random) -> Verdict:
    """Break the disk for a while, in the middle or at a step of a batch."""
    pids = arena.pids("feed")
    held = arena.arm(f"feed.{step}", "sleep(1000)") if step else None
    async with arena.batch() as batch:
        if held is None:
            await batch.reaches(chance.uniform(0.1, 0.6))
        else:
            await wait_until(lambda: not held.exists(), timeout=ENDS)
        with breaks(arena, step):
            await anyio.sleep(BROKEN_FOR)
            assert not batch.ended, "it needed no disk"
            torn = [path.name for path in arena.stored("batches") if "-results-" in path.name and not whole(path)]
            assert not torn, f"half a line is in {torn}"
        lifted = time.monotonic()
    told = arena.events("batch waits for the disk") + arena.events("batch rests")
    assert told, "nobody was told"
    assert arena.pids("feed") == pids, "a feed process ended"
    return Verdict(again=again(arena, 0), parts=PARTS, kept=KEPT, figures=await took_over(arena, batch, lifted))


def largest(arena: Arena) -> int:
    """Return the size of the largest file of results."""
    return max(path.stat().st_size for path in arena.stored("batches") if "-results-" in path.name)


def whole(path: os.PathLike[str]) -> bool:
    """Whether a file ends with a whole line."""
    with open(path, "rb") as file:
        return file.read()[-1:] in (b"", b"\n")


READ_ONLY = msgspec.structs.replace(ONE, site=SITE)

for _name, _breaks, _what, _layout in (
    ("full", full, "no room for the feed", ONE),
    ("read-only", lambda arena, _: read_only(arena), "a read-only disk", READ_ONLY),
):
    for _step in ("", "validating", "before_rename"):
        scenario(
            f"batch-disk-{_name}.{_step or 'running'}",
            "F30",
            f"{_what} for {BROKEN_FOR:.0f} s, in a batch of {LINES:,} lines: {_step or 'running'}",
            layout=_layout,
            seconds=SECONDS,
        )(functools.partial(held_up, _breaks, _step))


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


async def requests_refused(arena: Arena, chance: random.Random) -> Verdict:
    """Ask for everything that writes while nothing can be written: refused, with a remedy; what reads goes on."""
    http = arena.load.client
    kept = (await put(http)).json()["id"]
    async with arena.batch() as batch:
        await batch.reaches(chance.uniform(0.05, 0.3))
        refused = await _refused(arena, batch, kept)
        well = time.monotonic()
    codes = [(answer.status_code, answer.json()["error"]["code"]) for answer in refused]
    assert codes == [(507, "storage_full")] * 5, codes
    errors = [answer.json()["error"] for answer in refused]
    assert all("read-only" in error["message"] and "writable" in error["hint"] for error in errors), errors
    assert (await put(http)).status_code == 200
    assert (await http.delete(f"/v1/files/{kept}")).status_code == 200
    figures = {"told": len(refused), **await took_over(arena, batch, well)}
    return Verdict(again=again(arena, 0), parts=PARTS, kept=KEPT, figures=figures)


async def _refused(arena: Arena, batch: Batch, kept: str) -> list[httpx2.Response]:
    """Return the answers to five requests that write, one of them begun in better times; others are answered."""
    http, broken, answers = arena.load.client, anyio.Event(), []
    wanted = {"input_file_id": kept, "endpoint": CHAT, "completion_window": "24h"}

    async def send() -> None:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answers.append(await http.post("/v1/files", content=_halves(broken), headers=headers))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await wait_until(lambda: any(path.suffix == PART for path in arena.stored("files")), timeout=10)
        with read_only(arena):
            broken.set()
            answers.append(await put(http))
            answers.append(await http.post("/v1/batches", json=wanted))
            answers.append(await http.post(f"/v1/batches/{batch.id}/cancel"))
            answers.append(await http.delete(f"/v1/files/{kept}"))
            await wait_until(lambda: len(answers) == 5, timeout=10)  # with the upload that was under way
            beside = await arena.load.burst(5)
            assert (await http.get(f"/v1/files/{kept}/content")).content == JSONL
    assert all(outcome.whole for outcome in beside), beside
    return answers


async def _halves(broken: anyio.Event) -> AsyncIterator[bytes]:
    """Yield an upload, its second half when the disk is broken."""
    body = form(field("purpose", "batch"), file_part(JSONL * (UPLOAD // len(JSONL))))
    yield body[: len(body) // 2]
    await broken.wait()
    yield body[len(body) // 2 :]


scenario(
    "batch-disk-read-only.requests",
    "F30",
    f"a read-only disk, an upload and a batch of {LINES:,} lines under way: an upload, a batch, a cancel, a delete",
    layout=READ_ONLY,
    seconds=SECONDS,
)(requests_refused)
