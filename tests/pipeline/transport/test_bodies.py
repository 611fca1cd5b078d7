"""Large bodies: within the budget, in order, and none when it has expired."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from fakes.configs import settings
from fakes.pipelines import ScriptedStage, connected_client, job_for, raw_link, running_worker, spec
from fakes.proxy import proxy_to
from fakes.waiting import wait_until

from pipeline.stage import Delivery, Done, Outcome
from pipeline.transport import bodies as bodies_module
from pipeline.transport import connection
from pipeline.transport.bodies import Bodies
from pipeline.transport.client import Answer
from pipeline.transport.connection import Command, Link

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


async def test_a_body_that_takes_longer_than_an_answer_may_comes_in_pieces_and_holds_up_no_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(bodies_module, "PIECE", 2**19)
    large, order = bytes(range(256)) * 2048, list[bytes | None]()
    async with raw_link(url) as link, proxy_to(url) as proxy:
        await link.call(("SET", "large", large, "PX", 60_000), ("SET", "small", "small", "PX", 60_000))
        proxy.rate = 1_500_000
        slow = Link(proxy.url, "slow")
        bodies = Bodies(slow)

        async def fetch(reference: str) -> None:
            order.append(await bodies.fetch(reference))

        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(10):
                tasks.start_soon(fetch, "large")
                await wait_until(lambda: proxy.connections == 1)
                tasks.start_soon(fetch, "small")
                await wait_until(lambda: len(order) == 2, timeout=10)
        await slow.close()
    assert order == [b"small", large]


async def test_bodies_that_wait_for_a_server_that_is_away_try_to_reach_it_one_at_a_time(url: str) -> None:
    async with raw_link(url) as link, proxy_to(url) as proxy:
        await link.run(("SET", "body", "here", "PX", 60_000))
        proxy.refuse = True
        away = Link(proxy.url, "away")
        bodies, found = Bodies(away), list[bytes | None]()

        async def fetch() -> None:
            found.append(await bodies.fetch("body"))

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(fetch)
            with anyio.move_on_after(0.5):
                await wait_until(lambda: proxy.connections > 20)
            assert proxy.connections < 15
            proxy.refuse = False
        await away.close()
    assert found == [b"here"] * 200


async def test_of_a_body_that_expires_while_it_is_fetched_there_is_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies_module, "PIECE", 2)
    async with raw_link(url) as link:
        await link.run(("SET", "torn", "whole", "PX", 10_000))

        class Expiring:
            """A link on which a body is gone after its first piece; satisfies what `Bodies` needs of one."""

            async def call(self, *commands: Command) -> list[Any]:
                replies = await link.call(*commands)
                await link.run(("UNLINK", "torn"))
                return replies

        assert await Bodies(Expiring()).fetch("torn") is None  # type: ignore[arg-type]


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
