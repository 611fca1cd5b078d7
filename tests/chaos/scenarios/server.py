"""The server goes away, comes back without some of its data, or is robbed: nobody hangs, all goes on by itself."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from chaos.arena import Arena, Layout, elapsed
from chaos.scenario import Verdict, scenario
from fakes.waiting import wait_until

from pipeline.settings import TransportSettings
from pipeline.transport import keyspace
from pipeline.transport.client import LOST_AFTER
from pipeline.transport.registry import BEAT

ALWAYS = Layout(server=TransportSettings(persistence="always"))

RATE = 15
"""Requests a second while something happens."""

BACK = 5.0
"""Seconds in which a server that answers again is to be used again."""

OWN_TIME = 3.0
"""Seconds a request takes itself, on a busy machine."""

NOTICED = 2.0 + 5.0
"""Seconds after which a loss of data is noticed at the latest: a beat, and a connection given up before it."""

CPU_AWAY = 0.05
"""Share of a core that a process may use while the server is away."""

LINES_AWAY = 5.0
"""Lines a second that a process may log meanwhile, with a lease of one second."""

GONE = frozenset({"redis_unavailable"})


@asynccontextmanager
async def under_load(arena: Arena, rate: float = RATE, kind: str = "") -> AsyncIterator[None]:
    """Send requests all the while."""
    done = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.steady, rate, done, kind)
        try:
            yield
        finally:
            done.set()


async def stop_server(arena: Arena) -> None:
    """End the server by SIGTERM and wait for its end."""
    await anyio.to_thread.run_sync(arena.server.stop)


async def kill_server(arena: Arena) -> None:
    """End the server by SIGKILL."""
    await anyio.to_thread.run_sync(arena.server.kill)


async def start_server(arena: Arena) -> float:
    """Start the server again; return when it answered a PING."""
    await anyio.to_thread.run_sync(arena.server.restart)
    return time.monotonic()


async def served_again(arena: Arena, since: float) -> float:
    """Wait for the first request that is answered; return the seconds since `since`, BACK and a request's at most."""

    async def serves() -> bool:
        return (await arena.load.one("whole")).whole  # through both stages

    await wait_until(serves, timeout=BACK, every=0.05)
    seconds = elapsed(since)
    assert seconds < BACK + OWN_TIME, f"answered again only after {seconds:.1f} s"
    return round(seconds, 2)


async def waiting(arena: Arena, count: int) -> None:
    """Wait until so many requests are under way, at the provider, and admitted for long enough to be known of."""
    await wait_until(lambda: arena.witness.begun(0) >= count, timeout=15)


async def restarted(arena: Arena, chance: random.Random) -> Verdict:
    """Restart the server five times, each time under load: what was admitted is answered."""
    seconds = []
    async with under_load(arena):
        for _ in range(5):
            await anyio.sleep(chance.uniform(0.3, 0.8))
            await stop_server(arena)
            await anyio.sleep(chance.uniform(0.0, 0.6))
            seconds.append(await served_again(arena, await start_server(arena)))
    assert not arena.events("redis lost data")
    return Verdict(codes=GONE, within=BACK + OWN_TIME, figures={"recovered_s": seconds})


scenario(
    "server-restarted-always",
    "F8",
    "SIGTERM of the server under load, five times, log always",
    seconds=15,
    layout=ALWAYS,
)(restarted)


async def killed(arena: Arena, chance: random.Random) -> Verdict:
    """Kill the server with forty requests in its care: all of them are answered, however new."""
    arena.witness.takes = 1.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, 40)
        await waiting(arena, 5)
        await kill_server(arena)
        admitted = list(arena.load.outcomes)
        refused = await arena.load.burst(10)
        assert all(outcome.code in GONE for outcome in refused), refused
        assert not any(arena.witness.calls[outcome.name] for outcome in refused), "what was refused has run"
        await anyio.sleep(chance.uniform(0.5, 2))
        again = await served_again(arena, await start_server(arena))
    lost = [outcome for outcome in admitted if outcome.code in GONE and arena.witness.calls[outcome.name]]
    assert not lost, lost
    assert not arena.events("redis lost data")
    return Verdict(codes=GONE, within=BACK + 2 * OWN_TIME, figures={"recovered_s": again, "refused": len(refused)})


scenario("server-killed-always", "F9", "kill -9 of the server, log always", seconds=8, layout=ALWAYS)(killed)


def logs(arena: Arena) -> list[Path]:
    """Return the files of the server's append-only log that grow."""
    return sorted((arena.directory / "server").glob("valkey/appendonlydir/*.incr.aof"))


async def forgot(arena: Arena, chance: random.Random) -> Verdict:
    """Kill the server and take the last second off its log, as a power cut does: its clients are told in time."""
    arena.witness.takes = 0.5
    async with under_load(arena):
        await anyio.sleep(1)
        sizes = {file: file.stat().st_size for file in logs(arena)}
        cut = time.monotonic()
        await anyio.sleep(1)
        await kill_server(arena)
        for file in logs(arena):
            os.truncate(file, sizes[file])
        pong = await start_server(arena)
        again = await served_again(arena, pong)
    assert arena.events("redis lost data"), "the loss was not noticed"
    begun = [outcome for outcome in arena.load.outcomes if outcome.began >= cut - arena.witness.takes - OWN_TIME]
    lost = [outcome for outcome in arena.load.outcomes if outcome.code in GONE]
    assert all(cut - OWN_TIME <= outcome.began <= pong + BACK for outcome in lost), lost
    return Verdict(
        codes=GONE | {"worker_lost"},  # of a stream that was under way
        again=len(begun),  # the log also forgot that they were answered
        within=LOST_AFTER + NOTICED + OWN_TIME,
        figures={"recovered_s": again, "told": len(lost)},
    )


