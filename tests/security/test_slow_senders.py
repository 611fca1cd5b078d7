"""S16, F35: clients that take their time are cut off, and nobody else notices them."""

from __future__ import annotations

import json
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from fakes.configs import settings as make_settings
from fakes.edges import CHAT, KEYS, Served, read_all, request_bytes, serving
from fakes.transport import FakeTransport, answer
from fakes.waiting import wait_until

from ingress import body as body_module
from ingress.server import server_config
from pipeline import open_files
from pipeline.settings import IngressSettings

pytestmark = pytest.mark.anyio

BODY = json.dumps(CHAT).encode()
SHORT = 0.1


def limits(**fields: Any) -> Any:
    return make_settings(ingress=IngressSettings(**fields))


@asynccontextmanager
async def talking(settings: Any, transport: FakeTransport | None = None) -> AsyncIterator[tuple[Served, SocketStream]]:
    async with serving(transport or FakeTransport(), settings) as served, await served.connect() as client:
        yield served, client


async def drip(client: SocketStream, data: bytes = b"x") -> bytes:
    """Send a byte again and again until the server has enough; return what it said."""
    said = b""
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            nonlocal said
            said = await read_all(client)
            tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        while True:
            try:
                await client.send(data)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                break
            await anyio.sleep(SHORT / 10)
    return said


def is_408(response: bytes) -> bool:
    head, _, body = response.partition(b"\r\n\r\n")
    return (
        head.startswith(b"HTTP/1.1 408")
        and b"connection: close" in head
        and json.loads(body)["error"]["code"] == "request_timeout"
    )


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with talking(limits(head_timeout=SHORT)) as (_, client):
        with anyio.fail_after(5):
            assert await read_all(client) == b""


async def test_a_head_that_drips_is_a_408_though_it_never_stalls() -> None:
    async with talking(limits(head_timeout=SHORT)) as (_, client):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\nx: ")
        with anyio.fail_after(5):
            assert is_408(await drip(client))


async def test_the_clock_of_heads_runs_for_every_request_of_a_connection() -> None:
    async with talking(limits(head_timeout=SHORT)) as (_, client):
        for _ in range(2):
            await client.send(request_bytes(BODY))
            assert b"200 OK" in await client.receive()
        await client.send(b"GET / HTTP/1.1\r\nhost:")
        with anyio.fail_after(5):
            assert is_408(await read_all(client))


async def test_blank_lines_between_requests_keep_no_connection_open() -> None:
    async with talking(limits(head_timeout=SHORT)) as (_, client):
        await client.send(request_bytes(BODY))
        assert b"200 OK" in await client.receive()
        with anyio.fail_after(5):
            assert await drip(client, b"\r\n") == b""


async def test_an_idle_connection_is_closed_in_time_and_not_before() -> None:
    async with talking(limits(head_timeout=SHORT, keep_alive=1)) as (_, client):
        await client.send(request_bytes(BODY))
        assert b"200 OK" in await client.receive()
        await anyio.sleep(3 * SHORT)  # a pause is what is tested
        await client.send(request_bytes(BODY))
        assert b"200 OK" in await client.receive()
        with anyio.fail_after(5):
            assert await read_all(client) == b""


async def test_an_answer_may_take_longer_than_a_head() -> None:
    transport = FakeTransport(lambda *_: [])
    async with talking(limits(head_timeout=SHORT), transport) as (_, client):
        await client.send(request_bytes(BODY))
        await anyio.sleep(3 * SHORT)
        transport.waiters[0].put(answer())
        assert b"200 OK" in await client.receive()


async def test_a_body_that_drips_is_a_408_though_it_never_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = FakeTransport()
    async with talking(limits(body_timeout=3 * SHORT), transport) as (served, client):
        await client.send(request_bytes(BODY + b" " * 10_000)[:-10_000])
        with anyio.fail_after(5):
            assert is_408(await drip(client, b" "))
        await wait_until(lambda: served.edge.permits.requests == served.edge.permits.held == 0)
    assert not transport.jobs


async def test_a_body_that_comes_at_a_fair_rate_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "LEAST_RATE", 1000)
    transport, body = FakeTransport(), BODY + b" " * 4000
    async with talking(limits(body_timeout=2 * SHORT), transport) as (_, client):
        await client.send(request_bytes(body)[: -len(body)])
        for start in range(0, len(body), 500):
            await client.send(body[start : start + 500])
            await anyio.sleep(SHORT / 2)
        assert b"200 OK" in await client.receive()
    assert transport.bodies == [body]


async def test_the_rest_of_a_body_that_was_refused_unread_must_not_drip_either() -> None:
    settings = make_settings(keys=KEYS, ingress=IngressSettings(head_timeout=SHORT))
    async with talking(settings) as (_, client):
        await client.send(request_bytes(BODY + b" " * 10_000)[:-10_000])
        assert b"401 Unauthorized" in await client.receive()
        with anyio.fail_after(5):
            assert await drip(client, b" ") == b""


async def test_a_body_refused_unread_and_then_complete_leaves_a_usable_connection() -> None:
    settings = make_settings(keys=KEYS, ingress=IngressSettings(head_timeout=SHORT))
    async with talking(settings) as (_, client):
        await client.send(request_bytes(BODY)[:-5])
        assert b"401 Unauthorized" in await client.receive()
        await client.send(BODY[-5:])
        await anyio.sleep(3 * SHORT)
        await client.send(request_bytes(b"", "/health/liveliness").replace(b"POST", b"GET"))
        assert b"200 OK" in await client.receive()


async def test_one_connection_more_than_allowed_is_told_so_at_once_and_welcome_when_another_has_gone() -> None:
    async with serving(FakeTransport(), limits(max_connections=2)) as served:
        async with await served.connect() as first, await served.connect() as second:
            await first.send(request_bytes(BODY))
            assert b"200 OK" in await first.receive()
            async with await served.connect() as third:
                await anyio.sleep(SHORT)
                await third.send(request_bytes(BODY))  # a closed connection would answer that with a reset
                await anyio.sleep(SHORT)
                with anyio.fail_after(1):
                    refusal = await read_all(third)
            assert refusal.startswith(b"HTTP/1.1 429")
            assert b"retry-after: 1" in refusal
            await second.send(request_bytes(BODY))
            assert b"200 OK" in await second.receive()
        await wait_until(lambda: not served.server.server_state.connections)
        async with await served.connect() as again:
            await again.send(request_bytes(BODY))
            assert b"200 OK" in await again.receive()


@pytest.fixture
def files() -> Iterator[None]:
    """Let a test change the limit of open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("files")
def test_there_are_never_more_connections_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    made: Any = server_config(None, IngressSettings(max_connections=10**9)).http  # type: ignore[arg-type]
    assert made.keywords["limits"].max_connections == hard - open_files.KEPT, "the limit is raised first"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    made = server_config(None, IngressSettings(max_connections=12_345)).http  # type: ignore[arg-type]
    assert made.keywords["limits"].max_connections == 12_345


async def test_f35_good_traffic_does_not_notice_hundreds_of_slow_clients() -> None:
    async with serving(FakeTransport(), limits(head_timeout=1)) as served, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(await served.connect()) for _ in range(400)]
        for number, client in enumerate(slow):
            if number % 2:
                await client.send(b"GET /v1/models HTTP/1.1\r\nx: ")
        async with await served.connect() as good:
            with anyio.fail_after(5):
                while len(served.server.server_state.connections) > 1:
                    await good.send(request_bytes(BODY))
                    assert b"200 OK" in await good.receive()
