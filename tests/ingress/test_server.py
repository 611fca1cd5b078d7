"""Over a real socket: limits of heads and bodies, keep-alive, the drain."""

from __future__ import annotations

import json
import signal
import socket
from typing import Any

import anyio
import pytest
from fakes.configs import settings as make_settings
from fakes.edges import CHAT, KEYS, MASTER, calling, read_all, request_bytes, serving
from fakes.transport import FakeTransport, answer, frame
from fakes.waiting import wait_until

from ingress import protocol, relay
from ingress.server import inherited_socket
from pipeline.errors import ConfigurationError
from pipeline.job import Frame
from pipeline.listener import listen
from pipeline.settings import IngressSettings

pytestmark = pytest.mark.anyio
BODY = json.dumps(CHAT).encode()
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


async def talk(*parts: bytes, settings: Any = None, transport: FakeTransport | None = None) -> bytes:
    """Send the parts and return all that comes back until the server closes."""
    transport = transport or FakeTransport()
    async with serving(transport, settings) as served, await served.connect() as client:
        for part in parts:
            await client.send(part)
        with anyio.fail_after(10):
            answered = await read_all(client)
        await wait_until(lambda: served.edge.permits.requests == served.edge.permits.held == 0)
        return answered


def error_of(response: bytes) -> Any:
    return json.loads(response.partition(b"\r\n\r\n")[2])["error"]


def limits(**fields: Any) -> Any:
    return make_settings(ingress=IngressSettings(**fields))


class SlowTransport(FakeTransport):
    """Its admissions wait until the test lets them through."""

    def __init__(self) -> None:
        super().__init__(lambda *_: [])
        self.asked, self.open = anyio.Event(), anyio.Event()

    async def submit(self, job: Any, body: bytes) -> Any:
        self.asked.set()
        await self.open.wait()
        return await super().submit(job, body)


async def test_a_client_that_left_while_its_job_was_admitted_is_not_waited_for() -> None:
    transport = SlowTransport()
    async with serving(transport) as served:
        async with await served.connect() as client:
            await client.send(request_bytes(BODY))
            await transport.asked.wait()
        await wait_until(lambda: not served.server.server_state.connections)
        transport.open.set()
        await wait_until(lambda: transport.waiters and transport.waiters[0].cancelled)


async def test_one_connection_serves_many_requests() -> None:
    transport = FakeTransport()
    async with serving(transport) as served, await served.connect() as client:
        for _ in range(3):
            await client.send(request_bytes(BODY))
            response = await client.receive()
            assert response.startswith(b"HTTP/1.1 200 OK")
            assert b"connection: close" not in response
            assert b"server:" not in response
    assert len({job.id for job in transport.jobs}) == 3


async def test_a_chunked_body_is_put_together() -> None:
    transport = FakeTransport()
    half = len(BODY) // 2
    async with serving(transport) as served, await served.connect() as client:
        await client.send(CHUNKED + b"%x\r\n%s\r\n" % (half, BODY[:half]))
        await client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) - half, BODY[half:]))
        assert b"200 OK" in await client.receive()
    assert transport.bodies == [BODY]


async def test_a_large_body_comes_in_whole_and_its_client_can_still_leave() -> None:
    transport = FakeTransport(lambda *_: [])
    body = json.dumps(CHAT | {"x": "y" * 1_000_000}).encode()
    async with serving(transport) as served:
        async with await served.connect() as client:
            await client.send(request_bytes(body))
            await wait_until(lambda: transport.waiters)
            assert transport.bodies == [body]
            assert served.edge.permits.held == 0, "the transport has it now"
        await wait_until(lambda: transport.waiters[0].cancelled)


async def test_a_request_sent_ahead_waits_its_turn() -> None:
    transport = FakeTransport(lambda *_: [])
    async with serving(transport) as served, await served.connect() as client:
        await client.send(request_bytes(BODY) + request_bytes(BODY, "/v1/models").replace(b"POST", b"GET"))
        await wait_until(lambda: transport.waiters)
        transport.waiters[0].put(answer())
        data = b""
        while b'"object":"list"' not in data:
            data += await client.receive()
        assert data.index(b'"chat.completion"') < data.index(b'"object":"list"')
    assert not transport.waiters[0].cancelled


async def test_a_large_answer_goes_out_whole() -> None:
    large = b'"' + b"z" * 3_000_000 + b'"'
    response = await talk(
        request_bytes(BODY, "/v1/chat/completions", "connection: close"),
        transport=FakeTransport(lambda *_: [answer(large)]),
    )
    assert response.partition(b"\r\n\r\n")[2] == large


