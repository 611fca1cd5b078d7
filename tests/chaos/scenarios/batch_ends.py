"""A batch is cancelled, or its time is up: what is done is kept, the rest is said not to have run, and nothing runs."""

from __future__ import annotations

import functools
import os
import random
import signal
import time

import anyio
from chaos.arena import Arena
from chaos.batches import ENDS, LINES, WINDOW, Batch
from chaos.scenario import Verdict, scenario
from chaos.scenarios.batch_kills import KEPT, ONE, SECONDS, TWO, again
from fakes.waiting import wait_until

WITHIN = 10.0
"""Seconds in which a cancelled batch must have ended, whatever became of its owner."""

HELD_MS = 1500
"""How long a step is held up for a cancellation to meet it."""

AFTERWARDS = 2.0
"""Seconds after the end by which workers and provider on a busy machine may be late; on an idle one it is none."""

QUIET = 3.0

HELD = {"validating": "feed.validating", "finalizing": "feed.before_rename", "ending": "feed.before_terminal"}
"""Phases that are over too soon to be met by chance."""

SHARES = {"start": 0.01, "middle": 0.5, "end": 0.8}
"""What is done when a batch is cancelled; what it tells is half a second old, and of the end that is a fifth."""


async def cancelled(phase: str, arena: Arena, chance: random.Random) -> Verdict:
    """Cancel a batch in a phase of it, twice."""
    arena.witness.takes = 0.5
    held = arena.arm(HELD[phase], f"sleep({HELD_MS})") if phase in HELD else None
    async with arena.batch(wanted="cancelled") as batch:
        if held is not None:
            await wait_until(lambda: not held.exists(), timeout=ENDS)
        else:
            await batch.reaches(SHARES[phase])
        told = await _cancel_twice(batch, chance)
    return await _over(arena, batch, told)


async def _cancel_twice(batch: Batch, chance: random.Random) -> float:
    told = await batch.cancel()
    await anyio.sleep(chance.uniform(0, 0.3))
    await batch.cancel()
    return told


async def _over(arena: Arena, batch: Batch, told: float, faults: int = 0) -> Verdict:
    """Check that it ended in time, and that no line is asked for any more."""
    took = batch.ended - told
    assert took < WITHIN, f"{batch.now['status']} {took:.1f} s after it was cancelled"
    await anyio.sleep(QUIET)
    late = [call.time - batch.ended for call in arena.witness.received if call.time > batch.ended + AFTERWARDS]
    assert not late, f"I8 {len(late)} calls {late[0]:.1f} to {late[-1]:.1f} s after the end of the batch"
    figures = {"ended_s": round(took, 1), "answers": len(batch.answers), "undone": len(batch.errors)}
    return Verdict(again=again(arena, faults), kept=KEPT, figures=figures)


for _phase in (*HELD, *SHARES):
    scenario(
        f"batch-cancelled-{_phase}",
        "F25",
        f"cancel, twice, of a batch of {LINES:,} lines: {_phase}",
        layout=ONE,
        seconds=SECONDS,
    )(functools.partial(cancelled, _phase))


async def cancel_racing(arena: Arena, chance: random.Random) -> Verdict:
    """Cancel small batches about when they end: each is cancelled or completed, and never first one, then the other."""
    ended = []
    for _ in range(8):
        async with arena.batch(WINDOW) as batch:
            await batch.reaches(0.5)
            await anyio.sleep(chance.uniform(0, 0.4))
            told = await batch.cancel()
        batch.wanted = "cancelled" if batch.now["status"] == "cancelled" else "completed"
        assert batch.ended - told < WITHIN
        ended.append(batch.wanted)
    figures = {state: ended.count(state) for state in sorted(set(ended))}
    return Verdict(kept=KEPT, figures=figures)


scenario(
    "batch-cancelled-about-its-end", "F25", "cancel of 8 batches about when they end", layout=ONE, seconds=SECONDS
)(cancel_racing)


async def cancelled_without_owner(number: int, arena: Arena, chance: random.Random) -> Verdict:
    """Cancel a batch whose owner has just been frozen or killed."""
    arena.witness.takes = 1.0
    async with arena.batch(wanted="cancelled") as batch:
        await batch.reaches(chance.uniform(0.1, 0.5))
        owner = await arena.owner(batch)
        os.kill(owner, number)
        told = await _cancel_twice(batch, chance)
        if number == signal.SIGSTOP:
            await anyio.sleep(3 * arena.layout.lease)
            os.kill(owner, signal.SIGCONT)
    return await _over(arena, batch, told, faults=1)


for _number, _word in ((signal.SIGSTOP, "frozen"), (signal.SIGKILL, "dead")):
    scenario(
        f"batch-cancelled-owner-{_word}",
        "F25",
        f"cancel of a batch whose owner is {_word}, one of two feed processes",
        layout=TWO,
        seconds=SECONDS,
    )(functools.partial(cancelled_without_owner, _number))


HAS = 5.0
"""Seconds that a batch has which shall expire; it needs four times as many."""


async def expired(killed: bool, arena: Arena, chance: random.Random) -> Verdict:
    """Let a batch's time end while it runs, with its owner there or just dead."""
    arena.witness.takes = HAS * WINDOW * 4 / LINES
    async with arena.batch(wanted="expired", seconds=HAS) as batch:
        made = time.monotonic()
        if killed:
            await anyio.sleep(HAS - chance.uniform(0.2, 1))
            os.kill(await arena.owner(batch), signal.SIGKILL)
    return await _over(arena, batch, made + HAS, faults=int(killed))


for _killed in (False, True):
    scenario(
        "batch-expired" + "-owner-dead" * _killed,
        "F26",
        f"{HAS:.0f} s for a batch that needs {4 * HAS:.0f}" + ", its owner killed before they end" * _killed,
        layout=ONE,
        seconds=SECONDS,
    )(functools.partial(expired, _killed))
