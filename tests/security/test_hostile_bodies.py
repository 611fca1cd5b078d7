"""S19-S26: bodies meant to stop us, or to be read differently by the edge and by the provider."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakes.configs import deployment
from fakes.configs import settings as make_settings
from fakes.deliveries import FakeDelivery
from fakes.edges import CHAT, KEYS, MASTER, calling
from fakes.transport import FakeTransport
from fakes.upstream import ScriptedUpstream

from pipeline import views
from pipeline.catalog import Catalog
from pipeline.settings import IngressSettings, Settings
from pipeline.stage import Done, StageContext
from workers.stages import dispatch

pytestmark = pytest.mark.anyio

BODY = json.dumps(CHAT).encode()
BOUNDED = make_settings(keys=KEYS, ingress=IngressSettings(max_body_bytes=2**20))
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


async def post(transport: FakeTransport, body: bytes, settings: Settings = BOUNDED, **headers: str) -> Any:
    """Return the response to a chat request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with calling(transport, settings, MASTER) as client:
        return await client.post("/v1/chat/completions", content=body, headers=named)


async def refused(transport: FakeTransport, body: bytes, settings: Settings = BOUNDED, **headers: str) -> Any:
    """Return status and error of a request that reaches nobody."""
    response = await post(transport, body, settings, **headers)
    assert transport.jobs == []
    return response.status_code, response.json()["error"]


# S19, S20: what kind of body is it?


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP", "x"])
async def test_s19_a_compressed_body_is_a_415_and_never_unpacked(transport: FakeTransport, coding: str) -> None:
    bomb = gzip.compress(b" " * 2**26, 1)
    began = time.process_time()
    status, error = await refused(transport, bomb, content_encoding=coding)
    assert (status, error["code"]) == (415, "unsupported_encoding")
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""],
)
async def test_s20_a_body_is_json_in_utf_8_whatever_it_is_called(transport: FakeTransport, content_type: str) -> None:
    response = await post(transport, BODY, content_type=content_type)
    assert response.status_code == 200
    assert transport.bodies == [BODY]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
async def test_s20_other_encodings_are_a_400_also_when_they_are_named(transport: FakeTransport, encoding: str) -> None:
    body = BODY.decode().encode(encoding)
    status, error = await refused(transport, body, content_type=f"application/json; charset={encoding}")
    assert (status, error["code"]) == (400, "invalid_request")


async def test_s20_a_form_is_a_400(transport: FakeTransport) -> None:
    form = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\ngpt-4\r\n--b--\r\n'
    assert (await refused(transport, form, content_type="multipart/form-data; boundary=b"))[0] == 400
    assert (await refused(transport, b"model=gpt-4", content_type="application/x-www-form-urlencoded"))[0] == 400


# S21-S23: how much of it?


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("field", [b"messages", b"unknown", b"prompt_variables"])
async def test_s21_a_depth_of_two_hundred_thousand_is_a_400_at_once(
    transport: FakeTransport, opening: bytes, field: bytes
) -> None:
    status, error, took = 0, {}, 1.0
    for _ in range(3):
        began = time.process_time()
        status, error = await refused(
            transport, b'{"model":"gpt-4","%s":%s' % (field, opening * 200_000), make_settings(keys=KEYS)
        )
        took = min(took, time.process_time() - began)
    assert (status, error["code"]) == (400, "invalid_request")
    assert took < 0.1


async def test_s22_a_body_that_says_it_is_too_large_is_not_read(transport: FakeTransport) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("somebody asked for the body")
        yield b""

    async with calling(transport, BOUNDED, MASTER) as client:
        response = await client.post(
            "/v1/chat/completions", content=endless(), headers={"content-length": str(100 * 2**20)}
        )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert transport.jobs == []


async def test_s22_s25_fifty_megabytes_of_base64_are_a_413(transport: FakeTransport) -> None:
    image = b'{"model":"gpt-4","messages":[{"role":"user","content":"data:image/png;base64,%s"}]}' % (b"A" * 50 * 2**20)
    status, error = await refused(transport, image, make_settings(keys=KEYS))
    assert (status, error["code"]) == (413, "request_too_large")


