"""Clients that leave, read a byte a second, dawdle with their requests, or only keep a connection open."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream
from chaos import silent
from chaos.arena import Arena, Layout
from chaos.gauges import memory, no_slot_is_taken
from chaos.load import percentile, request
from chaos.scenario import QUICK, Verdict, scenario
from chaos.sockets import Caller, dial, head, whole
from chaos.tight import BODY_TIMEOUT, DISPATCH_SLOTS, HEAD_TIMEOUT, TIGHT
from fakes.upstream import HANG, Answer, Received, chunk, hang, sse
from fakes.waiting import wait_until

BUSY = 1.0
"""Seconds by which a busy machine may be late with anything."""


def scripted(usual: Callable[[Received], Answer], **answers: Answer) -> Callable[[Received], Answer]:
    """Answer requests that name an answer in `user` with it, all others as usual."""
    return lambda received: answers.get(received.json.get("user", "")) or usual(received)


@contextmanager
def hung_up_on(callers: list[Caller]) -> Iterator[None]:
    """Leave in the end, whatever happened."""
    with ExitStack() as stack:
        for caller in callers:
            stack.callback(caller.leave)
        yield


async def call(arena: Arena, name: str, kind: str, *, receives: int = 0, **fields: Any) -> Caller:
    """Send a request on a connection of its own."""
    caller = await dial(arena.gateway.url, receives=receives)
    caller.say(whole(request(name, kind, **fields)))
    return caller


# Leaving

LEAVING = 10
"""Clients that leave at each step."""
CLOSED_WITHIN = 1.0
"""Seconds until the provider must see that nobody waits any more."""
SLOTS = 2 * DISPATCH_SLOTS


@scenario(
    "client-leaves-at-every-step",
    "F24",
    f"{LEAVING} clients each leave while their prompt is made, before the first token, in the stream, and before a "
    "whole answer; then twice as many while they are queued",
    layout=TIGHT,
    seconds=6,
)
async def leaves(arena: Arena, chance: random.Random) -> Verdict:
    """Who leaves before its call costs no call; every other call is closed within a second, and the slots are free."""
    usual = arena.witness.upstream.default
    begun = sse(chunk("some"), done=False, then=HANG)
    arena.witness.upstream.default = scripted(usual, hang=hang(), begun=begun)
    in_calls = await _leave_calls(arena)
    await _leave_hooks(arena)
    in_queue = await _leave_the_queue(arena)
    arena.witness.upstream.default = usual
    ends = await arena.load.burst(SLOTS)
    assert all(end.whole for end in ends), [str(end) for end in ends if not end.whole]
    await no_slot_is_taken(arena)
    unwanted = [name for name in arena.witness.calls if name.startswith(("queued", "resolving"))]
    assert not unwanted, f"calls for clients that had left: {unwanted}"
    return Verdict(figures={"closed_within_s": round(max(in_calls, in_queue), 2)})


async def _closed(arena: Arena, callers: list[Caller]) -> float:
    """Leave all at once; return after how many seconds the provider saw the last of their connections close."""
    before = len(arena.witness.left)
    began = time.monotonic()
    for caller in callers:
        caller.leave()
    await wait_until(lambda: len(arena.witness.left) - before == len(callers), timeout=10)
    seconds = arena.witness.left[-1] - began
    assert seconds < CLOSED_WITHIN + BUSY, f"{seconds:.2f} s until the provider knew"
    return seconds


async def _leave_calls(arena: Arena) -> float:
    steps = (("before-token", "stream", "hang"), ("mid-stream", "stream", "begun"), ("whole", "plain", "hang"))
    callers = {
        f"{step}-{number}": await call(arena, f"{step}-{number}", kind, user=user)
        for step, kind, user in steps
        for number in range(LEAVING)
    }
    with hung_up_on(list(callers.values())):
        for name, caller in callers.items():
            if name.startswith("mid-stream"):
                await caller.hear(b"some")
        await wait_until(lambda: arena.witness.calls.keys() >= callers.keys(), timeout=10)
        return await _closed(arena, list(callers.values()))


async def _leave_hooks(arena: Arena) -> None:
    callers = [await call(arena, f"resolving-{number}", "whole", prompt_id="slow") for number in range(LEAVING)]
    with hung_up_on(callers):
        await wait_until(lambda: _holds(arena, "resolve", LEAVING), timeout=5)


async def _leave_the_queue(arena: Arena) -> float:
    first = [await call(arena, f"first-{number}", "plain", user="hang") for number in range(SLOTS)]
    with hung_up_on(first):
        await wait_until(lambda: sum(n.startswith("first") for n in arena.witness.calls) == SLOTS, timeout=10)
        queued = [await call(arena, f"queued-{number}", "plain") for number in range(2 * LEAVING)]
        with hung_up_on(queued):
            await wait_until(lambda: _holds(arena, "dispatch", SLOTS + len(queued)), timeout=5)
        return await _closed(arena, first)


async def _holds(arena: Arena, stage: str, count: int) -> bool:
    """Whether so many jobs are in a stage, waiting or running."""
    seen = await arena.overview()
    return seen is not None and sum(s.backlog + s.pending for s in seen.stages if s.stage == stage) == count


# Reading slowly

UNREAD = 2**20 + 2**17
"""Bytes the ingress may hold for a client that does not read: a MiB, and what lies in its connection's own buffer."""
SLACK = 24 * 2**20
EVENT = 32 * 1024
SLOW_MACHINE = 150.0
"""Seconds it may take longer until as much has been sent as every client may leave unread."""

