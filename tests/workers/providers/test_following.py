"""Streams that are followed: what arrives is handed over at once, and the task that follows sleeps."""

from __future__ import annotations

import asyncio
import time
import zlib

import anyio
import pytest
from fakes.sending import BEGUN, OK, saying, to
from fakes.waiting import wait_until
from fakes.wires import Wire, listen

from pipeline.errors import UpstreamGarbled, UpstreamTimeout
from workers.providers._connection import BEHIND_LIMIT
from workers.providers._http import Sender

pytestmark = pytest.mark.anyio
END = b"0\r\n\r\n"


class Script:
    """Begins an answer to each request and sends what the test says."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.send(BEGUN)
            step = b""
            while step != END:
                step = await self.steps.get()
                await wire.send(step)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.steps.put_nowait(b"%x\r\n%b\r\n" % (len(piece), piece) if piece != END else END)


class Taker:
    """Takes until `enough` bytes have come, noting in which task."""

    def __init__(self, enough: int = 2**40) -> None:
        self.data = b""
        self.enough = enough
        self.tasks: set[object] = set()

    def __call__(self, data: bytes) -> bool:
        self.data += data
        self.tasks.add(asyncio.current_task())
        return len(self.data) < self.enough


async def test_pieces_are_handed_over_without_the_task_up_to_the_end_of_the_body(sender: Sender) -> None:
    script, taker = Script(), Taker()
    async with (
        listen(script) as wires,
        sender.stream(to(wires.port), between=5, total=5) as stream,
        anyio.create_task_group() as tasks,
    ):
        ended = []

        async def follow() -> None:
            ended.append(await stream.follow(taker))

        tasks.start_soon(follow)
        for piece in (b"one ", b"two ", b"three"):
            script.send(piece)
            await wait_until(lambda piece=piece: taker.data.endswith(piece))
            assert not ended
        assert taker.tasks == {None}
        script.send(END)
    assert (ended, taker.data) == ([False], b"one two three")


async def test_a_follower_that_has_enough_gets_nothing_until_it_follows_again(sender: Sender) -> None:
    script, taker = Script(), Taker(enough=3)
    async with listen(script) as wires, sender.stream(to(wires.port), between=5, total=5) as stream:
        script.send(b"one")
        assert await stream.follow(taker)
        script.send(b"two")
        await wait_until(lambda: stream._exchange.held)
        assert taker.data == b"one"
        script.send(b"three", END)
        taker.enough = 2**40
        assert not await stream.follow(taker)
    assert taker.data == b"onetwothree"


async def test_what_the_follower_raises_reaches_its_task_and_closes_the_connection(sender: Sender) -> None:
    script = Script()
    streams = []

    def fail(data: bytes) -> bool:
        assert asyncio.current_task() is None
        raise LookupError(data)

    async def follow(port: int) -> None:
        async with sender.stream(to(port), between=5, total=5) as stream:
            streams.append(stream)
            asyncio.get_running_loop().call_later(0.02, script.send, b"oops")
            await stream.follow(fail)

    async with listen(script) as wires:
        with pytest.raises(LookupError, match="oops"):
            await follow(wires.port)
        await wait_until(lambda: streams[0]._connection._gone, timeout=1)


async def test_silence_is_counted_from_what_came_last(sender: Sender) -> None:
    script, taker = Script(), Taker()
    began = time.monotonic()

    async def drip() -> None:
        for _ in range(6):
            script.send(b".")
            await asyncio.sleep(0.1)

    async with listen(script) as wires, anyio.create_task_group() as tasks:
        tasks.start_soon(drip)
        with pytest.raises(UpstreamTimeout, match=r"nothing for 0\.3 s"):
            async with sender.stream(to(wires.port), between=0.3, total=20) as stream:
                await stream.follow(taker)
    assert taker.data == b"......"
    assert time.monotonic() - began > 0.7


async def test_a_cut_body_fails_after_what_came_before(sender: Sender) -> None:
    taker = Taker()
    async with listen(saying(BEGUN + b"4\r\nhalf\r\n", close=True)) as wires:
        with pytest.raises(UpstreamGarbled, match="in the middle"):
            async with sender.stream(to(wires.port), between=5, total=5) as stream:
                await stream.follow(taker)
    assert taker.data == b"half"


async def test_a_cancelled_follower_is_handed_nothing_more(sender: Sender) -> None:
    script, taker = Script(), Taker()
    async with listen(script) as wires, sender.stream(to(wires.port), between=5, total=5) as stream:
        script.send(b"one")
        with anyio.move_on_after(0.1):
            await stream.follow(taker)
        script.send(b"two")
        assert await stream.receive() == b"two"
        script.send(END)
        assert await stream.receive() is None
    assert taker.data == b"one"


async def test_a_compressed_stream_is_followed_in_plain(sender: Sender) -> None:
    data = zlib.compress(b"plain " * 1000)
    taker = Taker(enough=100)
    async with (
        listen(saying(OK + b"content-encoding: deflate\r\ncontent-length: %d\r\n\r\n" % len(data) + data)) as wires,
        sender.stream(to(wires.port), between=5, total=5) as stream,
    ):
        assert await stream.follow(taker)
        taker.enough = 2**40
        assert not await stream.follow(taker)
    assert taker.data == b"plain " * 1000


async def test_a_paused_provider_goes_on_when_it_is_followed_again(sender: Sender) -> None:
    script, taker = Script(), Taker(enough=1)
    async with listen(script) as wires, sender.stream(to(wires.port), between=5, total=20) as stream:
        script.send(b"one")
        assert await stream.follow(taker)
        for _ in range(16):
            script.send(b"x" * BEHIND_LIMIT)
        await wait_until(lambda: stream._connection._paused)
        script.send(END)
        taker.enough = 2**40
        assert not await stream.follow(taker)
    assert len(taker.data) == 3 + 16 * BEHIND_LIMIT