def many_fields(count: int, start: bytes = b"") -> bytes:
    return b'{"model":"gpt-4",%s,%s%s}' % (MESSAGES, start, b",".join(b'"%d":1' % n for n in range(count)))


async def test_s23_a_million_fields_are_a_400_before_anybody_takes_them_apart(transport: FakeTransport) -> None:
    body = many_fields(1_000_000)
    began = time.process_time()
    status, error = await refused(transport, body, make_settings(keys=KEYS))
    assert (status, error["code"]) == (400, "invalid_request")
    assert str(views.MAX_FIELDS) in error["message"]
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-4",%s}' % b",".join([MESSAGES] * 11_000),
        b'{"model":"gpt-4",%s,"metadata":{%s}}' % (MESSAGES, b",".join(b'"%07d":1' % n for n in range(11_000))),
        b'{"model":"gpt-4",%s,"prompt":{"id":"p",%s}}' % (MESSAGES, b",".join(b'"%07d":1' % n for n in range(11_000))),
        many_fields(11_000, b'"tools":[],').replace(b'":1', b'" \n : \t1'),
    ],
    ids=["the same one", "in metadata", "in a prompt object", "with blanks"],
)
async def test_s23_however_they_are_written(transport: FakeTransport, body: bytes) -> None:
    status, error = await refused(transport, body)
    assert (status, error["code"]) == (400, "invalid_request"), error


@pytest.mark.parametrize(
    "field",
    [
        {"note": "from 12:30 to 13:45, see https://host: `x: int`. " * 3000},
        {"prediction": {"type": "content", "content": '{"a": 1}' * 11_000}},
        {"logit_bias": {str(token): -100 for token in range(11_000)}},
        {"documents": [{"title": "t", "text": "some"} for _ in range(6000)]},
    ],
    ids=["colons of a text", "a prediction", "biases", "documents"],
)
def test_s23_what_clients_send_is_not_taken_for_too_many_fields(field: dict[str, object]) -> None:
    body = json.dumps({"model": "gpt-4", "messages": [], **field}).encode()
    assert body.count(b":") > views.MAX_FIELDS
    assert views.decode_view(body).model == "gpt-4"


@pytest.mark.parametrize("field", [*views.Encoded.__struct_fields__, "prompt"])
async def test_s23_what_stays_encoded_may_be_as_rich_as_it_likes(transport: FakeTransport, field: str) -> None:
    rich: Any = {str(n): n for n in range(20_000)}
    if field == "messages":
        rich = [{"role": "user", "content": "12:30:59 " * 20_000}]
    elif field == "prompt":
        rich = {"id": "p", "variables": rich}
    assert (await post(transport, json.dumps({**CHAT, field: rich}).encode())).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        b"1e999",
        b"-1e999",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"9" * 4000,
        b"0" * 4000,
        b'"\\ud800"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\x00"',
        b'"\n"',
        b"'x'",
        b"0x10",
        b"1_0",
        b"truth",
        b"+1",
        b"",
    ],
    ids=lambda value: repr(value[:12]),
)
@pytest.mark.parametrize("field", [b"model", b"n", b"timeout", b"unknown", b"messages"])
async def test_s23_values_that_decoders_disagree_about_are_a_400_or_pass_encoded(
    transport: FakeTransport, field: bytes, value: bytes
) -> None:
    body = b'{"model":"gpt-4",%s,"%s":%s}' % (MESSAGES, field, value)
    response = await post(transport, body)
    if response.status_code == 200:
        assert field == b"unknown", "only what nobody here reads"
        assert transport.bodies == [body]
    else:
        assert (response.status_code, transport.jobs) == (400, [])
        assert response.json()["error"]["code"] == "invalid_request"


async def test_s23_a_key_of_a_megabyte_and_a_zero_in_a_text_are_nothing_special(transport: FakeTransport) -> None:
    body = b'{"model":"gpt-4",%s,"%s":1,"x":"\\u0000"}' % (MESSAGES, b"k" * 900_000)
    assert (await post(transport, body)).status_code == 200