RATE = 130
"""Events a second, of all streams together: a flood would test the provider and the wires rather than the gateway."""
FLOOD = 1000
"""Events of a stream: never all of them."""
PATIENT = Layout(lease=4.0, request_timeout=300)
"""Floods keep a busy machine so busy that a lease of a second would run out."""


async def slow_readers(count: int, seconds: float, rounds: int, arena: Arena, chance: random.Random) -> Verdict:
    """Each is cut when it is as far behind as it may be; memory stays bounded, and other streams do not notice."""
    figures = [await _read_slowly(count, seconds, arena) for _ in range(rounds)]
    assert all(later["grew_mb"] < SLACK >> 20 for later in figures[1:]), f"it grows each time: {figures}"
    return Verdict(kept=count * UNREAD, figures=figures[-1] | {"grew_mb": [one["grew_mb"] for one in figures]})


async def _read_slowly(count: int, seconds: float, arena: Arena) -> dict[str, Any]:
    before = [end.seconds for end in await arena.load.burst(20, "stream")]
    usual = arena.witness.upstream.default
    begin, event, *_ = sse(chunk("x" * EVENT)).steps
    arena.witness.upstream.default = scripted(usual, flood=Answer((begin, *[event, count / RATE] * FLOOD)))
    left, told = len(arena.witness.left), arena.events("client reads too slowly")
    pids = arena.pids("ingress")
    base = peak = memory(pids)
    callers = [
        await call(arena, f"slow-{left}-{number}", "stream", receives=4096, user="flood", prompt_id="p")
        for number in range(count)
    ]
    began = len(arena.load.outcomes)
    with hung_up_on(callers):
        async with _in_the_background(arena, "stream"):
            until = time.monotonic() + seconds
            while time.monotonic() < until or arena.events("client reads too slowly") - told < count:
                assert time.monotonic() < until + SLOW_MACHINE, f"fewer than {count} were cut"
                await asyncio.gather(*(caller.listen(1) for caller in callers), anyio.sleep(1))
                peak = max(peak, memory(pids))
    others = [end.seconds for end in arena.load.outcomes[began:]]
    await wait_until(lambda: len(arena.witness.left) - left == count, timeout=10)
    await no_slot_is_taken(arena)
    assert peak - base < count * UNREAD + SLACK, f"the ingress grew by {(peak - base) >> 20} MB for {count} clients"
    _unharmed(before, others)
    arena.witness.upstream.default = usual
    return {"grew_mb": (peak - base) >> 20, **_latencies(before, others)}


@asynccontextmanager
async def _in_the_background(arena: Arena, kind: str = "") -> AsyncIterator[None]:
    """Send ten requests a second meanwhile."""
    over = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.steady, 10, over, kind)
        try:
            yield
        finally:
            over.set()


def _unharmed(before: list[float], during: list[float]) -> None:
    """Check that requests took no longer than a fifth more, and what a busy machine adds."""
    for share, noise in ((0.5, BUSY / 2), (0.99, 3 * BUSY)):
        limit = 1.2 * percentile(before, share) + noise
        assert percentile(during, share) < limit, _latencies(before, during)


