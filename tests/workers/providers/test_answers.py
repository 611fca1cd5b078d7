"""Answers of providers over a real connection: their limits, their framing, their codings, and streams."""

from __future__ import annotations

import asyncio
import gc
import math
import zlib
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
from fakes.sending import BEGUN, EMPTY, OK, follow, one_call, saying, to
from fakes.waiting import wait_until
from fakes.wires import Serve, Wire, answering, listen

from pipeline.errors import UpstreamError, UpstreamGarbled, UpstreamTimeout, UpstreamUnavailable
from workers.providers._connection import BEHIND_LIMIT
from workers.providers._dialect import UpstreamRequest
from workers.providers._exchange import Exchange
from workers.providers._http import Sender

pytestmark = pytest.mark.anyio


async def test_a_stream_has_a_limit_for_all_of_it(sender: Sender) -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(BEGUN)
        while True:
            await wire.send(b"1\r\n.\r\n")
            await asyncio.sleep(0.01)

    async with listen(serve) as wires:
        with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.2 s"):
            await follow(sender, to(wires.port), total=0.2)
        await wait_until(lambda: wires.closed == 1, timeout=1)


async def test_a_total_less_than_the_pause_is_the_limit_of_the_head(sender: Sender) -> None:
    async with listen(saying(b"")) as wires:
        with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.1 s"):
            async with sender.stream(to(wires.port), between=5, total=0.1):
                raise AssertionError("it never opens")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 300_000,
        b"HTTP/1.1 200 " + b"y" * 300_000,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 257 + b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nx: yyyyyyyyyyyyyyyyyyyyyy\r\n\r\n" * 5_000,
        BEGUN + b"0\r\n" + b"x: y\r\n" * 257 + b"\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\nx",
        OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"\x16\x03\x01garbage",
        BEGUN + b"zz\r\n",
    ],
)
async def test_a_head_or_a_framing_out_of_bounds_is_garbled_and_closed(sender: Sender, answer: bytes) -> None:
    for send in (one_call, follow):
        async with listen(saying(answer)) as wires:
            with pytest.raises(UpstreamGarbled):
                await send(sender, to(wires.port))
            await wait_until(lambda wires=wires: wires.closed == 1, timeout=1)  # type: ignore[misc]


async def test_an_answer_may_end_with_its_connection(sender: Sender) -> None:
    async with listen(saying(OK + b"\r\n", b"to the ", b"end", close=True)) as wires:
        assert (await sender.call(to(wires.port), 5)).body == b"to the end"
        async with sender.stream(to(wires.port), between=5, total=5) as stream:
            assert await stream.read() == b"to the end"


async def test_a_reset_is_no_end_of_an_answer(sender: Sender) -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK + b"\r\nhalf")
        wire.writer.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: close is a reset
        wire.writer.transport.abort()

    async with listen(serve) as wires:
        with pytest.raises(UpstreamGarbled, match="in the middle"):
            await sender.call(to(wires.port), 5)


@pytest.mark.parametrize("send", [one_call, follow])
async def test_a_provider_that_speaks_first_is_not_sent_anything_more(
    sender: Sender, send: Callable[[Sender, UpstreamRequest], Awaitable[None]]
) -> None:
    async def serve(wire: Wire) -> None:
        await wire.send(b"SSH-2.0-x\r\n")

    async with listen(serve) as wires:
        with pytest.raises(UpstreamError):
            await send(sender, to(wires.port))
        await wait_until(lambda: wires.closed == 1, timeout=1)


