"""One worker of several is a hundred times slower than the others: only what it holds itself waits for it."""

from __future__ import annotations

import os
import random
import signal

import anyio
from chaos.arena import Arena, Layout
from chaos.load import Outcome, percentile
from chaos.scenario import Verdict, scenario
from chaos.witness import named
from fakes.waiting import wait_until

QUICK = 0.02
SLOW = 100 * QUICK
RATE = 20.0
SECONDS = 4.0
TAKES = 0.5
"""Seconds of a provider call: what a busy machine adds to a request is little beside it."""

OWN_TIME = 1.5
"""Seconds of a busy machine: less than a slow call, for which nobody queues up."""

BUSY = 0.5
"""Seconds by which a busy machine may be slower at one time than at another: whoever waits for a slow call waits 2."""

WORSE = 1.5
"""By how much the slowest of a hundred requests may be slower that the slow worker never had."""

_MANAGER = f"""
import os, pathlib, time
from litellm.integrations.custom_prompt_management import CustomPromptManagement

SLOW = pathlib.Path(__file__).with_name("slow")

class Mine(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        me = str(os.getpid())
        time.sleep({SLOW} if SLOW.exists() and SLOW.read_text() == me else {QUICK})
        return model, [{{"role": "system", "content": me}}, *messages], non_default_params

mine = Mine()
"""

_SITE = f"""
import contextlib, os, pathlib, sys

if "dispatch" in sys.orig_argv:
    with contextlib.suppress(FileExistsError), open(pathlib.Path(__file__).with_name("slow"), "x") as file:
        file.write(str(os.getpid()))
        os.environ["PROMPTMILL_FAILPOINTS"] = "dispatch.after_response=sleep({SLOW * 1000:.0f})"
"""
"""Makes one dispatch process slow, the first one, at every call it makes; the one in its place is as the others."""


async def asked(arena: Arena) -> list[Outcome]:
    """Send requests for a while and return their ends."""
    before, done = len(arena.load.outcomes), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arena.load.steady, RATE, done, "whole")
        await anyio.sleep(SECONDS)
        done.set()
    return arena.load.outcomes[before:]


def p99(outcomes: list[Outcome]) -> float:
    return percentile([outcome.seconds for outcome in outcomes], 0.99)


def judged(clean: list[Outcome], slow: list[Outcome], others: list[Outcome]) -> Verdict:
    """Compare what the other workers did with what all of them did when none was slow."""
    assert slow, "the slow worker had nothing to do"
    assert p99(others) <= WORSE * p99(clean), (
        f"p99 {p99(others):.2f} s beside a slow worker, {p99(clean):.2f} s without"
    )
    figures: dict[str, float] = {"slow_had": len(slow), "others_had": len(others)}
    figures |= {"clean_p99_s": round(p99(clean), 2), "others_p99_s": round(p99(others), 2)}
    return Verdict(within=SLOW + TAKES + OWN_TIME, figures=figures)


async def slow_resolve(arena: Arena, chance: random.Random) -> Verdict:
    """Let every hook take a hundred times longer in one process; what its hooks say tells who ran them."""
    arena.witness.takes = TAKES
    file = arena.directory / "slow"
    clean = await asked(arena)
    file.write_text(str(arena.pids("resolve")[0]))
    both = await asked(arena)
    ran = {named(received): received.json["messages"][0]["content"] for received in arena.witness.received}
    slow = [outcome for outcome in both if ran.get(outcome.name) == file.read_text()]
    file.unlink()
    return judged(clean, slow, [outcome for outcome in both if outcome not in slow])


scenario(
    "slow-resolve",
    "F16",
    f"one of 4 resolve workers takes {SLOW:.0f} s for a hook, the others {QUICK * 1000:.0f} ms",
    layout=Layout(resolve=4, manager=_MANAGER, settings="prompt_slots: 4"),
    seconds=14,
)(slow_resolve)


async def slow_dispatch(arena: Arena, chance: random.Random) -> Verdict:
    """Let every call take longer in one process, and look at those that took less; then put another in its place."""
    arena.witness.takes = TAKES
    both = await asked(arena)
    slow = [outcome for outcome in both if outcome.seconds >= SLOW]
    pid = int((arena.directory / "site" / "slow").read_text())
    os.kill(pid, signal.SIGTERM)
    await arena.ended(pid)
    await wait_until(arena.complete, timeout=20, every=0.1)
    clean = await asked(arena)
    return judged(clean, slow, [outcome for outcome in both if outcome not in slow])


scenario(
    "slow-dispatch",
    "F16",
    f"one of 4 dispatch workers needs {SLOW:.0f} s more for every call",
    layout=Layout(dispatch=4, site=_SITE),
    seconds=14,
    fresh=True,
)(slow_dispatch)