async def test_s25_keys_that_collide_and_many_messages_take_no_longer_than_others(transport: FakeTransport) -> None:
    messages = b",".join(b'{"role":"user","content":"%d"}' % n for n in range(100_000))
    body = b'{"model":"gpt-4","messages":[%s]}' % messages
    began = time.process_time()
    assert (await post(transport, body, make_settings(keys=KEYS))).status_code == 200
    assert time.process_time() - began < 1
    assert transport.bodies == [body]


# S24: whose word counts?


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as running:
        yield running


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"forbidden","model":"gpt-4",%s}',
        b'{"mod\\u0065l":"forbidden","model":"gpt-4",%s}',
        b'{"model":"forbidden",%s,"mod\\u0065l":"gpt-4"}',
        b'{"model":"gpt-4",%s,"MODEL":"forbidden","model ":"forbidden"}',
    ],
)
async def test_s24_the_provider_is_asked_for_the_model_that_the_key_was_checked_for(
    transport: FakeTransport, upstream: ScriptedUpstream, body: bytes
) -> None:
    both = (deployment("gpt-4", api_base=upstream.url), deployment("forbidden", "openai/dear", api_base=upstream.url))
    settings = make_settings(*both, keys=KEYS)
    async with calling(transport, settings, KEYS[1].values[0].source) as client:
        assert (await client.post("/v1/chat/completions", content=body % MESSAGES)).status_code == 200
    given = FakeDelivery(transport.job, transport.bodies[0])
    async with dispatch.stage.open(StageContext(settings, Catalog(settings), "dispatch-1", lambda _: None)) as stage:
        assert isinstance(await stage.handle(given), Done)
    (received,) = upstream.requests
    assert received.json["model"] == "gpt-4"
    assert received.body.count(b'"model"') == 1
    assert b"\\u0065" not in received.body


@pytest.mark.parametrize("body", [b'{"stream":true,"stream":false,', b'{"stream":false,"str\\u0065am":true,'])
async def test_s24_nor_can_the_edge_and_the_provider_differ_about_streaming(
    transport: FakeTransport, upstream: ScriptedUpstream, body: bytes
) -> None:
    settings = make_settings(deployment("gpt-4", api_base=upstream.url))
    async with calling(transport, settings) as client:
        await client.post("/v1/chat/completions", content=body + b'"model":"gpt-4",%s}' % MESSAGES)
    given = FakeDelivery(transport.job, transport.bodies[0])
    async with dispatch.stage.open(StageContext(settings, Catalog(settings), "dispatch-1", lambda _: None)) as stage:
        await stage.handle(given)
    (received,) = upstream.requests
    assert received.json["stream"] is transport.job.stream
    assert received.body.count(b'"stream"') == 1


# S26: is it what it should be?

WRONG: list[tuple[str, Any]] = [
    *[("n", value) for value in ("1", [1], {}, 1.5, True)],
    *[("max_tokens", value) for value in ("many", [], {}, 0.5, False)],
    *[("max_completion_tokens", value) for value in ("1", [])],
    *[("stop", value) for value in (1, {}, [1], [["a"]], True)],
    *[("num_retries", value) for value in (-1, 10**9, "3", 1.5)],
    *[("timeout", value) for value in (0, -1, "soon", [], True)],
    *[("model", value) for value in (1, None, [], {"a": 1}, "x" * 513)],
    *[("stream", value) for value in ("true", 1, [], {})],
    *[("messages", value) for value in ("hi", {}, 1, True)],
    *[("prompt_id", value) for value in (1, [], "", "x" * 513)],
    *[("prompt_version", value) for value in (1.5, [], 2**64)],
    *[("prompt_variables", value) for value in ("x", [], 1)],
]


@pytest.mark.parametrize(("field", "value"), WRONG)
async def test_s26_a_field_of_the_wrong_type_is_a_400_that_names_it(
    transport: FakeTransport, field: str, value: Any
) -> None:
    status, error = await refused(transport, json.dumps({**CHAT, field: value}).encode())
    assert (status, error["code"], error["param"]) == (400, "invalid_request", field)


@pytest.mark.parametrize("value", ["high", [], {}, None, 10**30, -1])
async def test_s26_a_priority_of_any_type_reaches_no_scheduler(transport: FakeTransport, value: Any) -> None:
    assert (await post(transport, json.dumps({**CHAT, "priority": value}).encode())).status_code == 200
    assert transport.job.lane == "live"
