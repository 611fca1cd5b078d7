"""The server takes no more: its memory is full, its connections are used up, or it does not let the gateway in."""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from chaos.arena import Arena
from chaos.scenario import Verdict, scenario
from chaos.scenarios.server import BACK, GONE, OWN_TIME, quiet, served_again, waiting
from fakes.gateways import promptmill
from fakes.waiting import wait_until

from pipeline.transport.connection import Command, Link

FAST = 0.05
"""Seconds a refusal may take."""

FULL = frozenset({"redis_full"})


@asynccontextmanager
async def owner(arena: Arena) -> AsyncIterator[Link]:
    """Open the connection of the server's owner: it stands before a limit is set, and lifts it."""
    link = Link(arena.server.url, "test-owner")
    await link.run(("PING",))
    try:
        yield link
    finally:
        await link.close()


async def used(link: Link) -> int:
    """Return the bytes of memory that the server uses."""
    info = (await link.run(("INFO", "memory"))).decode()
    return int(next(line.partition(":")[2] for line in info.splitlines() if line.startswith("used_memory:")))


@asynccontextmanager
async def limited(link: Link, bytes_more: int) -> AsyncIterator[None]:
    """Set the server's memory limit to so much more than it uses now, and put it back afterwards."""
    (_, before) = await link.run(("CONFIG", "GET", "maxmemory"))
    await link.run(("CONFIG", "SET", "maxmemory", await used(link) + bytes_more))
    try:
        yield
    finally:
        await link.run(("CONFIG", "SET", "maxmemory", before))


async def shrunk(arena: Arena, chance: random.Random) -> Verdict:
    """Set the limit below what is used: new work is refused at once, and what is under way is answered."""
    arena.witness.takes = 1.0
    async with owner(arena) as link, anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, 10)
        await waiting(arena, 10)
        async with limited(link, -(2**20)):
            refused = [await arena.load.one("plain") for _ in range(9)]
            assert all(outcome.code in FULL and outcome.retry_after for outcome in refused), refused
            assert not any(arena.witness.calls[outcome.name] for outcome in refused), "what was refused has run"
            held = [outcome for outcome in arena.load.outcomes if outcome not in refused]
            await wait_until(lambda: all(outcome.at for outcome in held), timeout=arena.witness.takes + OWN_TIME)
            assert all(outcome.whole for outcome in held), held
        lifted = time.monotonic()
        again = await served_again(arena, lifted)
    took = statistics.median(outcome.seconds for outcome in refused)
    assert took < FAST, f"refused after {took:.3f} s"
    return Verdict(codes=FULL, within=2 * OWN_TIME, figures={"refused_ms": round(took * 1000), "recovered_s": again})


scenario("limits-memory-shrunk", "F12", "maxmemory set below what is used, ten requests under way", seconds=6)(shrunk)


async def filled(arena: Arena, chance: random.Random) -> Verdict:
    """Fill a small server with large bodies: it drains by itself, and takes new work under the same limit."""
    arena.witness.takes = 1.5
    async with owner(arena) as link, limited(link, 3 * 2**20):
        outcomes = await arena.load.burst(60, "large")
        refused = [outcome for outcome in outcomes if outcome.code in FULL]
        assert refused, "it was never full"
        assert len(refused) < len(outcomes), "nothing went through"
        again = await served_again(arena, time.monotonic())
    return Verdict(
        codes=FULL, within=arena.witness.takes + 2 * OWN_TIME, figures={"refused": len(refused), "recovered_s": again}
    )


scenario("limits-memory-filled", "F12", "sixty large requests into three free megabytes", seconds=7)(filled)


HURDLES: dict[str, tuple[Command, Command, bool, str]] = {
    "connections": (("CONFIG", "SET", "maxclients", 1), ("CONFIG", "SET", "maxclients", 10_000), True, "maxclients"),
    "password": (("CONFIG", "SET", "requirepass", "x"), ("CONFIG", "SET", "requirepass", ""), True, "password"),
    "acl-scripts": (
        ("ACL", "SETUSER", "default", "-evalsha"), ("ACL", "SETUSER", "default", "+evalsha"), False, "evalsha"
    ),
    "acl-reads": (
        ("ACL", "SETUSER", "default", "-xreadgroup"), ("ACL", "SETUSER", "default", "+xreadgroup"), False, "xreadgroup"
    ),
}  # fmt: skip
"""How the server keeps the gateway out, and lets it in again; whether that needs new connections; what the log says."""


async def kept_out(name: str, arena: Arena, chance: random.Random) -> Verdict:
    """Keep the gateway out for a while: it says why, waits without spinning, and comes back by itself."""
    keep_out, let_in, reconnect, word = HURDLES[name]
    arena.witness.takes = 0.5
    async with owner(arena) as link, anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, 8, "whole")
        await waiting(arena, 8)
        await link.run(keep_out)
        try:
            if reconnect:
                for part in arena.layout.scales:
                    arena.wire.cut(part)
            figures = await quiet(arena)
            told = [line for line in arena.log.splitlines() if word in line]
            assert told, f"nobody says {word}: {arena.log[-2000:]}"
        finally:
            await link.run(let_in)
        again = await served_again(arena, time.monotonic())
    return Verdict(
        codes=GONE,
        # Reads went on, only scripts did not: who claims may be let in a moment before who renews.
        again=8 if name == "acl-scripts" else 0,
        within=3 + BACK + 2 * OWN_TIME,
        figures={**figures, "told": len(told), "recovered_s": again},
    )


for _name, (_command, *_) in HURDLES.items():
    scenario(f"limits-{_name}", "F34", " ".join(str(word) for word in _command) + " for four seconds", seconds=9)(
        functools.partial(kept_out, _name)
    )


async def unfit(arena: Arena, chance: random.Random) -> Verdict:
    """Make the server one that loses jobs: nothing new starts on it without a word, and what runs goes on."""
    config = ("-c", str(arena.directory / "config.yaml"))
    gateway = ("up", *config, "--port", "0", "--data-dir", str(arena.directory / "another"))

    async def said(*arguments: str) -> str:
        ended = await anyio.to_thread.run_sync(
            functools.partial(promptmill, *arguments, cwd=arena.directory, REDIS_URL=arena.server.url)
        )
        return f"{ended.returncode} {ended.stdout}{ended.stderr}"

    async with owner(arena) as link:
        await link.run(("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"))
        try:
            for command in (gateway, ("worker", "dispatch", *config)):
                words = await said(*command)
                assert words.startswith("2 "), words
                assert "accept_eviction" in words, words
            assert "allkeys-lru" in await said("status")
        finally:
            await link.run(("CONFIG", "SET", "maxmemory-policy", "noeviction"))
        await link.run(("CONFIG", "SET", "appendonly", "no"))
        try:
            assert "! redis keeps no append-only file" in await said("status")
        finally:
            await link.run(("CONFIG", "SET", "appendonly", "yes"))
    await arena.load.burst(5)
    return Verdict(within=OWN_TIME)


scenario("limits-unfit", "F13", "a server that evicts, then one without a log: up, worker and status", seconds=25)(
    unfit
)
