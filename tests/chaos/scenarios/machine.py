"""The operating system gives no more: no open files, no memory. Requests are refused, and no process ends for it."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.arena import Arena, Layout
from chaos.gauges import no_slot_is_taken
from chaos.scenario import Verdict, scenario
from chaos.tight import TIGHT

FILES = 256
FEW_FILES = Layout(ingress=2, dispatch=1, files=FILES)
CALLS = 500
"""More than the connections that two ingress processes may have, and than the calls that one dispatch process may."""
TAKES = 1.0
OWN_TIME = 40.0


@scenario(
    "limit-of-files",
    "F31",
    f"{CALLS} requests at a time, in processes that may have {FILES} files open each",
    layout=FEW_FILES,
    seconds=10,
)
async def files(arena: Arena, chance: random.Random) -> Verdict:
    """What does not fit is refused at the edge, or waits for a slot; what was admitted is answered."""
    before = arena.processes()
    arena.witness.takes = TAKES
    ends = await arena.load.burst(CALLS, "plain")
    assert sum(end.whole for end in ends) >= FILES, arena.load.codes
    assert arena.processes() == before, "a process went with it"
    away = [end for end in ends if not end.whole]
    assert not any(arena.witness.calls[end.name] for end in away), "who was refused was sent to the provider"
    arena.witness.takes = 0.1
    again = await arena.load.burst(50)
    assert all(end.whole for end in again), [str(end) for end in again if not end.whole]
    await no_slot_is_taken(arena)
    return Verdict(
        codes=frozenset({"backlog_full"}),
        cut=True,  # where more come at once than can be told
        within=3 * TAKES + OWN_TIME,
        figures={"told": arena.load.codes["backlog_full"], "hung_up_on": arena.load.codes["cut"]},
    )


ROOM = 256 * 2**20
"""Bytes of address space a process may have beyond what it has."""


@contextmanager
def no_more_memory(pids: list[int]) -> Iterator[None]:
    """Leave processes `ROOM`, and let them have what they want again in the end."""
    _, hard = resource.prlimit(pids[0], resource.RLIMIT_AS)
    for pid in pids:
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (used + ROOM, hard))
    try:
        yield
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


HOARDERS = 6
NEIGHBOURS = 30


@scenario(
    "limit-of-memory-in-hooks",
    "F31 F21",
    f"{HOARDERS} hooks that want 64 GB, in processes that may grow by {ROOM >> 20} MB, among {NEIGHBOURS} others",
    layout=TIGHT,
    seconds=3,
)
async def memory_of_hooks(arena: Arena, chance: random.Random) -> Verdict:
    """A hook that gets no memory fails, and nothing else does."""
    before = arena.processes()
    with no_more_memory(arena.pids("resolve")):
        hoarding = [("whole", {"prompt_id": "hoard"}), ("whole", {"prompt_id": "async hoard"})] * (HOARDERS // 2)
        ends = await arena.load.together(*hoarding, *[("", {})] * NEIGHBOURS)
    assert {(end.status, end.code) for end in ends[:HOARDERS]} == {(502, "prompt_manager_error")}
    assert all(end.whole for end in ends[HOARDERS:]), [str(end) for end in ends[HOARDERS:] if not end.whole]
    assert arena.processes() == before, "a process went with it"
    return Verdict(codes=frozenset({"prompt_manager_error"}), within=OWN_TIME)