scenario("server-killed-everysec", "F9", "kill -9 of the server, the last second of its log cut off", seconds=15)(
    forgot
)


async def emptied(arena: Arena, chance: random.Random) -> Verdict:
    """Kill a server that keeps no log: it comes back empty, and streams and groups are made again."""
    async with under_load(arena):
        await anyio.sleep(1)
        await kill_server(arena)
        shutil.rmtree(logs(arena)[0].parent)
        again = await served_again(arena, await start_server(arena))
        lines = len(arena.log.splitlines())
        await anyio.sleep(1)
    assert "NOGROUP" not in arena.log.split("\n", lines)[-1], "the groups were not made again"
    codes = GONE | {"worker_lost"}  # of a stream that was under way
    return Verdict(codes=codes, again=RATE, within=LOST_AFTER + NOTICED + OWN_TIME, figures={"recovered_s": again})


scenario("server-killed-no-log", "F9", "kill -9 of the server, which comes back empty", seconds=15)(emptied)


def cpu_times(arena: Arena) -> dict[int, float]:
    """Return the seconds of CPU that each process has used; the supervisor is one of them."""
    found = {}
    for pid in (*arena.processes(), arena.gateway.process.pid):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found[pid] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return found


async def quiet(arena: Arena, seconds: float = 3.0) -> Mapping[str, float]:
    """See that no process spins or floods the log for a while; return the figures."""
    await anyio.sleep(0.5)  # for the loss itself, which everybody sees at once
    before, lines, began = cpu_times(arena), len(arena.log.splitlines()), time.monotonic()
    await anyio.sleep(seconds)
    passed = elapsed(began)
    shares = {pid: (used - before[pid]) / passed for pid, used in cpu_times(arena).items() if pid in before}
    names = {**arena.processes(), arena.gateway.process.pid: "up"}
    most = max(shares, key=lambda pid: shares[pid])
    assert shares[most] < CPU_AWAY, f"{names[most]} used {shares[most]:.1%} of a core"
    logged = (len(arena.log.splitlines()) - lines) / passed / len(shares)
    assert logged < LINES_AWAY, f"{logged:.1f} lines a second and process"
    return {"cpu_share": round(shares[most], 3), "lines_s": round(logged, 1)}


async def away(arena: Arena, chance: random.Random) -> Verdict:
    """Leave the server away for some seconds, with requests waiting, then bring it back."""
    arena.witness.takes = 1.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, 8, "whole")
        await waiting(arena, 8)
        await stop_server(arena)
        figures = await quiet(arena)
        refused = await arena.load.one("plain")
        assert refused.code in GONE, refused
        assert refused.seconds < 1, refused
        again = await served_again(arena, await start_server(arena))
    return Verdict(codes=GONE, figures={**figures, "recovered_s": again})


scenario("server-away", "F8 M5", "the server stopped for four seconds, eight requests under way", seconds=9)(away)


async def frozen(seconds: float, arena: Arena, chance: random.Random) -> Verdict:
    """Stop the server's process and let it go on: it answers nothing, and its connections stay."""
    arena.witness.takes = 1.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.burst, 8, "whole")
        await waiting(arena, 8)
        os.kill(arena.server.pid, signal.SIGSTOP)
        try:
            figures = await quiet(arena, seconds)
        finally:
            os.kill(arena.server.pid, signal.SIGCONT)
        again = await served_again(arena, time.monotonic())
    return Verdict(codes=GONE, within=seconds + BACK + OWN_TIME, figures={**figures, "recovered_s": again})


for _seconds in (3.0, 8.0):
    scenario(
        f"server-frozen-{_seconds:.0f}s", "F14 M5", f"SIGSTOP of the server for {_seconds:.0f} s", seconds=_seconds + 5
    )(functools.partial(frozen, _seconds))


STREAMS = tuple(keyspace.jobs(stage, "live") for stage in ("resolve", "dispatch"))


async def robbed(commands: tuple[tuple[str, ...], ...], arena: Arena, chance: random.Random) -> Verdict:
    """Take something out of the server while requests are under way: all goes on by itself, and nobody hangs."""
    arena.witness.takes = 0.5
    async with under_load(arena):
        await anyio.sleep(BEAT + 0.5)  # the ingress has looked: a new stream that outgrows the old one goes unnoticed
        in_flight = arena.load.under_way
        done = time.monotonic()
        await arena.redis(*commands)
        again = await served_again(arena, done)
    regrouped = commands[0][0] == "XGROUP"  # a group made anew delivers once more what others work on
    return Verdict(
        codes=frozenset() if commands[0][0] == "SCRIPT" else GONE | {"worker_lost"},  # of streams that were under way
        again=in_flight if regrouped else 0,
        within=LOST_AFTER + NOTICED + OWN_TIME,
        figures={"recovered_s": again},
    )


for _name, _commands in {
    "flushed": (("FLUSHALL",),),
    "resolve-stream-deleted": (("DEL", STREAMS[0]),),
    "dispatch-stream-deleted": (("DEL", STREAMS[1]),),
    "groups-destroyed": tuple(("XGROUP", "DESTROY", stream, keyspace.GROUP) for stream in STREAMS),
    "scripts-flushed": (("SCRIPT", "FLUSH"),),
}.items():
    scenario(
        f"server-{_name}", "F11", " and ".join(" ".join(command) for command in _commands) + " under load", seconds=14
    )(functools.partial(robbed, _commands))
