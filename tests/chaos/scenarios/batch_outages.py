"""What lines need is away for a while: the provider, a prompt manager, the owner itself. No line is burnt by it."""

from __future__ import annotations

import functools
import os
import random
import signal
import time

import anyio
import msgspec
from chaos.arena import Arena
from chaos.batches import LINES
from chaos.scenario import Verdict, scenario
from chaos.scenarios.batch_kills import KEPT, ONE, TWO, again, took_over
from fakes.upstream import Answer, failure

ENDS = 240.0
"""Seconds in which a batch must be over: after a long outage its last lines try again as late as a minute after it."""


MOVES = 50
"""Lines that are done between two outages."""


async def provider_away(refused: float, arena: Arena, chance: random.Random) -> Verdict:
    """Refuse connections; later answer 429 for a while, and later 500; then all is well again."""
    failed = 0
    usual = arena.witness.upstream.default

    async def fail(answer: Answer) -> None:
        def count(received: object) -> Answer:
            nonlocal failed
            failed += 1
            return answer

        arena.witness.upstream.default = count
        await anyio.sleep(refused / 4)
        arena.witness.upstream.default = usual

    async with arena.batch(limit=ENDS) as batch:
        await batch.reaches(chance.uniform(0.1, 0.3))
        arena.provider.edges[""].refuse = True
        arena.provider.cut("")
        await anyio.sleep(refused)
        arena.provider.heal()
        for answer in (failure(429, headers={"retry-after": "1"}), failure(500)):
            await batch.reaches((batch.done + MOVES) / LINES)
            await fail(answer)
        well = time.monotonic()
    assert failed, "nobody noticed"
    # Those that were cut in the middle may have been counted, too.
    return Verdict(
        again=failed + again(arena), kept=KEPT, figures={"failed": failed, **await took_over(arena, batch, well)}
    )


for _refused, _seconds in ((4.0, 25), (20.0, 80)):
    scenario(
        f"batch-provider-away-{_refused:.0f}s",
        "F23 F30",
        f"in a batch of {LINES:,} lines: {_refused:.0f} s of refused connections, later 429s, and later 500s",
        layout=ONE,
        seconds=_seconds,
    )(functools.partial(provider_away, _refused))


DOWN = "manager-is-down"
_MANAGER = f"""
import pathlib
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Mine(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        if pathlib.Path(__file__).with_name("{DOWN}").exists():
            raise ConnectionError("the service of our prompts is away")
        return model, [{{"role": "system", "content": "made"}}, *messages], non_default_params

mine = Mine()
"""


async def manager_away(arena: Arena, chance: random.Random) -> Verdict:
    """Let the manager fail for a while: lines without a prompt go on, the others wait."""
    down = arena.directory / DOWN
    async with arena.batch(limit=ENDS) as batch:
        await batch.reaches(chance.uniform(0.1, 0.3))
        down.touch()
        await anyio.sleep(6)
        assert not batch.ended
        down.unlink()
        well = time.monotonic()
    return Verdict(again=again(arena, 0), kept=KEPT, figures=await took_over(arena, batch, well))


scenario(
    "batch-manager-away",
    "F30",
    f"a prompt manager that raises for 6 s, in a batch of {LINES:,} lines of which half have a prompt",
    layout=msgspec.structs.replace(ONE, manager=_MANAGER),
    seconds=25,
)(manager_away)


async def frozen_owner(arena: Arena, chance: random.Random) -> Verdict:
    """Freeze the owner for three leases: another one may have the batch then, and what the first one writes is void."""
    async with arena.batch() as batch:
        await batch.reaches(chance.uniform(0.1, 0.4))
        owner = await arena.owner(batch)
        os.kill(owner, signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            await anyio.sleep(3 * arena.layout.lease)
        finally:
            os.kill(owner, signal.SIGCONT)
    assert await arena.owners(batch) >= min(arena.layout.feed, 2), "nobody took it over"
    assert arena.events("batch done", batch=batch.id) == 1
    return Verdict(
        again=again(arena, await arena.owners(batch) - 1), kept=KEPT, figures=await took_over(arena, batch, frozen)
    )


for _layout, _name in ((ONE, "alone"), (TWO, "one-of-two")):
    scenario(
        f"batch-owner-frozen-{_name}",
        "F5 M3",
        f"SIGSTOP of a batch's owner for 3 leases, {_layout.feed} feed processes",
        layout=_layout,
        seconds=15,
    )(frozen_owner)
