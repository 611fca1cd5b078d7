"""Restarting any one process under load, by SIGTERM: nobody's request fails, and no provider is called twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from fakes.callers import calling, drained, parts
from fakes.gateways import MANAGER, Gateway, alive, model_list, start_gateway
from fakes.loads import asked, called_twice, load, slow
from fakes.upstream import Answer, Received, ScriptedUpstream, completion, hang, reply, run_upstream_in_thread
from fakes.waiting import wait_until

from pipeline.job import LIVE
from pipeline.startup import embedded_url
from pipeline.transport import keyspace
from pipeline.transport.connection import Link

pytestmark = [pytest.mark.processes, pytest.mark.anyio]


@pytest.fixture(scope="module")
def upstream(upstream: ScriptedUpstream) -> ScriptedUpstream:
    upstream.default = slow
    return upstream


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(MANAGER.replace('{"role": "system", "content": "from mine"}, ', ""))
    config = model_list(upstream.url) + "litellm_settings: {callbacks: mine.mine}\n"
    with start_gateway(directory, config=config, traced=True) as running:
        yield running


@pytest.fixture(autouse=True)
def no_calls_so_far(upstream: ScriptedUpstream) -> None:
    upstream.requests.clear()


@pytest.mark.parametrize("part", ["ingress", "resolve", "dispatch"])
async def test_a_process_that_is_told_to_end_under_load_is_replaced_and_nobody_notices(
    gateway: Gateway, directory: Path, upstream: ScriptedUpstream, part: str
) -> None:
    before = parts(gateway)
    async with load(gateway.url, prompt_id="p") as clients:
        await clients.goes_on()
        os.kill(before[part], signal.SIGTERM)
        await wait_until(lambda: not alive(before[part]), timeout=20)
        await wait_until(lambda: parts(gateway).get(part), timeout=20)
        await clients.goes_on()
    assert not called_twice(upstream)
    assert f"{part}.1" in gateway.log
    assert "ended with status 0; starting it again" in gateway.log
    assert {p: pid for p, pid in parts(gateway).items() if p != part} == {
        p: pid for p, pid in before.items() if p != part
    }
    await wait_until(lambda: drained(directory), timeout=20, every=0.1)


async def holder(directory: Path) -> int:
    """Return the pid of a dispatch process that holds jobs."""
    link = Link(embedded_url(directory), "test")
    try:
        (consumers,) = await link.call(("XINFO", "CONSUMERS", keyspace.jobs("dispatch", LIVE), keyspace.GROUP))
    finally:
        await link.close()
    found = [dict(zip(consumer[::2], consumer[1::2], strict=True)) for consumer in consumers]
    return next(int(who[b"name"].split(b"-")[-2]) for who in found if who[b"pending"])


async def test_what_a_draining_worker_fetched_and_did_not_start_is_done_by_another_within_a_second(
    tmp_path: Path,
) -> None:
    def answer(received: Received) -> Answer:
        return reply(completion(asked(received))) if "quick" in asked(received) else hang()

    with (
        run_upstream_in_thread() as upstream,
        start_gateway(tmp_path, "--scale", "dispatch=2", config=model_list(upstream.url), traced=True) as gateway,
    ):
        upstream.default = answer
        async with calling(gateway.url) as caller, anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(caller.chat, f"long {number}")
            await wait_until(lambda: len(upstream.requests) == 10, timeout=20)
            draining = await holder(tmp_path / ".promptmill")
            os.kill(draining, signal.SIGTERM)  # while its read waits for more
            sent = time.monotonic()
            answers = await caller.gather(*({"text": f"quick {number}"} for number in range(20)))
            assert alive(draining)
            tasks.cancel_scope.cancel()
        assert {answer.status for answer in answers} == {200}
        print(f"the last answer came after {max(answer.at for answer in answers) - sent:.2f} s")
        assert max(answer.at for answer in answers) - sent < 2.0
        assert not called_twice(upstream)
