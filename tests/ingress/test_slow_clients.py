"""Clients that do not read their answer, on real sockets: they are given up, and what they left is not kept."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import anyio
import pytest
from fakes.edges import CHAT, read_all, request_bytes, serving
from fakes.transport import FakeTransport, answer, frame
from fakes.waiting import wait_until

from ingress import corked, protocol, relay
from pipeline import metrics
from pipeline.errors import TransportFull

pytestmark = pytest.mark.anyio

LARGE = b"x" * (24 * 2**20)
"""More than any kernel buffers for a socket."""


def deaf(port: int, body: dict[str, Any]) -> socket.socket:
    """Ask, and read nothing: the window is too small for an answer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(request_bytes(json.dumps(body).encode()))
    return client


def given_up() -> float:
    return float(metrics.SLOW_CLIENTS["stuck",]._value.get())


async def test_a_large_answer_arrives_as_it_was() -> None:
    body = bytes(range(256)) * 4096
    async with serving(FakeTransport(lambda *_: [answer(body)])) as served, await served.connect() as client:
        await client.send(request_bytes(json.dumps(CHAT).encode(), "/v1/chat/completions", "connection: close"))
        head, _, received = (await read_all(client)).partition(b"\r\n\r\n")
    assert b"content-length: 1048576" in head
    assert received == body


async def test_a_client_that_takes_nothing_for_a_while_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "TAKING", 0.2)
    transport, before = FakeTransport(lambda *_: [answer(LARGE)]), given_up()
    async with serving(transport) as served:
        with deaf(served.port, CHAT):
            await wait_until(lambda: transport.waiters and transport.waiters[0].closed)
            await wait_until(lambda: served.edge.permits.requests == 0)
            await wait_until(lambda: not served.server.server_state.connections)
    assert given_up() == before + 1


async def test_the_job_of_a_stream_whose_client_takes_nothing_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "TAKING", 0.2)
    transport = FakeTransport(lambda *_: [frame(LARGE, 0), frame(b"more", 1)])
    async with serving(transport) as served:
        with deaf(served.port, CHAT | {"stream": True}):
            await wait_until(lambda: transport.waiters and transport.waiters[0].cancelled)
            await wait_until(lambda: transport.waiters[0].closed)


async def test_a_client_that_takes_a_little_all_the_time_is_cut_off_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "STUCK", 0.2)
    monkeypatch.setattr(relay, "SLOWEST", len(LARGE) * 10)
    monkeypatch.setattr(corked, "LINGER", 0.1)
    transport = FakeTransport(lambda *_: [answer(LARGE)])
    async with serving(transport) as served:
        with deaf(served.port, CHAT):
            await wait_until(lambda: transport.waiters and transport.waiters[0].closed)
            await wait_until(lambda: not served.server.server_state.connections)


async def test_a_client_that_reads_late_gets_everything() -> None:
    transport = FakeTransport(lambda *_: [answer(LARGE)])
    async with serving(transport) as served, await served.connect() as client:
        await client.send(request_bytes(json.dumps(CHAT).encode(), "/v1/chat/completions", "connection: close"))
        await wait_until(lambda: transport.waiters)
        received = 0
        with contextlib.suppress(anyio.EndOfStream):
            while data := await client.receive(2**20):
                received += data.count(b"x")
        assert received >= len(LARGE)
    assert transport.waiters[0].closed


async def test_a_client_that_is_refused_while_it_still_sends_gets_to_read_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corked, "UNHEARD", 0.5)
    transport = FakeTransport()
    transport.refusal = TransportFull("full", retry_after=2.0)
    body = b"x" * (8 * 2**20)
    request = request_bytes(body)
    async with serving(transport) as served:
        for pieces in (1, 64):
            size = len(request) // pieces + 1
            async with await served.connect() as client:
                for at in range(0, len(request), size):  # a client that reads once it has sent everything
                    await client.send(request[at : at + size])
                received = await read_all(client)
            assert received.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 2" in received
            assert received.count(b"HTTP/1.1") == 1
        await wait_until(lambda: not served.server.server_state.connections)
        async with await served.connect() as client:
            await client.send(request[:100_000])
            await wait_until(lambda: served.server.server_state.connections)
            with anyio.fail_after(3):  # it neither sends the rest nor leaves
                await wait_until(lambda: not served.server.server_state.connections)


async def test_what_is_cut_from_inside_ends_its_connection_at_once() -> None:
    transport = FakeTransport(lambda *_: [frame(b"data: 1\n\n")])
    async with serving(transport) as served, await served.connect() as client:
        await client.send(request_bytes(json.dumps(CHAT | {"stream": True}).encode()))
        await wait_until(lambda: transport.waiters and transport.waiters[0].cut)
        assert transport.waiters[0].cut is not None
        transport.waiters[0].cut()
        with anyio.fail_after(2):
            assert b"[DONE]" not in await read_all(client)
        await wait_until(lambda: transport.waiters[0].closed)
