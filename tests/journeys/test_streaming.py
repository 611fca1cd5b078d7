"""Streams: events arrive as the provider sends them, byte for byte, and `[DONE]` only when the provider says it."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.callers import calling, drained, parts
from fakes.gateways import Gateway, environment, model_list, start_gateway
from fakes.upstream import CUT, HANG, ScriptedUpstream, chunk, default, sse
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

ROOT = Path(__file__).parents[2]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    config = model_list(upstream.url) + "promptmill_settings: {lease: 2}\n"
    with start_gateway(directory, config=config) as running:
        yield running


@pytest.fixture(autouse=True)
def quiet(upstream: ScriptedUpstream) -> None:
    upstream.requests.clear()
    upstream.disconnects.clear()
    upstream.default = default


def payloads(stream: bytes) -> bytes:
    """Return the `data:` payloads of a stream, one after the other."""
    return b"\n".join(line.removeprefix(b"data: ") for line in stream.split(b"\n") if line.startswith(b"data: "))


def last_error(stream: bytes) -> dict[str, Any]:
    """Return the error that ends a stream; it must be its last event, whole, and no `[DONE]` may be there."""
    assert b"[DONE]" not in stream
    assert stream.endswith(b"\n\n")
    error = json.loads(stream.rstrip().rpartition(b"\n\n")[2].removeprefix(b"data: "))["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    return dict(error)


class Stamped:
    """Steps of a stream of events, each of which says when it was sent."""

    def __init__(self, count: int, pause: float) -> None:
        self._count = count
        self._pause = pause

    def __iter__(self) -> Iterator[Any]:
        head, *_, end = sse(done=False).steps
        yield head
        for _ in range(self._count):
            yield self._pause
            data = b"data: " + json.dumps(chunk("word ", at=time.monotonic())).encode() + b"\n\n"
            yield b"%x\r\n%s\r\n" % (len(data), data)
        yield b"e\r\ndata: [DONE]\n\n\r\n"
        yield end


async def test_chunks_arrive_within_30_ms_of_being_sent(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    answer = sse()
    object.__setattr__(answer, "steps", Stamped(60, 0.02))
    upstream.script(answer)
    async with calling(gateway.url) as caller, caller.stream() as response:
        delays = [
            time.monotonic() - json.loads(line.removeprefix("data: "))["at"]
            async for line in response.aiter_lines()
            if line.startswith("data: {")
        ]
    assert len(delays) == 60
    assert statistics.median(delays) < 0.03
    assert statistics.quantiles(delays, n=20)[18] < 0.15  # two busy cores may hold any one event up


async def test_what_the_provider_streams_arrives_byte_for_byte(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    def tool(**call: Any) -> dict[str, Any]:
        return {"id": "c-1", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}}]}

    events = [
        tool(id="call_1", type="function", function={"name": "weather", "arguments": ""}),
        b'data: {"id":"c-1", "choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":'
        b'{"arguments":"{\\"ci"}}]}}]}\n\n',
        tool(function={"arguments": 'ty": "Zürich \U0001f327"}'}),
        b'data: {"choices":[],"x":1.0,"y":1e3,"z":"\\u00fc"}\n\n',
        chunk(finish="tool_calls"),
        {"id": "c-1", "object": "chat.completion.chunk", "choices": [], "usage": USAGE},
    ]
    answer = sse(*events)
    upstream.script(answer)
    sent = b"".join(step.split(b"\r\n", 1)[1][:-2] for step in answer.steps[1:-1] if isinstance(step, bytes))
    async with calling(gateway.url) as caller:
        got = await caller.read(stream_options={"include_usage": True})
    assert payloads(got) == payloads(sent)
    assert upstream.requests[0].json["stream_options"] == {"include_usage": True}
    assert json.loads(payloads(got).split(b"\n")[-2])["usage"] == USAGE


async def test_a_stream_the_provider_cuts_ends_in_an_error_event(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    upstream.script(sse(chunk("some"), done=False, then=CUT))
    async with calling(gateway.url) as caller:
        got = await caller.read()
    assert b"some" in got
    error = last_error(got)
    assert (error["code"], error["stage"]) == ("upstream_cut", "dispatch")
    assert len(upstream.requests) == 1


async def test_a_killed_dispatch_worker_ends_its_streams_in_worker_lost_and_calls_nobody_again(
    gateway: Gateway, directory: Path, upstream: ScriptedUpstream
) -> None:
    upstream.script(sse(chunk("some"), done=False, then=HANG))
    worker = parts(gateway)["dispatch"]
    got = b""
    async with calling(gateway.url) as caller, caller.stream() as response:
        async for data in response.aiter_bytes():
            got += data
            if b"some" in got and worker:
                os.kill(worker, signal.SIGKILL)
                worker = 0
    assert b"some" in got
    assert last_error(got)["code"] == "worker_lost"
    assert len(upstream.requests) == 1
    await wait_until(lambda: drained(directory), timeout=20)


def test_a_hundred_streams_lose_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks.streams", "--streams", "100", "--seconds", "2", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads(done.stdout)
    assert (figures["events"], figures["cut"]) == (2000, 0)
    assert figures["p50_ms"] < 100
