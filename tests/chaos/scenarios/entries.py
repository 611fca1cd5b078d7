"""Entries that nobody of ours wrote: rubbish becomes dead letters, what comes twice is answered once."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping

import anyio
from chaos.arena import Arena, elapsed
from chaos.scenario import Verdict, scenario
from fakes.gateways import promptmill
from fakes.waiting import wait_until

from pipeline.job import BATCH, LIVE, Job, encode
from pipeline.transport import keyspace
from pipeline.transport.client import STAGES
from pipeline.transport.connection import WRITE

OWN_TIME = 3.0
"""Seconds a request takes itself, on a busy machine."""

ONE_PASS = 2.0 + OWN_TIME
"""Seconds in which all rubbish is to be out of the way: it is read, at most, with the next fetch of each lane."""


def rubbish(stage: str, lane: str) -> Mapping[str, tuple[str | bytes, ...]]:
    """Return fields that are no job of this lane, by what is wrong with them."""
    fields = {"id": "0-forged", "operation": "chat.completions", "deadline": int(time.time() * 1000) + 60_000}
    header = encode(Job(stages_left=(stage,), lane=lane, **fields))  # type: ignore[arg-type]
    other = encode(Job(stages_left=("elsewhere",), lane=lane, **fields))  # type: ignore[arg-type]
    return {
        "no header": ("b", "{}"),
        "empty header": ("h", "", "b", "{}"),
        "no msgpack": ("h", b"\xc1\xc1", "b", "{}"),
        "no UTF-8": ("h", header.replace(b"0-forged", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe"), "b", "{}"),
        "10 MB": ("h", b"\x00" * 10_000_000, "b", b"\xff" * 1000),
        "another version": ("h", encode({"v": 99, "job": {"id": "0-forged"}}), "b", "{}"),
        "another stage's": ("h", other, "b", "{}"),
        "a reference to a foreign key": ("h", header, "r", "somebody:else"),
        "a reference in no UTF-8": ("h", header, "r", b"\xff\xfe"),
        "names in no UTF-8": (b"\xff\xfe", b"\x00"),
    }


async def malformed(arena: Arena, chance: random.Random) -> Verdict:
    """Put rubbish of every kind on every stage stream: dead letters in one pass, and nobody else notices."""
    entries = [
        ("XADD", keyspace.jobs(stage, lane), "*", *fields)
        for stage in STAGES
        for lane in (LIVE, BATCH)
        for kind, fields in rubbish(stage, lane).items()
        if kind != "10 MB" or lane == LIVE  # twice are enough: the memory of the workers is looked at afterwards
    ]
    chance.shuffle(entries)
    before = arena.processes()
    began = time.monotonic()
    await arena.redis(*entries)
    (asked, *_) = await arena.load.burst(6)

    async def buried() -> bool:
        return await arena.redis(("XLEN", keyspace.DEAD)) == [len(entries)]

    await wait_until(buried, timeout=ONE_PASS)
    passed = elapsed(began)
    assert arena.processes() == before, "a process died of it"
    letters = _letters(arena)
    assert {letter["reason"] for letter in letters} == {"unreadable"}, letters
    again = sum(letter["deliveries"] != 1 for letter in letters)  # ten megabytes may take longer than a lease here
    assert again <= 4, letters
    shown = promptmill("dead", "show", letters[0]["id"], cwd=arena.directory, REDIS_URL=arena.server.url)
    assert shown.returncode == 0, shown.stderr
    assert "unreadable" in shown.stdout, shown.stdout
    dropped = promptmill("dead", "drop", letters[0]["id"], cwd=arena.directory, REDIS_URL=arena.server.url)
    assert dropped.returncode == 0, dropped.stderr
    return Verdict(
        letters=len(entries) - 1,
        within=ONE_PASS + OWN_TIME,
        figures={"entries": len(entries), "gone_s": round(passed, 1), "beside_s": round(asked.seconds, 2)},
    )


def _letters(arena: Arena) -> list[dict[str, object]]:
    listed = promptmill("dead", "list", "--json", cwd=arena.directory, REDIS_URL=arena.server.url)
    assert listed.returncode == 0, listed.stderr
    return [json.loads(line) for line in listed.stdout.splitlines()]


scenario("entries-malformed", "F19", "rubbish of ten kinds on every stage stream and lane", seconds=9)(malformed)


async def misplaced(arena: Arena, chance: random.Random) -> Verdict:
    """Put rubbish where our processes keep other things: it is passed over, or becomes a dead letter."""
    (consumer,) = [name for name in await _registered(arena) if name.startswith(b"ingress-")]
    replies, noise = keyspace.replies(consumer.decode()), b"\xff\xfe" * 100
    await arena.redis(
        *(("XADD", replies, "*", name, value) for name in ("t", "f", "x") for value in (b"", noise, b"\xc0")),
        *(("XADD", keyspace.CANCEL, "*", name, noise) for name in ("i", "d", "x")),
        *(("ZADD", keyspace.delayed(stage, LIVE), 0, noise) for stage in STAGES),
        ("ZADD", keyspace.CONSUMERS, "+inf", b"\xff\xfe"),
        ("ZADD", keyspace.CONSUMERS, time.time() * 1000 + 5000, "ingress-nobody"),
        ("HSET", keyspace.up("ingress-nobody"), "p", noise, "m", noise),
        ("PEXPIRE", keyspace.up("ingress-nobody"), 5000),
    )
    before = arena.processes()
    await arena.load.burst(20)
    listed = promptmill("status", cwd=arena.directory, REDIS_URL=arena.server.url)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    metrics = await arena.load.client.get("/metrics")
    assert metrics.status_code == 200, metrics.text
    assert arena.processes() == before, "a process died of it"
    await arena.redis(("ZREM", keyspace.CONSUMERS, b"\xff\xfe"))
    return Verdict(letters=len(STAGES), within=2 * OWN_TIME)


async def _registered(arena: Arena) -> list[bytes]:
    (names,) = await arena.redis(("ZRANGE", keyspace.CONSUMERS, 0, -1))
    assert isinstance(names, list)
    return names


scenario("entries-misplaced", "F19", "rubbish among replies, cancellations, delayed jobs and registrations", seconds=6)(
    misplaced
)


async def doubled(arena: Arena, chance: random.Random) -> Verdict:
    """Add the entries of jobs under way a second time: each client gets one answer, however often it was worked out."""
    arena.witness.takes = 1.5
    stream = keyspace.jobs("dispatch", LIVE)
    copied = 0

    async def copy() -> None:
        nonlocal copied
        await wait_until(lambda: arena.witness.begun(0) >= 12, timeout=10)
        (entries,) = await arena.redis(("XRANGE", stream, "-", "+"))
        assert isinstance(entries, list)
        copied = len(entries)
        await arena.redis(*(("XADD", stream, "*", *fields) for _, fields in entries))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, 12)
        await copy()
    return Verdict(
        codes=frozenset({"worker_lost"}),  # of a stream whose other run ended first
        again=copied,
        within=3 * OWN_TIME,
        figures={"copied": copied},
    )


scenario("entries-doubled", "F15", "XADD of twelve jobs under way once more", seconds=7)(doubled)


async def forged(arena: Arena, chance: random.Random) -> Verdict:
    """Settle what others own, settle again what is settled, and send answers again: nothing of it changes anything."""
    arena.witness.takes = 1.0
    stream, counter = keyspace.jobs("dispatch", LIVE), keyspace.held_bytes("dispatch", LIVE)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, 10, "plain")
        await wait_until(lambda: arena.witness.begun(0) >= 10, timeout=10)
        (pending,) = await arena.redis(("XPENDING", stream, keyspace.GROUP, "-", "+", 100))
        assert isinstance(pending, list)
        assert len(pending) == 10
        settle = [(entry, owner, ("S", 1, 2, entry, 0, 0, 0, "N")) for entry, owner, *_ in pending]
        forgeries = [WRITE([stream, counter], "forger", len(words), *words) for _, _, words in settle]
        assert await arena.redis(*forgeries) == [[0]] * 10, "who does not own it has settled it"
    replays = [WRITE([stream, counter], owner, len(words), *words) for _, owner, words in settle]
    assert await arena.redis(*replays) == [[0]] * 10, "it was settled twice"
    (consumer,) = [name for name in await _registered(arena) if name.startswith(b"ingress-")]
    replies = keyspace.replies(consumer.decode())
    (said,) = await arena.redis(("XRANGE", replies, "-", "+"))
    assert isinstance(said, list)
    await arena.redis(*(("XADD", replies, "*", *fields) for _, fields in said))
    await arena.load.burst(10)
    return Verdict(within=2 * OWN_TIME, figures={"forged": 10, "replayed": 10 + len(said)})


scenario("entries-forged", "F15", "settlements of others' jobs, of settled jobs; answers sent again", seconds=6)(forged)
