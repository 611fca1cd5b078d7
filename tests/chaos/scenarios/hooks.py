"""Prompt managers that crash, hang, block, raise what nobody catches, or never give memory back."""

from __future__ import annotations

import random
import signal

from chaos.arena import Arena
from chaos.gauges import memory, no_slot_is_taken
from chaos.load import Outcome
from chaos.scenario import Verdict, scenario
from chaos.tight import BLOCKED, LEAKED, PROMPT_SLOTS, PROMPT_TIMEOUT, TIGHT
from fakes.waiting import wait_until

NEIGHBOURS = 20
DELIVERIES = 3
"""How often resolve delivers a job at most: each time its process dies, and is started again."""
RESTART = 6.0
"""Seconds until the next process has loaded the managers, on a busy machine, the supervisor's pauses included."""
OWN_TIME = 4.0


async def among_neighbours(arena: Arena, *prompts: str) -> tuple[list[Outcome], list[Outcome]]:
    """Ask for prompts that misbehave, in the midst of requests for one that does not; return the ends of both."""
    usual = [("", {})] * (NEIGHBOURS // 2)
    asked = [("whole", {"prompt_id": prompt}) for prompt in prompts]
    ends = await arena.load.together(*usual, *asked, *usual)
    bad = ends[len(usual) : len(usual) + len(asked)]
    neighbours = [end for end in ends if end not in bad]
    harmed = [str(end) for end in neighbours if not end.whole]
    assert not harmed, f"neighbours were harmed: {harmed}"
    return bad, neighbours


def only(ends: list[Outcome], status: int, code: str) -> frozenset[str]:
    """Check that all ends are this error; return it for the verdict."""
    assert {(end.status, end.code) for end in ends} == {(status, code)}, [str(end) for end in ends]
    return frozenset({code})


@scenario(
    "hook-ends-its-process",
    "F20",
    f"two prompts whose managers call os._exit, among {NEIGHBOURS} others",
    layout=TIGHT,
    seconds=9,
)
async def ends_its_process(arena: Arena, chance: random.Random) -> Verdict:
    """Poison ends its process as often as it may, then becomes a dead letter; its neighbours are answered."""
    bad, neighbours = await among_neighbours(arena, "exit", "async exit")
    crashes = arena.log.count("ended with status 3")
    assert DELIVERIES <= crashes <= DELIVERIES * len(bad), f"{crashes} crashes for {len(bad)} poisoned jobs"
    return Verdict(
        codes=only(bad, 502, "prompt_manager_crashed"),
        letters=len(bad),
        within=DELIVERIES * (arena.layout.lease + 2 + RESTART) + OWN_TIME,
        figures={"crashes": crashes, "neighbours_s": round(max(end.seconds for end in neighbours), 1)},
    )


@scenario(
    "hook-never-returns",
    "F20 F21",
    f"hooks that hang, block a thread and block the shared loop, among {NEIGHBOURS} others",
    layout=TIGHT,
    seconds=10,
)
async def never_returns(arena: Arena, chance: random.Random) -> Verdict:
    """Who hangs is answered for when its time is up; its lease holds meanwhile, and its neighbours do not wait."""
    before = arena.pids("resolve")
    bad, neighbours = await among_neighbours(arena, "block", "async hang", "async block", "block", "async block")
    assert min(end.seconds for end in bad) >= PROMPT_TIMEOUT, [str(end) for end in bad]
    assert arena.events("claimed") == arena.events("lease lost") == 0, "a lease did not hold"
    assert arena.pids("resolve") == before, "a process went with it"
    await no_slot_is_taken(arena)
    return Verdict(
        codes=only(bad, 504, "prompt_manager_timeout"),
        within=PROMPT_TIMEOUT + OWN_TIME,
        figures={"neighbours_s": round(max(end.seconds for end in neighbours), 1)},
    )


@scenario(
    "hook-takes-all-slots",
    "F21",
    f"{2 * PROMPT_SLOTS} hooks that block for {BLOCKED:.0f} s: all slots of both processes, then {NEIGHBOURS} others",
    layout=TIGHT,
    seconds=10,
)
async def takes_all_slots(arena: Arena, chance: random.Random) -> Verdict:
    """Processes whose slots are stuck are replaced; who comes meanwhile is answered late, and by the new ones."""
    before = set(arena.pids("resolve"))
    blocking = [("whole", {"prompt_id": "block"})] * (2 * PROMPT_SLOTS)
    ends = await arena.load.together(*blocking, *[("", {})] * NEIGHBOURS)
    bad, neighbours = ends[: len(blocking)], ends[len(blocking) :]
    assert all(end.whole for end in neighbours), [str(end) for end in neighbours if not end.whole]
    await wait_until(lambda: arena.log.count("ended with status 75") == len(before), timeout=15)
    assert not before & set(arena.pids("resolve"))
    return Verdict(
        codes=only(bad, 504, "prompt_manager_timeout"),
        within=2 * PROMPT_TIMEOUT + RESTART + OWN_TIME,
        figures={"neighbours_s": round(max(end.seconds for end in neighbours), 1)},
    )


RAISED = ("BaseException", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "MemoryError", "RecursionError")


@scenario(
    "hook-raises",
    "F21",
    f"{', '.join(RAISED)} and CancelledError, from synchronous and asynchronous hooks, among {NEIGHBOURS} others",
    layout=TIGHT,
    seconds=3,
)
async def raises(arena: Arena, chance: random.Random) -> Verdict:
    """Whatever a hook raises ends its own request, and neither its process nor a neighbour."""
    before = arena.pids("resolve")
    errors = [*RAISED, "cancelled"]
    bad, _ = await among_neighbours(arena, *errors, *(f"async {error}" for error in errors))
    assert arena.pids("resolve") == before, "a process went with it"
    return Verdict(codes=only(bad, 502, "prompt_manager_error"), within=OWN_TIME)


LEAKS = 12


@scenario(
    "hook-leaks",
    "F21",
    f"hooks that keep {LEAKED >> 20} MB each, {LEAKS} times, among {NEIGHBOURS} others; then resolve is restarted",
    layout=TIGHT,
    seconds=7,
)
async def leaks(arena: Arena, chance: random.Random) -> Verdict:
    """What user code keeps is its stage's alone, and gone with its process."""
    others = {part: memory(arena.pids(part)) for part in ("ingress", "dispatch")}
    bad, _ = await among_neighbours(arena, *["leak"] * LEAKS)
    assert all(end.whole for end in bad), [str(end) for end in bad]
    grown = {part: memory(arena.pids(part)) - before for part, before in others.items()}
    assert all(grew < LEAKED for grew in grown.values()), grown
    kept = memory(arena.pids("resolve"))
    for pid in arena.pids("resolve"):  # one after the other, as an operator would
        arena.signal("resolve", signal.SIGTERM, arena.pids("resolve").index(pid))
        await arena.ended(pid)
        await wait_until(arena.complete, timeout=20, every=0.1)
    assert memory(arena.pids("resolve")) < kept
    return Verdict(within=OWN_TIME, figures={"resolve_mb": kept >> 20, "others_mb": max(grown.values()) >> 20})