@pytest.mark.parametrize("length", ["ten", "\xb2", "1_0"])
async def test_a_length_that_another_server_lets_through_is_still_checked(length: str) -> None:
    async with calling(FakeTransport()) as client:
        response = await client.post(
            "/chat/completions", content=BODY, headers={b"content-length": length.encode("latin-1")}
        )
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_body_announced_too_large_is_refused_before_it_is_sent() -> None:
    head = request_bytes(b"", "/v1/chat/completions").replace(b"content-length: 0", b"content-length: 104857600")
    response = await talk(head.replace(b"host: x", b"host: x\r\nexpect: 100-continue"))
    assert response.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in response
    assert b"connection: close" in response
    assert error_of(response)["code"] == "request_too_large"


async def test_a_content_length_of_a_thousand_digits_is_too_large_or_bad() -> None:
    head = request_bytes(b"").replace(b"content-length: 0", b"content-length: 1" + b"0" * 1000)
    assert (await talk(head)).split()[1] in (b"400", b"413")


async def test_a_chunked_body_is_cut_off_at_the_limit() -> None:
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    response = await talk(CHUNKED, chunk, chunk, settings=limits(max_body_bytes=1500))
    assert response.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in response


async def test_a_short_unread_body_keeps_the_connection() -> None:
    async with serving(FakeTransport(), make_settings(keys=KEYS)) as served, await served.connect() as client:
        await client.send(request_bytes(BODY))
        assert b"401 Unauthorized" in await client.receive()
        await client.send(request_bytes(BODY, "/v1/chat/completions", f"x-api-key: {MASTER}"))
        assert b"200 OK" in await client.receive()


async def test_bodies_are_held_only_up_to_a_limit() -> None:
    response = await talk(
        request_bytes(BODY, "/v1/chat/completions", "connection: close"), settings=limits(max_buffered_bytes=10)
    )
    assert response.startswith(b"HTTP/1.1 429")
    assert error_of(response)["code"] == "backlog_full"
    assert b"retry-after: 1" in response


async def test_bodies_that_do_not_say_their_length_are_counted_as_they_come() -> None:
    response = await talk(CHUNKED, b"20\r\n" + b"x" * 32 + b"\r\n", settings=limits(max_buffered_bytes=10))
    assert response.startswith(b"HTTP/1.1 429")


async def test_one_request_more_than_allowed_is_refused_while_they_last() -> None:
    transport = FakeTransport(lambda *_: [])
    async with (
        serving(transport, limits(max_requests=1)) as served,
        await served.connect() as first,
        await served.connect() as second,
    ):
        await first.send(request_bytes(BODY))
        await wait_until(lambda: transport.waiters)
        await second.send(request_bytes(BODY))
        assert b"429 Too Many Requests" in await second.receive()
        transport.waiters[0].put(answer())
        assert b"200 OK" in await first.receive()
        transport.script = lambda *_: [answer()]
        await second.send(request_bytes(BODY))
        assert b"200 OK" in await second.receive()


async def test_a_body_that_stops_arriving_is_given_up() -> None:
    response = await talk(request_bytes(BODY)[:-5], settings=limits(body_timeout=0.05))
    assert response.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in response
    assert error_of(response)["code"] == "request_timeout"


async def test_a_client_that_leaves_in_its_body_costs_nothing() -> None:
    transport = FakeTransport()
    async with serving(transport) as served:
        async with await served.connect() as client:
            await client.send(request_bytes(BODY)[:-5])
            await wait_until(lambda: served.edge.permits.requests == 1)
        await wait_until(lambda: served.edge.permits.requests == served.edge.permits.held == 0)
    assert not transport.jobs


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(1000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=lambda head: repr(head[:60]),
)
async def test_heads_that_are_too_large_or_ambiguous_end_the_connection(head: bytes) -> None:
    response = await talk(head)
    assert response.startswith(b"HTTP/1.1 400")
    assert b"connection: close" in response
    assert error_of(response)["type"] == "invalid_request_error"


async def test_an_endless_header_is_cut_off() -> None:
    async with serving(FakeTransport()) as served, await served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nx: ")
        with anyio.fail_after(5):
            try:
                while True:
                    await client.send(b"y" * 30_000)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass


async def test_a_drain_finishes_what_is_held() -> None:
    transport = FakeTransport(lambda *_: [])
    async with serving(transport) as served, await served.connect() as client:
        await client.send(request_bytes(BODY))
        await wait_until(lambda: transport.waiters)
        served.server.handle_exit(signal.SIGTERM, None)
        assert served.edge.draining
        await wait_until(lambda: not served.server.servers[0].is_serving())
        transport.waiters[0].put(answer())
        with anyio.fail_after(5):
            response = await read_all(client)
        assert response.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in response


async def test_a_connection_that_came_just_before_the_drain_is_still_served() -> None:
    async with serving(FakeTransport()) as served, await served.connect() as client:
        await wait_until(lambda: served.server.server_state.connections)
        served.server.handle_exit(signal.SIGTERM, None)
        await wait_until(lambda: not served.server.servers[0].is_serving())
        await client.send(request_bytes(BODY))
        with anyio.fail_after(5):
            response = await read_all(client)
    assert response.startswith(b"HTTP/1.1 200")


