"""Large bodies: within the budget, in order, and none when it has expired."""

from __future__ import annotations

import anyio
import pytest
from fakes.pipelines import raw_link

from pipeline.transport.bodies import Bodies

pytestmark = pytest.mark.anyio


async def test_bodies_over_the_budget_wait_for_those_in_use(url: str) -> None:
    order: list[bytes | None] = []
    async with raw_link(url) as link:
        for name in ("a", "b"):
            await link.run(("SET", name, name, "PX", 10_000))
        bodies = Bodies(link, budget=10)

        async def second() -> None:
            async with bodies.held("b", 99) as body:  # larger than the whole budget: alone, then
                order.append(body)

        async with anyio.create_task_group() as tasks, bodies.held("a", 6) as body:
            tasks.start_soon(second)
            with anyio.move_on_after(0.1):
                await anyio.sleep_forever()
            order.append(body)
        async with bodies.held("expired", 6) as body:
            order.append(body)
    assert order == [b"a", b"b", None]