def _latencies(before: list[float], during: list[float]) -> dict[str, float]:
    return {
        "alone_p99_s": round(percentile(before, 0.99), 2),
        "meanwhile_p50_s": round(percentile(during, 0.5), 2),
        "meanwhile_p99_s": round(percentile(during, 0.99), 2),
    }


for _count, _seconds, _rounds in ((40, 5, 1), (200, 60, 2)):
    scenario(
        f"client-reads-slowly-{_count}",
        "F17 M7",
        f"{_count} clients that read a byte a second, of {EVENT * RATE >> 20} MB a second in all, among others",
        layout=PATIENT,
        seconds=15 if _seconds < QUICK else 160,
    )(functools.partial(slow_readers, _count, _seconds, _rounds))


# Sending slowly, or nothing

PAUSE = 0.3
"""Seconds between two bytes: less than any limit for the pauses themselves."""


CONNECTION = 13 * 1024
"""Bytes a connection costs the ingress, measured; the allocator keeps some of them for the next."""

ROOMY = Layout(settings="head_timeout: 15\nbody_timeout: 15")
"""For thousands of clients, which take seconds to connect: all of them are there before the first one's time is up."""


async def dawdlers(each: int, idle: int, patience: float, arena: Arena, chance: random.Random) -> Verdict:
    """Who does not come to the point in time is told so and hung up on; nobody else notices."""
    before = [end.seconds for end in await arena.load.burst(20)]
    began = len(arena.load.outcomes)
    url = arena.gateway.url
    command = [sys.executable, silent.__file__, url.rpartition(":")[2], str(idle)]
    opening = time.monotonic()
    async with await anyio.open_process(command) as crowd:
        assert crowd.stdout is not None
        said = BufferedByteReceiveStream(crowd.stdout)
        assert await said.receive_until(b"\n", 16) == b"open"
        heads, bodies = [await dial(url) for _ in range(each)], [await dial(url) for _ in range(each)]
        opened = time.monotonic()
        assert opened - opening < patience, "the first ones are gone before the last ones came"
        with hung_up_on([*heads, *bodies]):
            async with _in_the_background(arena), anyio.create_task_group() as tasks:
                ends: list[float] = []
                for caller in heads:
                    tasks.start_soon(_dawdle, caller, head(2)[:-2], ends)
                for caller in bodies:
                    tasks.start_soon(
                        _dawdle, caller, head(10_000) + b"\r\n" + b" " * 10_000, ends, len(head(10_000)) + 2
                    )
                assert await said.receive_until(b"\n", 16) == b"closed"
                ends.append(time.monotonic())
    others = [end.seconds for end in arena.load.outcomes[began:]]
    limit = patience + 3 * BUSY + idle / 1000
    assert max(ends) - opened < limit, f"the last one was hung up on after {max(ends) - opened:.1f} s"
    assert {caller.status for caller in (*heads, *bodies)} == {408}, {caller.status for caller in (*heads, *bodies)}
    _unharmed(before, others)
    await no_slot_is_taken(arena)
    figures = {"hung_up_after_s": round(max(ends) - opened, 1), **_latencies(before, others)}
    return Verdict(kept=idle * CONNECTION, figures=figures)


async def _dawdle(caller: Caller, text: bytes, ends: list[float], at_once: int = 0) -> None:
    """Send `at_once` bytes of `text`, then one after the other, until the gateway hangs up; note when it did."""

    async def speak() -> None:
        caller.say(text[:at_once])
        for byte in itertools.islice(text, at_once, None):
            caller.say(bytes((byte,)))
            await anyio.sleep(PAUSE)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(speak)
        ends.append(await caller.ended())
        tasks.cancel_scope.cancel()


for _each, _idle, _layout, _patience in (
    (40, 500, TIGHT, max(HEAD_TIMEOUT, BODY_TIMEOUT)),
    (100, 9_000, ROOMY, 15.0),
):
    scenario(
        f"client-dawdles-{_idle}",
        "F35",
        f"{_each} clients that send a byte of their head every {PAUSE} s, as many of their body, and {_idle} that say "
        "nothing",
        layout=_layout,
        seconds=8 if _idle < 1000 else QUICK + 30,
    )(functools.partial(dawdlers, _each, _idle, _patience))
