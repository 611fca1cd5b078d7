"""Large bodies: within the budget, in order, and none when it has expired."""

from __future__ import annotations

import anyio
import pytest
from fakes.configs import settings
from fakes.pipelines import ScriptedStage, connected_client, job_for, raw_link, running_worker, spec
from fakes.waiting import wait_until

from pipeline.stage import Delivery, Done, Outcome
from pipeline.transport.bodies import Bodies
from pipeline.transport.client import Answer

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


async def test_a_wait_for_a_large_answer_may_be_broken_off_and_taken_up_again(url: str) -> None:
    async def large(_: Delivery) -> Outcome:
        return Done(b"x" * 200_000)

    worker = running_worker(url, settings(), spec("dispatch", ScriptedStage(large)))
    async with connected_client(url, settings()) as client, worker:
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        await wait_until(lambda: waiter._items)
        for _ in range(3):
            with anyio.move_on_after(0):
                await waiter.next()
        answer = await waiter.next()
    assert isinstance(answer, Answer)
    assert answer.body == b"x" * 200_000
