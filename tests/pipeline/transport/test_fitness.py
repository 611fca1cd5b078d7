"""A server that would lose jobs: who evicts is refused, who keeps no log is told of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from fakes.configs import settings
from fakes.pipelines import ScriptedStage, forward, quick, raw_link, spec
from fakes.waiting import wait_until

from pipeline import readiness
from pipeline.commands_status import table
from pipeline.errors import ConfigurationError
from pipeline.runner import Stop, run_stages
from pipeline.transport.fitness import concerns, eviction
from pipeline.transport.overview import ServerOverview, read_overview

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def configured(url: str, name: str, value: str, afterwards: str) -> AsyncIterator[None]:
    async with raw_link(url) as link:
        await link.run(("CONFIG", "SET", name, value))
        try:
            yield
        finally:
            await link.run(("CONFIG", "SET", name, afterwards))


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_worker_refuses_a_server_that_evicts(url: str, policy: str) -> None:
    async with configured(url, "maxmemory-policy", policy, "noeviction"):
        with anyio.fail_after(10), pytest.raises(ConfigurationError, match=policy) as caught:
            await run_stages([spec("resolve", ScriptedStage(forward))], settings(transport=quick()), url, Stop())
    assert "accept_eviction" in caught.value.hint


async def test_a_worker_takes_it_where_that_is_accepted(url: str) -> None:
    stop = Stop()
    accepted = settings(transport=quick(accept_eviction=True))
    async with configured(url, "maxmemory-policy", "allkeys-lru", "noeviction"), anyio.create_task_group() as tasks:
        tasks.start_soon(run_stages, [spec("resolve", ScriptedStage(forward))], accepted, url, stop)

        async def registered() -> bool:
            return bool((await read_overview(url, ())).processes)

        await wait_until(registered)
        stop()


async def test_a_server_without_a_log_is_told_of_everywhere(url: str) -> None:
    assert await readiness.concerns(url) == ()
    async with configured(url, "appendonly", "no", "yes"):
        (concern,) = await readiness.concerns(url)
        assert "append-only file" in concern
        assert f"! {concern}" in table(await read_overview(url, ("resolve",)))


def test_what_a_managed_server_does_not_tell_is_no_reason_to_refuse() -> None:
    assert eviction(ServerOverview(name="somewhere:6379")) is None
    assert concerns(ServerOverview(name="somewhere:6379")) == []
