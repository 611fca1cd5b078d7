"""What must hold after every scenario, whatever was done: the invariants I1 to I10, as far as live traffic has them."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from pathlib import Path

import msgspec
from chaos.arena import CANARIES, STORES, Arena, pid_of
from chaos.scenario import Verdict
from fakes.gateways import promptmill
from fakes.waiting import wait_until

from pipeline.metrics import Family
from pipeline.stores.local import GROWING, PART
from pipeline.transport import keyspace
from pipeline.transport.connection import Link
from pipeline.transport.registry import read_metrics

REFUSED = frozenset({"backlog_full", "redis_full"})
"""Codes that promise that nothing ran."""

MEMORY_SHARE, MEMORY_SLACK = 1.05, 24 * 2**20
DESCRIPTORS = 8
THREADS = {"ingress": 4, "dispatch": 4, "resolve": 72, "feed": 40}
"""More than before, at rest: hooks and disks that took their time have left threads that wait for the next."""

LATE_MS = 600_000
"""How long answers are taken that come after the end of their batch: `batch_line_timeout`."""

UNFINISHED = (PART, GROWING)

TASKS = 12
"""Most that a process has at rest, two more than the loops that it consists of."""


class Footprint(msgspec.Struct, frozen=True):
    """What a process holds."""

    descriptors: int
    threads: int
    memory: int


async def violations(arena: Arena, verdict: Verdict, baseline: dict[str, Footprint]) -> list[str]:
    """Return what is wrong, a line each; first wait until the gateway has come to rest."""
    found = [*_answers(arena, verdict), *_calls(arena, verdict)]
    found += await _streams(arena)
    found += await _batches(arena, verdict)
    found += await _keys(arena)
    found += await _letters(arena, verdict)
    found += await _footprints(arena, verdict, baseline)
    found += await _tasks(arena)
    found += _secrets(arena)
    return found


def _answers(arena: Arena, verdict: Verdict) -> list[str]:
    """I1 and I2: every request ends in one whole answer, or in an error that the fault excuses."""
    found = [
        f"I1 {outcome}"
        for outcome in arena.load.outcomes
        if not outcome.whole and not (verdict.cut and not outcome.status) and outcome.code not in verdict.codes
    ]
    limit = verdict.within
    if limit is not None and arena.load.slowest > limit:
        found.append(f"I1 a request took {arena.load.slowest:.1f} s, more than {limit:.1f}")
    return found


def _calls(arena: Arena, verdict: Verdict) -> list[str]:
    """I3 and I7: no provider call more than the fault excuses, and none for a request that was refused."""
    calls = arena.witness.calls
    again = {name: count for name, count in calls.items() if count > 1}
    found = []
    if sum(again.values()) - len(again) > verdict.again:
        found.append(f"I3 calls made again: {dict(again)}, {verdict.again} may be")
    for outcome in arena.load.outcomes:
        if outcome.code in REFUSED and calls[outcome.name]:
            found.append(f"I7 {outcome} was refused and yet sent to the provider")
        if outcome.whole and not calls[outcome.name]:
            found.append(f"I2 {outcome} was answered and never sent to the provider")
    return found


async def _streams(arena: Arena) -> list[str]:
    """I6: nothing waits, runs or is put off, and no bytes are held."""
    left: list[str] = []

    async def empty() -> bool:
        seen = await arena.overview()
        if seen is None:
            left[:] = ["the server is away"]
            return False
        left[:] = [str(s) for s in seen.stages if s.backlog + s.pending + s.delayed + s.bytes]
        return not left

    try:
        await wait_until(empty, timeout=20, every=0.1)
    except AssertionError:
        return [f"I6 not at rest: {text}" for text in left]
    return []


async def _batches(arena: Arena, verdict: Verdict) -> list[str]:
    """I1 to I6 of batches; and nothing that was only for their way is left on the disk."""
    if not arena.batches:
        return []
    calls = arena.witness.calls
    found = [text for batch in arena.batches for text in batch.violations(calls)]
    left: list[str] = []

    async def tidy() -> bool:
        leases = await arena.redis(*(("EXISTS", keyspace.lease(batch.hex)) for batch in arena.batches))
        stored = {path for kind in STORES for path in arena.stored(kind)} - arena.stored_before
        left[:] = sorted(path.name for path in stored if path.suffix in UNFINISHED)
        return not any(leases) and len(left) <= verdict.parts and not any(name.endswith(GROWING) for name in left)

    try:
        await wait_until(tidy, timeout=20, every=0.2)
    except AssertionError:
        return [*found, f"I6 a lease or unfinished files are left: {left}"]
    return found


async def _keys(arena: Arena) -> list[str]:
    """I6 and I10: every key has a lifetime or is one of the permanent ones, and none shows a secret."""
    found: list[str] = []
    cursor = "0"
    names: list[str] = []
    while True:
        (reply,) = await arena.redis(("SCAN", cursor, "COUNT", 1000))
        assert isinstance(reply, list)
        cursor = reply[0].decode()
        names += [name.decode(errors="replace") for name in reply[1]]
        if cursor == "0":
            break
    lifetimes = await arena.redis(*(("PTTL", name) for name in names)) if names else []
    permanent = tuple(keyspace.PREFIX + part for part in keyspace.PERMANENT)
    for name, lifetime in zip(names, lifetimes, strict=True):
        if lifetime == -1 and not name.startswith(permanent):
            found.append(f"I6 {name} lives for ever")
        if name.startswith(keyspace.lines("")) and lifetime > LATE_MS:
            found.append(f"I6 {name} outlives its batch by {lifetime / 1000:.0f} s")
        found += [f"I10 a key's name shows {secret}" for secret in CANARIES if secret in name]
    return found


async def _letters(arena: Arena, verdict: Verdict) -> list[str]:
    """Dead letters are those the fault excuses; `dead list` shows them without a secret, and they are dropped."""
    (raw,) = await arena.redis(("XLEN", keyspace.DEAD))
    if not raw and not verdict.letters:
        return []
    url = {"REDIS_URL": arena.server.url}
    listed = promptmill("dead", "list", "--json", cwd=arena.directory, **url)
    letters = [json.loads(line) for line in listed.stdout.splitlines()]
    found = [f"I10 a dead letter shows {secret}" for secret in CANARIES if secret in listed.stdout]
    if len(letters) != verdict.letters:
        reasons = Counter(str(letter.get("reason")) for letter in letters)
        found.append(f"{len(letters)} dead letters {dict(reasons)}, {verdict.letters} expected; {listed.stderr}")
    await arena.redis(("DEL", keyspace.DEAD))
    return found


def footprint(arena: Arena, pid: int) -> Footprint:
    """Return what a process holds, without connections that its pools, or those of clients, keep for the next call."""
    base = Path(f"/proc/{pid}")
    pooled = {_port(arena.provider.address), _port(arena.gateway.url)}
    kept = 0
    sockets = {}
    for line in (base / "net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        sockets[words[9]] = {int(end.rpartition(":")[2], 16) for end in words[1:3]}
    for path in (base / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inode = os.readlink(path).removeprefix("socket:[").removesuffix("]")
            kept += not (sockets.get(inode, set()) & pooled)
    pages = int((base / "statm").read_text().split()[1])
    return Footprint(kept, len(list((base / "task").iterdir())), pages * os.sysconf("SC_PAGE_SIZE"))


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def footprints(arena: Arena) -> dict[str, Footprint]:
    """Return the largest of each part."""
    largest: dict[str, Footprint] = {}
    for pid, part in arena.processes().items():
        seen, before = footprint(arena, pid), largest.get(part, Footprint(0, 0, 0))
        largest[part] = Footprint(
            max(seen.descriptors, before.descriptors),
            max(seen.threads, before.threads),
            max(seen.memory, before.memory),
        )
    return largest


async def _footprints(arena: Arena, verdict: Verdict, baseline: dict[str, Footprint]) -> list[str]:
    """I6 and I9: descriptors, threads and memory are back where they were."""
    found: list[str] = []

    def back() -> bool:
        found[:] = []
        for part, now in footprints(arena).items():
            before = baseline[part]
            if now.descriptors > before.descriptors + DESCRIPTORS:
                found.append(f"I6 {part} has {now.descriptors} descriptors, {before.descriptors} before")
            if now.threads > before.threads + THREADS[part]:
                found.append(f"I6 {part} has {now.threads} threads, {before.threads} before")
            if now.memory > before.memory * MEMORY_SHARE + MEMORY_SLACK + verdict.kept:
                found.append(f"I9 {part} has {now.memory >> 20} MB, {before.memory >> 20} before")
        return not found

    try:
        await wait_until(back, timeout=12, every=0.2)
    except AssertionError:
        return found
    return []


async def _tasks(arena: Arena) -> list[str]:
    """I6: no task is left but those of a process at rest, as each says itself when it renews its registration."""
    found: list[str] = []

    async def back() -> bool:
        counts = await _counted_tasks(arena)
        found[:] = [f"I6 {name} has {n:.0f} tasks" for name, n in counts.items() if n > TASKS]
        return not found

    try:
        await wait_until(back, timeout=12, every=0.2)
    except AssertionError:
        return found
    return []


async def _counted_tasks(arena: Arena) -> dict[str, float]:
    """Return the tasks of every process; those of one that was killed stay known for a while."""
    link = Link(arena.server.url, "test-invariants")
    try:
        snapshots = await read_metrics(link)
    finally:
        await link.close()
    running = arena.processes()
    return {
        name: family.samples[0].value
        for name, snapshot in snapshots
        if pid_of(name) in running
        for family in msgspec.msgpack.decode(snapshot, type=list[Family])
        if family.name == "promptmill_tasks"
    }


def _secrets(arena: Arena) -> list[str]:
    """I10: no secret in the log, on a command line, or in the name of a process."""
    found = [f"I10 the log shows {secret}" for secret in CANARIES if secret in arena.log]
    commands = " ".join(arena.gateway.children().values())
    found += [f"I10 a command line shows {secret}" for secret in CANARIES if secret in commands]
    if "Traceback" in arena.log:
        found.append(f"a traceback in the log: {arena.log[arena.log.index('Traceback') :][:1500]}")
    return found
