"""Connections to providers: when one is used again, when it is closed, and what may not come over it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
from fakes.sending import BEGUN, EMPTY, LIMIT, OK, follow, one_call, saying, to
from fakes.waiting import wait_until
from fakes.wires import Serve, Wire, answering, listen

from pipeline.errors import UpstreamTimeout, UpstreamUnavailable
from pipeline.settings import DispatchSettings
from workers.providers import _pool
from workers.providers._connection import Connection, _tune
from workers.providers._dialect import UpstreamRequest
from workers.providers._exchange import Exchange
from workers.providers._http import Sender

pytestmark = pytest.mark.anyio


async def call_twice(sender: Sender, serve: Serve) -> tuple[bytes, int]:
    async with listen(serve) as wires:
        body = (await sender.call(to(wires.port), 5)).body
        await anyio.wait_all_tasks_blocked()
        await sender.call(to(wires.port), 5)
        return body, wires.accepted


@pytest.mark.parametrize(
    "answer",
    [
        EMPTY,
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\n{\r\n1;ext=1\r\n}\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + EMPTY,
    ],
)
async def test_a_connection_is_used_again_after_a_whole_answer(sender: Sender, answer: bytes) -> None:
    assert await call_twice(sender, saying(answer)) == (b"{}", 1)
    # Byte by byte, so that no boundary has a meaning.
    assert await call_twice(sender, saying(*(answer[i : i + 1] for i in range(len(answer))))) == (b"{}", 1)


@pytest.mark.parametrize(
    "parts",
    [
        [OK + b"connection: close\r\ncontent-length: 2\r\n\r\n{}"],
        [b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}"],
        [b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}"],
        [EMPTY + b"surplus"],
        [EMPTY + EMPTY],
        [OK + b"connection: close\r\ncontent-length: 2\r\n\r\n{}" + EMPTY],
    ],
)
async def test_a_connection_that_may_not_be_used_again_is_closed(sender: Sender, parts: list[bytes]) -> None:
    async with listen(saying(*parts)) as wires:
        for number in (1, 2):
            assert (await sender.call(to(wires.port), 5)).body == b"{}"
            await wait_until(lambda number=number: wires.closed == number, timeout=1)  # type: ignore[misc]


async def test_bytes_that_arrive_while_a_connection_is_idle_close_it(sender: Sender) -> None:
    spoil = asyncio.Event()

    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(EMPTY)
        await spoil.wait()
        await wire.send(EMPTY)

    async with listen(serve) as wires:
        await sender.call(to(wires.port), 5)
        assert wires.closed == 0
        spoil.set()
        await wait_until(lambda: wires.closed == 1, timeout=1)
        assert (await sender.call(to(wires.port), 5)).status == 200
        assert wires.accepted == 2


async def test_a_connection_closed_while_idle_is_not_used(sender: Sender) -> None:
    async with listen(saying(EMPTY, close=True)) as wires:
        for number in (1, 2, 3):
            await sender.call(to(wires.port), 5)
            await wait_until(lambda number=number: wires.closed == number, timeout=1)  # type: ignore[misc]
            await anyio.wait_all_tasks_blocked()
        assert wires.accepted == 3


async def test_a_connection_spoilt_a_moment_ago_is_not_taken(sender: Sender) -> None:
    async with listen(answering()) as wires:
        await sender.call(to(wires.port), 5)
        (connection,) = sender._pool._shared.connections
        connection.data_received(b"HTTP")  # its transport is closing, and has not said so yet
        assert (await sender.call(to(wires.port), 5)).status == 200
        assert wires.accepted == 2


async def test_a_connection_lost_before_it_is_used_fails_the_call_at_once() -> None:
    lost: list[Connection] = []
    connection = Connection(lost.append)
    connection.connection_lost(None)
    connection.connection_lost(None)
    assert lost == [connection]
    exchange = Exchange(LIMIT)
    connection.send(b"", b"", exchange)
    with pytest.raises(UpstreamUnavailable):
        await exchange.whole(math.inf)


async def test_a_connection_lost_between_its_opening_and_its_use_fails_the_call(sender: Sender) -> None:
    async with listen(answering()) as wires:
        await sender.call(to(wires.port), 5)
        (connection,) = sender._pool._shared.connections
        exchange = Exchange(LIMIT)
        connection.abort()
        connection.send(b"POST / HTTP/1.1\r\n\r\n", b"", exchange)
        with pytest.raises(UpstreamUnavailable):
            await exchange.whole(math.inf)


async def test_sockets_are_tuned_where_the_platform_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as wire:
        monkeypatch.delattr(socket, "TCP_KEEPCNT", raising=False)
        _tune(wire)
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    _tune(wire)  # closed meanwhile: no error of its own


async def test_a_used_connection_lost_before_the_answer_is_an_unavailable_provider(sender: Sender) -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(EMPTY)
        await wire.request()
        wire.writer.close()

    async with listen(serve) as wires:
        await sender.call(to(wires.port), 5)
        with pytest.raises(UpstreamUnavailable, match="closed the connection before it answered") as caught:
            await sender.call(to(wires.port), 5)
        assert caught.value.retryable
        assert wires.accepted == 1


async def test_the_connection_used_last_is_used_first_and_idle_ones_are_closed_after_a_while(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Wire] = []
    gate = asyncio.Event()

    async def serve(wire: Wire) -> None:
        while True:
            await wire.request()
            served.append(wire)
            await gate.wait()
            await wire.send(EMPTY)

    async with listen(serve) as wires:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(sender.call, to(wires.port), 5)
            await wait_until(lambda: len(served) == 3)
            gate.set()
        for _ in range(3):
            await sender.call(to(wires.port), 5)
        assert wires.accepted == 3
        assert len({id(wire) for wire in served[3:]}) == 1
        monkeypatch.setattr(_pool, "IDLE_SECONDS", -1.0)
        sender._pool.start()
        await wait_until(lambda: wires.closed == 3, timeout=1)


async def test_no_more_connections_are_kept_idle_than_the_limit(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pool, "IDLE_LIMIT", 1)
    async with listen(answering()) as wires:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(sender.call, to(wires.port), 5)
        await wait_until(lambda: wires.closed == 2, timeout=1)


async def test_closing_the_sender_closes_idle_connections_and_ends_calls(anyio_backend: object) -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(EMPTY)
        await wire.request()

    async def wait(sender: Sender, port: int) -> None:
        with pytest.raises(UpstreamUnavailable):
            await sender.call(to(port), 5)

    async with listen(serve) as wires, anyio.create_task_group() as group:
        async with Sender(DispatchSettings()) as sender:
            async with anyio.create_task_group() as first:
                first.start_soon(sender.call, to(wires.port), 5)
                first.start_soon(sender.call, to(wires.port), 5)
            group.start_soon(wait, sender, wires.port)
            await anyio.wait_all_tasks_blocked()
        await wait_until(lambda: wires.closed == 2, timeout=1)


@pytest.mark.parametrize("send", [one_call, follow])
@pytest.mark.parametrize("said", [b"", OK, BEGUN, BEGUN + b"5\r\nda", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("bare", [False, True], ids=["scope", "task"])
async def test_a_cancelled_call_closes_its_connection_at_once(
    sender: Sender, send: Callable[[Sender, UpstreamRequest], Awaitable[None]], said: bytes, bare: bool
) -> None:
    heard = asyncio.Event()

    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(said)
        heard.set()

    async with listen(serve) as wires:
        began = 0.0
        if bare:
            task = asyncio.ensure_future(send(sender, to(wires.port)))
            await heard.wait()
            await anyio.wait_all_tasks_blocked()
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(send, sender, to(wires.port))
                await heard.wait()
                await anyio.wait_all_tasks_blocked()
                began = time.monotonic()
                group.cancel_scope.cancel()
        await wait_until(lambda: wires.closed == 1, timeout=1)
        assert time.monotonic() - began < 1
        assert not sender._pool._shared.connections


async def test_a_call_cancelled_in_the_round_its_answer_arrives_is_not_reused(sender: Sender) -> None:
    heard = asyncio.Event()

    async def serve(wire: Wire) -> None:
        await wire.request()
        heard.set()

    async with listen(serve) as wires:
        task = asyncio.ensure_future(sender.call(to(wires.port), 5))
        await heard.wait()
        (connection,) = sender._pool._shared.connections
        connection.data_received(EMPTY)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until(lambda: wires.closed == 1, timeout=1)


@contextlib.asynccontextmanager
async def full_backlog() -> AsyncIterator[int]:
    """A port whose connections hang: nobody accepts, and the queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        await anyio.lowlevel.checkpoint()
        yield listener.getsockname()[1]


async def test_a_connection_that_is_never_made_can_be_left_or_runs_out_of_time() -> None:
    async with Sender(DispatchSettings(connect_timeout=0.2)) as sender, full_backlog() as port:
        with anyio.move_on_after(0.1) as scope:
            await sender.call(to(port), 30)
        assert scope.cancelled_caught
        with pytest.raises(UpstreamUnavailable, match=r"could not be reached within 0\.2 s"):
            await sender.call(to(port), 30)
        with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.1 s"):
            await sender.call(to(port), 0.1)
        with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0\.1 s"):
            async with sender.stream(to(port), between=0.1, total=5):
                raise AssertionError("it never opens")
        assert not sender._pool._shared.connections


async def test_a_tls_handshake_that_hangs_is_left_at_once(sender: Sender) -> None:
    async def serve(wire: Wire) -> None:
        await wire.reader.read(1)

    async with listen(serve) as wires:
        with anyio.move_on_after(0.2) as scope:
            await sender.call(to(wires.port, scheme="https"), 30)
        assert scope.cancelled_caught
        await wait_until(lambda: wires.closed == 1, timeout=1)
