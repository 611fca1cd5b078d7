"""A job's way through two stages and back, on a real server."""

from __future__ import annotations

import anyio
import pytest
from fakes.configs import settings
from fakes.pipelines import ScriptedStage, connected_client, forward, job_for, running_worker, spec

from pipeline.errors import InvalidRequest
from pipeline.job import Facts, Frame
from pipeline.stage import Done, Fail, Forward
from pipeline.transport.client import Answer

pytestmark = pytest.mark.anyio


async def echo(delivery):
    return Done(delivery.body.upper(), Facts(model="m", attempts=1))


async def test_a_job_visits_its_stages_and_its_answer_comes_back(url: str) -> None:
    resolve, dispatch = ScriptedStage(forward), ScriptedStage(echo)
    async with (
        connected_client(url, settings()) as client,
        running_worker(url, settings(), spec("resolve", resolve), spec("dispatch", dispatch)),
    ):
        waiter = await client.submit(job_for(client), b"hello")
        answer = await waiter.next()
    assert isinstance(answer, Answer)
    assert answer.body == b"HELLO"
    assert answer.reply.facts.attempts == 1
    assert [d.job.stages_left for d in resolve.seen + dispatch.seen] == [("resolve", "dispatch"), ("dispatch",)]


async def test_many_jobs_at_once_are_each_answered(url: str) -> None:
    dispatch = ScriptedStage(echo)
    answers = {}
    async with (
        connected_client(url, settings()) as client,
        running_worker(url, settings(), spec("dispatch", dispatch, slots=64)),
    ):

        async def ask(n: int) -> None:
            waiter = await client.submit(job_for(client, stages_left=("dispatch",)), f"b{n}".encode())
            answers[n] = (await waiter.next()).body

        async with anyio.create_task_group() as tasks:
            for n in range(500):
                tasks.start_soon(ask, n)
    assert answers == {n: f"B{n}".encode() for n in range(500)}


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1, 5_000_000])
async def test_a_body_of_any_size_travels_both_ways(url: str, size: int) -> None:
    async def change(delivery):
        return Forward(delivery.job, delivery.body[::-1])

    async with (
        connected_client(url, settings()) as client,
        running_worker(url, settings(), spec("resolve", ScriptedStage(change)), spec("dispatch", ScriptedStage(echo))),
    ):
        waiter = await client.submit(job_for(client), b"x" * (size - 1) + b"a")
        answer = await waiter.next()
    assert answer.body == b"A" + b"X" * (size - 1)


async def test_frames_arrive_in_order_and_before_the_answer(url: str) -> None:
    async def stream(delivery):
        for n in range(50):
            await delivery.send(b"%d" % n, Facts(model="m") if n == 0 else None, "text/event-stream")
        return Done()

    async with (
        connected_client(url, settings()) as client,
        running_worker(url, settings(), spec("dispatch", ScriptedStage(stream))),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",), stream=True), b"{}")
        items = [await waiter.next()]
        while isinstance(items[-1], Frame):
            items.append(await waiter.next())
    assert [f.data for f in items[:-1]] == [b"%d" % n for n in range(50)]
    assert items[0].facts == Facts(model="m")
    assert items[-1].reply.error is None


async def test_an_error_travels_with_its_stage(url: str) -> None:
    async def refuse(delivery):
        return Fail(InvalidRequest("no", hint="say yes", param="p"))

    async with (
        connected_client(url, settings()) as client,
        running_worker(url, settings(), spec("resolve", ScriptedStage(refuse))),
    ):
        waiter = await client.submit(job_for(client), b"{}")
        answer = await waiter.next()
    error = answer.reply.error
    assert (error.status, error.code, error.param, error.hint, error.stage) == (
        400,
        "invalid_request",
        "p",
        "say yes",
        "resolve",
    )


async def test_a_client_that_leaves_ends_the_work(url: str) -> None:
    started, ended = anyio.Event(), anyio.Event()

    async def wait(delivery):
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with (
        connected_client(url, settings()) as client,
        running_worker(url, settings(), spec("dispatch", ScriptedStage(wait))),
    ):
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        await started.wait()
        waiter.cancel()
        with anyio.fail_after(1):
            await ended.wait()
