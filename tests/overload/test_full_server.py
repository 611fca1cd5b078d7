"""A server at its memory limit: new requests are refused at once and honestly, those under way are answered."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import anyio
import pytest
from fakes.callers import Response, calling
from fakes.gateways import start_gateway
from fakes.pipelines import raw_link
from fakes.servers import start_server
from fakes.upstream import completion, raw, reply, run_upstream_in_thread
from fakes.waiting import wait_until

from pipeline.transport.client import STAGES
from pipeline.transport.overview import read_overview

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

UNDER_WAY = 20
CONFIG = """
model_list:
  - model_name: gpt-4
    litellm_params: {{model: openai/gpt-4, api_base: '{url}', api_key: sk-upstream}}
"""


async def test_a_full_server_costs_nobody_who_was_accepted_and_refuses_the_others_at_once(tmp_path: Path) -> None:
    with run_upstream_in_thread() as upstream, start_server(tmp_path / "redis") as server:
        upstream.default = lambda _: raw(1.0, *reply(completion("late")).steps)
        with start_gateway(
            tmp_path, config=CONFIG.format(url=upstream.url), variables={"REDIS_URL": server.url}
        ) as gateway:
            async with calling(gateway.url) as caller, raw_link(server.url) as link, anyio.create_task_group() as tasks:
                answers: list[Response] = []

                async def ask() -> None:
                    answers.append(await caller.chat())

                for _ in range(UNDER_WAY):
                    tasks.start_soon(ask)
                await wait_until(lambda: len(upstream.requests) == UNDER_WAY)
                await link.run(("CONFIG", "SET", "maxmemory", 1))
                took = []
                for size in (10, 1_000_000) * 10:
                    began = time.monotonic()
                    refused = await caller.chat("x" * size)
                    took.append(time.monotonic() - began)
                    assert (refused.status, refused.error["code"]) == (503, "redis_full")
                    assert int(refused.headers["retry-after"]) >= 1
                assert statistics.median(took) < 0.25  # a few milliseconds where nothing else runs
                await wait_until(lambda: len(answers) == UNDER_WAY, timeout=10)
                assert [answer.status for answer in answers] == [200] * UNDER_WAY
                assert len(upstream.requests) == UNDER_WAY, "nothing that was refused ran"
                await link.run(("CONFIG", "SET", "maxmemory", 2**30))

                async def served() -> bool:
                    return (await caller.chat()).status == 200

                await wait_until(served, timeout=10)
                found = await read_overview(server.url, STAGES)
                assert found.counts["refusals"]["redis_full"] >= len(took) - 1
                assert sum(stage.bytes for stage in found.stages) == 0
