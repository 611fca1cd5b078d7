"""The only sender, against a real server."""

from __future__ import annotations

import asyncio
import errno
import gzip
import time
from collections.abc import AsyncIterator, Awaitable

import anyio
import pytest
from fakes.upstream import (
    CUT,
    HANG,
    Answer,
    ScriptedUpstream,
    chunk,
    completion,
    drop,
    failure,
    gzip_bomb,
    hang,
    raw,
    redirect,
    reply,
    sse,
)
from fakes.waiting import wait_until

from pipeline.errors import (
    ModelDisabled,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from pipeline.settings import DispatchSettings
from workers.providers._dialect import UpstreamRequest
from workers.providers._http import Sender

pytestmark = pytest.mark.anyio

LIMIT = 100_000


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender(DispatchSettings(max_response_bytes=LIMIT, connect_timeout=2)) as sender:
        yield sender


def to(upstream: ScriptedUpstream, url: str = "") -> UpstreamRequest:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-canary"}
    return UpstreamRequest("POST", url or upstream.url + "/chat/completions", headers, b'{"messages":[1]}')


async def follow(sender: Sender, request: UpstreamRequest, between: float, begun: anyio.Event | None = None) -> None:
    async with sender.stream(request, between=between, total=30) as stream:
        while await stream.receive() is not None:
            if begun is not None:
                begun.set()


async def test_a_call_returns_status_type_and_bytes_over_one_connection(
    sender: Sender, upstream: ScriptedUpstream
) -> None:
    for _ in range(3):
        received = await sender.call(to(upstream), 5)
        assert (received.status, received.content_type) == (200, "application/json")
        assert b"1 messages" in received.body
    assert upstream.connections == 1
    first = upstream.requests[0]
    assert (first.method, first.path, first.json) == ("POST", "/v1/chat/completions", {"messages": [1]})
    assert first.headers["authorization"] == "Bearer sk-canary"


async def test_a_refusal_comes_with_its_headers(sender: Sender, upstream: ScriptedUpstream) -> None:
    upstream.script(failure(429, headers={"Retry-After": "7"}))
    received = await sender.call(to(upstream), 5)
    assert received.status == 429
    assert received.headers["retry-after"] == "7"


async def test_a_redirect_is_an_answer_and_is_not_followed(sender: Sender, upstream: ScriptedUpstream) -> None:
    async with ScriptedUpstream() as witness:
        upstream.script(redirect(witness.url))
        assert (await sender.call(to(upstream), 5)).status == 307
        assert witness.connections == 0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (drop(), UpstreamUnavailable),
        (raw(b"garbage!\r\n\r\n", CUT), UpstreamGarbled),
        (raw(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", CUT), UpstreamCut),
        (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{", CUT), UpstreamCut),
        (reply(b"not gzip", headers={"content-encoding": "gzip"}), UpstreamGarbled),
    ],
)
async def test_a_broken_answer_is_an_upstream_error(
    sender: Sender, upstream: ScriptedUpstream, answer: Answer, kind: type
) -> None:
    upstream.script(answer)
    with pytest.raises(UpstreamError) as caught:
        await sender.call(to(upstream), 5)
    assert type(caught.value) is kind
    assert "127.0.0.1" not in caught.value.message


async def test_nobody_listening_is_unavailable(sender: Sender, upstream: ScriptedUpstream) -> None:
    with pytest.raises(UpstreamUnavailable, match="could not be reached"):
        await sender.call(to(upstream, "http://127.0.0.1:1/v1"), 5)


async def test_a_process_without_files_left_says_so(
    sender: Sender, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", refuse)
    with pytest.raises(UpstreamUnavailable, match="as many files open as it may"):
        await sender.call(to(upstream), 5)


@pytest.mark.parametrize("url", ["nonsense", "http://exa<mple/v1"])
async def test_an_address_that_is_none_is_a_configuration_fault(
    sender: Sender, upstream: ScriptedUpstream, url: str
) -> None:
    with pytest.raises(ModelDisabled, match="not valid HTTP") as caught:
        await sender.call(to(upstream, url), 5)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("answer", [hang(), raw(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", HANG)])
async def test_a_silent_provider_times_out_and_is_left(
    sender: Sender, upstream: ScriptedUpstream, answer: Answer
) -> None:
    upstream.script(answer)
    with pytest.raises(UpstreamTimeout, match=r"within 0\.2 s"):
        await sender.call(to(upstream), 0.2)
    await wait_until(lambda: upstream.disconnects, timeout=1)


@pytest.mark.parametrize(
    "answer",
    [
        reply(b" " * (LIMIT + 1)),
        gzip_bomb(20_000_000),
        raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b" " * (LIMIT + 1), CUT),
    ],
)
async def test_an_answer_over_the_limit_is_refused_also_after_decompression(
    sender: Sender, upstream: ScriptedUpstream, answer: Answer
) -> None:
    upstream.script(answer)
    with pytest.raises(UpstreamGarbled, match="larger than 100000 bytes"):
        await sender.call(to(upstream), 5)


async def test_compressed_and_chunked_answers_are_read_whole(sender: Sender, upstream: ScriptedUpstream) -> None:
    upstream.script(reply(gzip.compress(b'{"a":1}'), headers={"content-encoding": "gzip"}), sse(b"x" * 500, done=False))
    assert (await sender.call(to(upstream), 5)).body == b'{"a":1}'
    assert (await sender.call(to(upstream), 5)).body == b"x" * 500


async def test_a_huge_error_is_read_in_part(sender: Sender, upstream: ScriptedUpstream) -> None:
    upstream.script(reply(b"e" * 2_000_000, status=500))
    assert len((await sender.call(to(upstream), 5)).body) < 200_000


async def test_stream_chunks_arrive_as_they_are_sent(sender: Sender, upstream: ScriptedUpstream) -> None:
    gate = anyio.Event()
    upstream.script(sse(chunk("a"), between=gate))
    async with sender.stream(to(upstream), between=5, total=5) as stream:
        assert b'"a"' in (await stream.receive() or b"")
        gate.set()
        assert await stream.receive() == b"data: [DONE]\n\n"
        assert await stream.receive() is None


async def test_a_drained_stream_leaves_its_connection_for_the_next(sender: Sender, upstream: ScriptedUpstream) -> None:
    for _ in range(2):
        upstream.script(sse(chunk("a")))
        async with sender.stream(to(upstream), between=5, total=5) as stream:
            await stream.receive()
            await stream.drain()
    assert upstream.connections == 1


async def test_a_stream_is_given_up_when_nothing_comes_between_bytes(
    sender: Sender, upstream: ScriptedUpstream
) -> None:
    upstream.script(sse(chunk("a"), done=False, then=HANG))
    with pytest.raises(UpstreamTimeout, match=r"nothing for 0\.2 s"):
        await follow(sender, to(upstream), between=0.2)
    await wait_until(lambda: upstream.disconnects, timeout=1)


async def test_a_slow_client_does_not_count_against_the_provider(sender: Sender, upstream: ScriptedUpstream) -> None:
    gate = anyio.Event()
    upstream.script(sse(chunk("a"), between=gate))
    async with sender.stream(to(upstream), between=0.1, total=5) as stream:
        assert await stream.receive()
        until = time.monotonic() + 0.2
        await wait_until(lambda: time.monotonic() > until)
        gate.set()
        assert await stream.receive()


async def test_the_first_byte_has_the_same_limit(sender: Sender, upstream: ScriptedUpstream) -> None:
    upstream.script(hang())
    with pytest.raises(UpstreamTimeout, match="nothing for"):
        async with sender.stream(to(upstream), between=0.1, total=5):
            raise AssertionError("it never opens")


async def awaited(call: Awaitable[object]) -> None:
    await call


async def test_cancelling_before_the_answer_begins_closes_the_connection_at_once(
    sender: Sender, upstream: ScriptedUpstream
) -> None:
    upstream.script(hang(), hang())
    for number, call in enumerate((sender.call(to(upstream), 30), follow(sender, to(upstream), 30)), 1):
        async with anyio.create_task_group() as group:
            group.start_soon(awaited, call)
            await wait_until(lambda number=number: len(upstream.requests) == number)  # type: ignore[misc]
            began = time.monotonic()
            group.cancel_scope.cancel()
        await wait_until(lambda number=number: len(upstream.disconnects) == number, timeout=1)  # type: ignore[misc]
        assert upstream.disconnects[-1] - began < 1


async def test_a_cancel_scope_around_a_call_catches_its_own_cancellation(
    sender: Sender, upstream: ScriptedUpstream
) -> None:
    upstream.script(hang(), raw(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", HANG))
    for _ in range(2):
        with anyio.move_on_after(0.1) as scope:
            await sender.call(to(upstream), 30)
        assert scope.cancelled_caught


async def test_a_last_word_without_an_end_of_the_stream_is_not_waited_for_long(
    sender: Sender, upstream: ScriptedUpstream
) -> None:
    for then in (HANG, CUT):
        upstream.script(sse(chunk("a"), done=False, then=then))
        async with sender.stream(to(upstream), between=5, total=5) as stream:
            assert await stream.receive()
            began = time.monotonic()
            await stream.drain()
            assert time.monotonic() - began < 1


async def test_cancelling_a_stream_closes_its_connection_at_once(sender: Sender, upstream: ScriptedUpstream) -> None:
    upstream.script(sse(chunk("a"), done=False, then=HANG))
    async with anyio.create_task_group() as group:
        begun = anyio.Event()
        group.start_soon(follow, sender, to(upstream), 30.0, begun)
        await begun.wait()
        began = time.monotonic()
        group.cancel_scope.cancel()
    await wait_until(lambda: len(upstream.disconnects) == 1, timeout=1)
    assert upstream.disconnects[0] - began < 1


async def test_a_stranger_exception_inside_a_stream_passes_as_it_is(sender: Sender, upstream: ScriptedUpstream) -> None:
    upstream.script(reply(completion()))

    async def complain() -> None:
        async with sender.stream(to(upstream), between=5, total=5) as stream:
            assert (await stream.read()).startswith(b"{")
            raise UpstreamGarbled("mine")

    with pytest.raises(UpstreamGarbled, match="mine"):
        await complain()
