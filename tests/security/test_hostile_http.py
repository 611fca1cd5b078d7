"""S12-S15, S17, S18: heads, framings and paths that mean one thing to a proxy and another to us, over a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from fakes.configs import settings as make_settings
from fakes.edges import CHAT, KEYS, MASTER, Served, calling, read_all, request_bytes, serving
from fakes.transport import FakeTransport
from fakes.waiting import wait_until

from pipeline import metrics
from pipeline.settings import IngressSettings

pytestmark = pytest.mark.anyio

BODY = json.dumps(CHAT).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: smuggled\r\n\r\n"
OPEN = make_settings()
LOCKED = make_settings(keys=KEYS)


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
async def served(transport: FakeTransport) -> AsyncIterator[Served]:
    async with serving(transport, OPEN) as running:
        yield running


async def answers(served: Served, *parts: bytes) -> list[bytes]:
    """Return the statuses of all answers on one connection, until the server closes it."""
    async with await served.connect() as client:
        for part in parts:
            await client.send(part)
        with anyio.fail_after(5):
            data = await read_all(client)
    return [piece[:3] for piece in data.split(b"HTTP/1.1 ")[1:] if piece[:3].isdigit()]


# S12: where does the request end?

AMBIGUOUS = {
    "content-length and chunked": POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and content-length": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
    "one length twice": POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nabcde",
    "a list of lengths": POST + b"content-length: 5, 5\r\n\r\nabcde",
    "a length with a sign": POST + b"content-length: +5\r\n\r\nabcde",
    "a negative length": POST + b"content-length: -5\r\n\r\n",
    "a hexadecimal length": POST + b"content-length: 0x5\r\n\r\nabcde",
    "an empty length": POST + b"content-length:\r\n\r\n",
    "a length beyond 64 bits": POST + b"content-length: 18446744073709551621\r\n\r\nabcde",
    "chunked twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then another": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a coding of its own": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"transfer-encoding: identity\r\n\r\n",
    "a vertical tab": POST + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": POST + b"x: a\r\n transfer-encoding: chunked\r\n\r\n",
    "a folded first line": b"POST /v1/chat/completions HTTP/1.1\r\n x: y\r\n\r\n",
    "line feeds alone": POST.replace(b"\r\n", b"\n") + b"content-length: %d\n\n%s" % (len(BODY), BODY),
    "a carriage return alone": POST + b"x: a\rcontent-length: 3\r\n\r\n",
    "a zero byte": POST + b"x: a\0b\r\n\r\n",
    "line feeds after chunks": CHUNKED + b"%x\n%s\n0\n\n" % (len(BODY), BODY),
    "a chunk without an end": CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
    "a chunk of a negative size": CHUNKED + b"-1\r\nabc",
    "a chunk beyond 64 bits": CHUNKED + b"1ffffffffffffffff\r\nabc",
    "a chunk of a size that is none": CHUNKED + b"0x5\r\nabcde\r\n0\r\n\r\n",
    "HTTP/1.2": b"GET /v1/models HTTP/1.2\r\nhost: x\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an upgrade with a body": POST
    + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n%s" % (len(SMUGGLED), SMUGGLED),
    "a tunnel": b"CONNECT upstream:443 HTTP/1.1\r\nhost: x\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_s12_a_request_whose_end_is_disputable_is_a_400_and_the_last(
    served: Served, transport: FakeTransport, name: str
) -> None:
    assert await answers(served, AMBIGUOUS[name], SMUGGLED) == [b"400"]
    assert not transport.jobs


async def test_s12_codings_on_the_way_are_refused(served: Served, transport: FakeTransport) -> None:
    head = POST + b"transfer-encoding: gzip, chunked\r\nconnection: close\r\n\r\n"
    assert await answers(served, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)) == [b"415"]
    assert not transport.jobs


@pytest.mark.parametrize(
    "endless", [b"5;" + b"x" * 400_000, b"0\r\n" + b"a: b\r\n" * 60_000], ids=["extension", "trailers"]
)
async def test_s12_what_comes_beside_the_body_is_bounded(
    served: Served, transport: FakeTransport, endless: bytes
) -> None:
    assert await answers(served, CHUNKED, endless) == [b"400"]
    assert not transport.jobs


async def test_s12_a_trailer_does_not_pass_for_a_header() -> None:
    transport = FakeTransport()
    trailers = f"x-api-key: {MASTER}\r\nauthorization: Bearer {MASTER}".encode()
    async with serving(transport, LOCKED) as served:
        head = CHUNKED.replace(b"host: x", b"host: x\r\nconnection: close")
        sent = head + b"%x\r\n%s\r\n0\r\n%s\r\n\r\n" % (len(BODY), BODY, trailers)
        assert await answers(served, sent) == [b"401"]
    assert not transport.jobs


async def test_s12_rubbish_behind_a_request_is_not_answered_in_its_place() -> None:
    transport = FakeTransport(lambda *_: [])
    async with serving(transport) as served:
        async with await served.connect() as client:
            await client.send(request_bytes(BODY))
            await wait_until(lambda: transport.waiters)
            await client.send(b"rubbish\r\n\r\n")
            with anyio.fail_after(5):
                assert await read_all(client) == b""
        await wait_until(lambda: transport.waiters[0].cancelled)


# S13, S14, S18: whom is it for, and what is it?

WAYS_ROUND = {
    "no Host": b"GET /v1/models HTTP/1.1\r\n",
    "two Hosts": b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n",
    "a Host with a path": b"GET /v1/models HTTP/1.1\r\nhost: a/health/liveliness?b#c\r\n",
    "a foreign address": b"GET http://evil.invalid/v1/models HTTP/1.1\r\nhost: x\r\n",
    "an address that looks open": b"GET http://x/v1/models?/health/liveliness HTTP/1.1\r\nhost: x\r\n",
    "a forwarded path": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-original-url: /health/liveliness\r\n",
    "a rewritten path": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-rewrite-url: /health/liveliness\r\n",
    "a forwarded client": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 127.0.0.1\r\n",
    "an override": b"POST /v1/models HTTP/1.1\r\nhost: x\r\nx-http-method-override: GET\r\n",
    "HEAD": b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n",
    "OPTIONS": b"OPTIONS /v1/models HTTP/1.1\r\nhost: x\r\n",
    "OPTIONS for the server": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n",
    "two slashes": b"GET //v1/models HTTP/1.1\r\nhost: x\r\n",
    "dots": b"GET /health/liveliness/../../v1/models HTTP/1.1\r\nhost: x\r\n",
    "encoded dots": b"GET /health/liveliness/%2e%2e/%2e%2e/v1/models HTTP/1.1\r\nhost: x\r\n",
    "an encoded slash": b"GET /health%2fliveliness%2f..%2f..%2fv1%2fmodels HTTP/1.1\r\nhost: x\r\n",
    "a parameter": b"GET /v1/models;/health/liveliness HTTP/1.1\r\nhost: x\r\n",
    "a trailing slash": b"GET /v1/models/ HTTP/1.1\r\nhost: x\r\n",
    "a trailing dot": b"GET /v1/models. HTTP/1.1\r\nhost: x\r\n",
    "capitals": b"GET /V1/Health/Liveliness HTTP/1.1\r\nhost: x\r\n",
    "a zero byte": b"GET /health/liveliness%00/v1/models HTTP/1.1\r\nhost: x\r\n",
    "a fragment": b"GET /v1/models#/health/liveliness HTTP/1.1\r\nhost: x\r\n",
}


@pytest.mark.parametrize("name", WAYS_ROUND)
async def test_s13_s14_s18_no_way_of_writing_a_request_gets_it_past_the_key(name: str) -> None:
    transport = FakeTransport()
    async with serving(transport, LOCKED) as served:
        found = await answers(served, WAYS_ROUND[name] + b"connection: close\r\n\r\n")
    assert found in ([b"401"], [b"400"])
    assert not transport.jobs


@pytest.mark.parametrize("path", ["//v1/models", "/v1/%2e%2e/v1/models", "/v1/models;x", "/v1/models.", "/V1/models"])
async def test_s14_with_a_key_an_odd_path_leads_nowhere(path: str) -> None:
    async with serving(FakeTransport(), LOCKED) as served:
        head = f"GET {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {MASTER}\r\nconnection: close\r\n\r\n"
        assert await answers(served, head.encode()) == [b"404"]


@pytest.mark.parametrize("host", ["", "evil.invalid", "a/b?c#d", "\xe9"])
async def test_s13_the_host_has_no_part_in_any_answer(host: str) -> None:
    async with calling(FakeTransport(), LOCKED, MASTER) as client:
        response = await client.get("/v1/models/", headers={b"host": host.encode("latin-1")})
    assert response.status_code == 404
    assert "location" not in response.headers
    assert "evil" not in response.text


# S15: how much head?


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"x-%d: y\r\n" % n for n in range(1000)),
        b"x: " + b"y" * 70_000 + b"\r\n",
        b"y" * 70_000 + b": x\r\n",
        b"".join(b"x-%d: %s\r\n" % (n, b"y" * 700) for n in range(200)),
    ],
    ids=["a thousand", "a long value", "a long name", "long ones"],
)
async def test_s15_a_head_is_bounded_in_bytes_and_in_fields(
    served: Served, transport: FakeTransport, head: bytes
) -> None:
    assert await answers(served, POST + head + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)) == [b"400"]
    assert not transport.jobs


async def test_s15_a_long_address_is_bounded_too(served: Served) -> None:
    assert await answers(served, b"GET /" + b"v" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n") == [b"400"]


async def test_s15_what_is_refused_is_counted_and_writes_no_line(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    counter = metrics.REFUSALS["invalid_request", "ingress"]
    before, _ = counter._value.get(), capfd.readouterr()
    for _ in range(3):
        assert await answers(served, b"rubbish\r\n\r\n") == [b"400"]
    assert counter._value.get() - before == 3
    assert "".join(capfd.readouterr()) == ""


# S17: what was promised and not sent


async def test_s17_who_expects_to_be_asked_for_a_refused_body_is_not(transport: FakeTransport) -> None:
    limits = make_settings(ingress=IngressSettings(max_body_bytes=1000))
    async with serving(transport, limits) as served:
        head = POST + b"expect: 100-continue\r\ncontent-length: 2000000\r\n\r\n"
        assert await answers(served, head) == [b"413"]
        unread = POST + b"content-length: 2000000\r\n\r\n" + SMUGGLED
        assert await answers(served, unread, SMUGGLED) == [b"413"], "nothing behind it is taken for a request"
    assert not transport.jobs


async def test_s17_a_flood_of_expectations_holds_nothing(served: Served, transport: FakeTransport) -> None:
    async with anyio.create_task_group() as tasks:

        async def expect() -> None:
            async with await served.connect() as client:
                await client.send(POST + b"expect: 100-continue\r\ncontent-length: 1000\r\n\r\n")
                assert (await client.receive()).startswith(b"HTTP/1.1 100")

        for _ in range(50):
            tasks.start_soon(expect)
    await wait_until(lambda: served.edge.permits.requests == served.edge.permits.held == 0)
    assert not transport.jobs


async def test_an_upgrade_without_a_body_is_ignored_and_ends_the_connection(served: Served) -> None:
    asked = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert await answers(served, asked, SMUGGLED) == [b"200"]


async def test_an_upgrade_with_a_body_is_told_what_to_do(served: Served) -> None:
    async with await served.connect() as client:
        await client.send(AMBIGUOUS["an upgrade with a body"])
        body = (await read_all(client)).partition(b"\r\n\r\n")[2]
    assert "must be told to use HTTP/1.1" in json.loads(body)["error"]["hint"]


async def test_what_is_refused_before_it_is_a_request_has_the_shape_of_all_errors(served: Served) -> None:
    async with await served.connect() as client:
        await client.send(b"rubbish\r\n\r\n")
        head, _, body = (await read_all(client)).partition(b"\r\n\r\n")
    error: Any = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code", "hint", "stage", "request_id"}
    assert f"x-request-id: {error['request_id']}".encode() in head
