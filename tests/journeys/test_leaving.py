"""A client that goes away: its provider call is never made, or its connection closed within a second."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from fakes.callers import Caller, calling, drained, overview, parts
from fakes.gateways import MANAGER, Gateway, model_list, start_gateway
from fakes.upstream import HANG, Answer, Received, ScriptedUpstream, chunk, default, hang, sse
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

SLOTS = 2
WITHIN = 1.0
"""Seconds in which the provider must see that nobody waits for it any more."""

SLOW_HOOK = "import time\n" + MANAGER.replace(
    "        return", "        open(prompt_variables['began'], 'w').close()\n        time.sleep(1)\n        return"
)


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(SLOW_HOOK)
    config = (
        model_list(upstream.url) + "litellm_settings: {callbacks: mine.mine}\n"
        f"promptmill_settings: {{dispatch_slots: {SLOTS}}}\n"
    )
    with start_gateway(directory, config=config) as running:
        yield running


@pytest.fixture(autouse=True)
async def quiet(gateway: Gateway, directory: Path, upstream: ScriptedUpstream) -> AsyncIterator[None]:
    """Begin with nothing said, and end with nothing left in the streams."""
    upstream.requests.clear()
    upstream.disconnects.clear()
    upstream.default = default
    yield
    upstream.default = default
    await wait_until(lambda: drained(directory), timeout=10, every=0.05)


@asynccontextmanager
async def client(gateway: Gateway, text: str, **fields: object) -> AsyncIterator[None]:
    """Send a request and hold it; the client closes its connection when the block ends."""
    async with calling(gateway.url) as caller, anyio.create_task_group() as tasks:

        async def ask(caller: Caller) -> None:
            if fields.get("stream"):
                await caller.read(text, **{name: value for name, value in fields.items() if name != "stream"})
            else:
                await caller.chat(text, **fields)

        tasks.start_soon(ask, caller)
        yield
        tasks.cancel_scope.cancel()


def texts(upstream: ScriptedUpstream) -> list[str]:
    return [str(received.json["messages"][-1]["content"]) for received in upstream.requests]


async def the_gateway_holds(directory_of: Path, waiting: int) -> None:
    """Wait until so many jobs are in the streams, running or not."""

    async def held() -> bool:
        found = await overview(directory_of)
        return found is not None and sum(s.backlog + s.pending for s in found.stages) == waiting

    await wait_until(held, timeout=5, every=0.02)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_has_not_answered_yet_is_left_within_a_second(
    gateway: Gateway, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.default = hang()
    async with client(gateway, "waiting", stream=stream):
        await wait_until(lambda: texts(upstream) == ["waiting"])
    left = time.monotonic()
    await wait_until(lambda: upstream.disconnects, timeout=2)
    assert upstream.disconnects[0] - left < WITHIN


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_in_the_middle_of_its_answer_is_left_within_a_second(
    gateway: Gateway, upstream: ScriptedUpstream, stream: bool
) -> None:
    def begin(received: Received) -> Answer:
        steps = sse(chunk("some"), done=False, then=HANG).steps
        return Answer(steps) if stream else Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", HANG))

    upstream.default = begin
    if stream:
        async with calling(gateway.url) as caller, caller.stream("begun") as response:
            async for line in response.aiter_lines():
                assert "some" in line
                break
            left = time.monotonic()
    else:
        async with client(gateway, "begun"):
            await wait_until(lambda: texts(upstream) == ["begun"])
        left = time.monotonic()
    await wait_until(lambda: upstream.disconnects, timeout=2)
    assert upstream.disconnects[0] - left < WITHIN


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_left_while_every_slot_is_taken_never_reaches_the_provider(
    gateway: Gateway, directory: Path, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.default = hang()
    async with client(gateway, "first"), client(gateway, "second"):
        await wait_until(lambda: len(upstream.requests) == SLOTS)
        async with client(gateway, "queued", stream=stream):
            await the_gateway_holds(directory, SLOTS + 1)
    await wait_until(lambda: drained(directory), timeout=10)
    assert sorted(texts(upstream)) == ["first", "second"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_left_while_its_worker_stands_still_keeps_no_provider_busy(
    gateway: Gateway, directory: Path, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.default = hang()
    worker = parts(gateway)["dispatch"]
    os.kill(worker, signal.SIGSTOP)
    try:
        async with client(gateway, "too early", stream=stream):
            await the_gateway_holds(directory, 1)
    finally:
        os.kill(worker, signal.SIGCONT)
    # The job and its cancellation are both waiting for the worker; whichever it reads first, nothing goes on.
    await wait_until(lambda: drained(directory), timeout=10)
    await wait_until(lambda: len(upstream.disconnects) == len(upstream.requests), timeout=WITHIN)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_left_while_its_prompt_is_made_never_reaches_the_provider(
    gateway: Gateway, directory: Path, tmp_path: Path, upstream: ScriptedUpstream, stream: bool
) -> None:
    began = tmp_path / "began"
    fields = {"prompt_id": "p", "prompt_variables": {"began": str(began)}, "stream": stream}
    async with client(gateway, "in its hook", **fields):
        await wait_until(began.exists)
    await wait_until(lambda: drained(directory), timeout=10)
    assert not upstream.requests