async def test_a_connection_that_is_kept_open_gets_one_more_answer_in_the_drain_and_hears_that_it_is_the_last() -> None:
    async with serving(FakeTransport()) as served, await served.connect() as client:
        await client.send(request_bytes(BODY))
        assert b"connection: close" not in await client.receive()
        served.server.handle_exit(signal.SIGTERM, None)
        await wait_until(lambda: not served.server.servers[0].is_serving())
        await client.send(request_bytes(BODY))
        with anyio.fail_after(5):
            response = await read_all(client)
    assert response.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in response


async def test_a_stream_that_ends_in_the_drain_leaves_its_connection_open_for_one_more_request() -> None:
    """Its head said that the connection is kept: the next request may be on its way when the last byte is read."""
    transport = FakeTransport(lambda *_: [frame(b"data: 1\n\n")])
    async with serving(transport) as served, await served.connect() as client:
        await client.send(request_bytes(json.dumps({**CHAT, "stream": True}).encode()))
        while b"data: 1" not in await client.receive():
            pass
        served.server.handle_exit(signal.SIGTERM, None)
        await wait_until(lambda: not served.server.servers[0].is_serving())
        transport.waiters[0].put(answer())
        while b"0\r\n\r\n" not in await client.receive():
            pass
        transport.script = lambda *_: [answer()]
        await client.send(request_bytes(BODY))
        with anyio.fail_after(5):
            response = await read_all(client)
    assert response.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in response


async def test_a_connection_that_stays_silent_does_not_hold_up_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LAST_WORDS", 0.05)
    async with serving(FakeTransport()) as served, await served.connect() as client:
        await wait_until(lambda: served.server.server_state.connections)
        served.server.handle_exit(signal.SIGTERM, None)
        with anyio.fail_after(0.9):  # less than the drain may last
            assert await read_all(client) == b""


async def test_what_outlasts_the_drain_gets_a_503_and_is_cancelled() -> None:
    transport = FakeTransport(lambda *_: [])
    async with serving(transport) as served, await served.connect() as client:
        await client.send(request_bytes(BODY))
        await wait_until(lambda: transport.waiters)
        served.server.handle_exit(signal.SIGTERM, None)
        with anyio.fail_after(5):
            response = await read_all(client)
    assert response.startswith(b"HTTP/1.1 503")
    assert error_of(response)["code"] == "shutting_down"
    assert transport.waiters[0].cancelled


@pytest.mark.parametrize("pieces", [[frame(b"data: 1\n\n")], []], ids=["begun", "pinged"])
async def test_a_stream_that_outlasts_the_drain_ends_in_an_error_event(
    pieces: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "QUIET", 0.01)
    transport = FakeTransport(lambda *_: pieces)
    async with serving(transport) as served, await served.connect() as client:
        await client.send(request_bytes(json.dumps({**CHAT, "stream": True}).encode()))
        response = await client.receive()
        served.server.handle_exit(signal.SIGTERM, None)
        with anyio.fail_after(5):
            response += await read_all(client)
    assert response.startswith(b"HTTP/1.1 200")
    assert response.endswith(b"\r\n0\r\n\r\n"), "the chunked body is not complete"
    (event,) = [line for line in response.splitlines() if line.startswith(b'data: {"error"')]
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "shutting_down"
    assert transport.waiters[0].cancelled


async def test_a_second_sigterm_changes_nothing_and_ctrl_c_ends_the_drain() -> None:
    async with serving(FakeTransport()) as served:
        for number in (signal.SIGTERM, signal.SIGTERM):
            served.server.handle_exit(number, None)
            assert not served.server.force_exit
        served.server.handle_exit(signal.SIGINT, None)
        assert served.server.force_exit


def test_a_busy_port_is_an_error_with_a_remedy() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is in use; .* --port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_others_is_an_error_with_a_remedy(host: str) -> None:
    with pytest.raises(ConfigurationError, match="choose another --host"):
        listen(host, 0)


def test_a_socket_is_inherited_by_number() -> None:
    assert inherited_socket({}) is None
    bound = listen("127.0.0.1", 0)
    address = bound.getsockname()
    with inherited_socket({"PROMPTMILL_SOCKET_FD": str(bound.detach())}) as inherited:  # type: ignore[union-attr]
        assert inherited.getsockname() == address
        assert inherited.family == socket.AF_INET


@pytest.mark.parametrize("number", ["none", "9999"])
def test_a_number_that_is_no_socket_ends_the_start(number: str) -> None:
    with pytest.raises(ConfigurationError, match=f"PROMPTMILL_SOCKET_FD={number} is not an open socket"):
        inherited_socket({"PROMPTMILL_SOCKET_FD": number})
