"""What a gateway tells of itself, and what its processes can be seen to use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from chaos.arena import MASTER_KEY, Arena
from fakes.waiting import wait_until

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


async def metric(arena: Arena, name: str, *labels: str) -> float:
    """Return the sum of a metric's samples that have these labels, each `name="value"`; at most 2 s old."""
    answer = await arena.load.client.get("/metrics", headers={"authorization": f"Bearer {MASTER_KEY}"})
    return sum(
        float(value)
        for found, shown, value in _SAMPLE.findall(answer.text)
        if found == f"promptmill_{name}" and all(label in (shown or "") for label in labels)
    )


async def no_slot_is_taken(arena: Arena) -> None:
    """Wait until no process holds a delivery or a request any more, as far as the metrics know."""

    async def idle() -> bool:
        held = await metric(arena, "jobs_in_flight")
        return held + await metric(arena, "requests_in_flight") == 0

    await wait_until(idle, timeout=10, every=0.25)


def memory(pids: Iterable[int]) -> int:
    """Return the resident bytes of the largest of these processes."""
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return max(pages) * os.sysconf("SC_PAGE_SIZE")