async def test_an_answer_before_the_request_is_read_spoils_the_connection(sender: Sender) -> None:
    async def serve(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await asyncio.sleep(0.05)
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async with listen(serve) as wires:
        assert (await sender.call(to(wires.port, b"x" * 30_000_000), 5)).status == 413
        await wait_until(lambda: wires.closed == 1, timeout=2)


async def test_large_bodies_arrive_whole(sender: Sender) -> None:
    seen: list[bytes] = []

    async def serve(wire: Wire) -> None:
        while True:
            seen.append((await wire.request())[2])
            await wire.send(OK + b"content-length: 500000\r\n\r\n" + b"y" * 500_000)

    async with listen(serve) as wires:
        for size in (0, 65_536, 65_537, 5_000_000):
            assert (await sender.call(to(wires.port, b"x" * size), 5)).body == b"y" * 500_000
            assert seen[-1] == b"x" * size
        assert wires.accepted == 1


async def test_a_stream_that_is_not_read_makes_the_provider_wait(sender: Sender) -> None:
    sent = 0
    size = 40 * 2**20

    async def serve(wire: Wire) -> None:
        nonlocal sent
        await wire.request()
        await wire.send(OK + b"content-length: %d\r\n\r\n" % size)
        for _ in range(size // 2**18):
            await wire.send(b"x" * 2**18)
            sent += 2**18

    async with listen(serve) as wires, sender.stream(to(wires.port), between=5, total=20) as stream:
        connection = stream._connection
        await wait_until(lambda: connection._paused)
        held = stream._exchange.held
        assert BEHIND_LIMIT < held < 4 * BEHIND_LIMIT
        for _ in range(20):
            await anyio.wait_all_tasks_blocked()
        assert stream._exchange.held == held
        assert sent < size
        total = 0
        while (data := await stream.receive()) is not None:
            total += len(data)
        assert total == size


async def test_a_paused_stream_whose_connection_is_closed_is_not_resumed(sender: Sender) -> None:
    async with (
        listen(answering(b"x" * 4 * BEHIND_LIMIT)) as wires,
        sender.stream(to(wires.port), between=5, total=5) as stream,
    ):
        await wait_until(lambda: stream._connection._paused)
        stream._connection.abort()
        assert await stream.receive()


async def test_a_stream_left_with_bytes_unread_closes_its_connection(sender: Sender) -> None:
    async with listen(answering(b"x" * 10)) as wires:
        async with sender.stream(to(wires.port), between=5, total=5) as stream:
            await wait_until(lambda: stream._exchange.complete)
        await wait_until(lambda: wires.closed == 1, timeout=1)


@pytest.mark.parametrize("wbits", [31, 15, -15], ids=["gzip", "zlib", "deflate"])
async def test_a_compressed_answer_is_read_whole_and_streamed_as_it_arrives(sender: Sender, wbits: int) -> None:
    compress = zlib.compressobj(wbits=wbits)
    parts = [
        compress.compress(b"one ") + compress.flush(zlib.Z_SYNC_FLUSH),
        compress.compress(b"two") + compress.flush(),
    ]
    coding = b"gzip" if wbits == 31 else b"Deflate"
    head = OK + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (coding, sum(map(len, parts)))
    go_on = asyncio.Event()

    async def serve(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.send(head + parts[0])
            await go_on.wait()
            await wire.send(parts[1])

    async with listen(serve) as wires:
        async with sender.stream(to(wires.port), between=5, total=5) as stream:
            assert await stream.receive() == b"one "
            go_on.set()
            assert await stream.receive() == b"two"
            assert await stream.receive() is None
        assert (await sender.call(to(wires.port), 5)).body == b"one two"
        assert wires.accepted == 1


async def test_a_whole_stream_outlives_its_connection(sender: Sender) -> None:
    async with (
        listen(saying(OK + b"connection: close\r\ncontent-length: 3\r\n\r\nabc")) as wires,
        sender.stream(to(wires.port), between=math.inf, total=math.inf) as stream,
    ):
        await wait_until(lambda: wires.closed == 1, timeout=1)
        await anyio.wait_all_tasks_blocked()
        assert await stream.receive() == b"abc"
        assert await stream.receive() is None


async def test_what_follows_the_last_word_is_drained(sender: Sender) -> None:
    go_on = asyncio.Event()

    async def serve(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.send(BEGUN + b"4\r\nlast\r\n")
            await go_on.wait()
            go_on.clear()
            await wire.send(b"5\r\n: bye\r\n")
            await wire.send(b"0\r\n\r\n")

    async with listen(serve) as wires:
        for _ in range(2):
            async with sender.stream(to(wires.port), between=5, total=5) as stream:
                assert await stream.receive() == b"last"
                go_on.set()
                await stream.drain()
        assert wires.accepted == 1


async def test_a_bomb_in_a_stream_comes_in_small_pieces(sender: Sender) -> None:
    bomb = zlib.compress(b" " * 50_000_000)
    async with (
        listen(answering_compressed(bomb)) as wires,
        sender.stream(to(wires.port), between=5, total=20) as stream,
    ):
        assert len(await stream.receive() or b"") <= 2**18
        assert len(await stream.read()) <= 2**19


def answering_compressed(data: bytes) -> Serve:
    return saying(OK + b"content-encoding: deflate\r\ncontent-length: %d\r\n\r\n" % len(data) + data)


async def test_a_compressed_stream_that_is_cut_is_garbled(sender: Sender) -> None:
    async with listen(answering_compressed(zlib.compress(b"abcdef" * 100)[:-6])) as wires:
        with pytest.raises(UpstreamGarbled, match="cannot be decompressed"):
            await follow(sender, to(wires.port))


async def test_the_status_of_an_error_counts_although_its_body_cannot_be_read(sender: Sender) -> None:
    head = b"HTTP/1.1 429 Slow Down\r\ncontent-encoding: br\r\nretry-after: 7\r\ncontent-length: 3\r\n\r\n"
    async with listen(saying(head + b"\x0b\x01\x80")) as wires:
        received = await sender.call(to(wires.port), 5)
        assert (received.status, received.headers["retry-after"]) == (429, "7")
        async with sender.stream(to(wires.port), between=5, total=5) as stream:
            assert stream.status == 429
            assert len(await stream.read()) == 3


async def test_a_stream_of_an_unknown_coding_is_garbled_and_left(sender: Sender) -> None:
    async with listen(saying(OK + b"content-encoding: br\r\ncontent-length: 3\r\n\r\nabc")) as wires:
        with pytest.raises(UpstreamGarbled, match="unknown way"):
            await follow(sender, to(wires.port))
        await wait_until(lambda: wires.closed == 1, timeout=1)


async def test_a_request_says_what_it_must(sender: Sender) -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def serve(wire: Wire) -> None:
        while True:
            seen.append(await wire.request())
            await wire.send(EMPTY)

    async with listen(serve) as wires:
        await sender.call(to(wires.port, b"four"), 5)
        await follow(sender, to(wires.port, b""))
        port = wires.port
    assert [first for first, _, _ in seen] == ["POST /v1/x?a=b HTTP/1.1"] * 2
    assert seen[0][1] == {
        "host": f"127.0.0.1:{port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "authorization": "Bearer sk",
        "content-length": "4",
    }
    assert [body for _, _, body in seen] == [b"four", b""]


async def test_an_ipv6_address_is_called(sender: Sender) -> None:
    try:
        async with listen(answering(), host="::1") as wires:
            assert (await sender.call(to(wires.port, host="[::1]"), 5)).status == 200
    except OSError:
        pytest.skip("no IPv6 here")


async def test_every_address_of_a_name_is_tried(sender: Sender) -> None:
    # `localhost` is ::1 too on most machines, and only 127.0.0.1 answers.
    async with listen(answering()) as wires:
        assert (await sender.call(to(wires.port, host="localhost"), 5)).status == 200


async def test_a_name_that_does_not_exist_is_unavailable(sender: Sender) -> None:
    with pytest.raises(UpstreamUnavailable, match="could not be reached") as caught:
        await sender.call(to(80, host="nowhere.invalid"), 5)
    assert "nowhere" not in caught.value.message


async def test_exchanges_leave_nothing_to_the_garbage_collector(sender: Sender) -> None:
    async with listen(answering()) as wires:
        await sender.call(to(wires.port), 5)
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await sender.call(to(wires.port), 5)
            assert not [thing for thing in gc.get_objects() if isinstance(thing, Exchange)]
        finally:
            gc.enable()


async def test_heads_made_for_single_calls_do_not_pile_up(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.providers._http._WAYS_LIMIT", 2)
    async with listen(answering()) as wires:
        for number in range(5):
            request = UpstreamRequest("POST", f"http://127.0.0.1:{wires.port}/", {"X-Signature": str(number)}, b"")
            assert (await sender.call(request, 5)).status == 200
        assert len(sender._ways) <= 2
        assert wires.accepted == 1
