"""Every parser of what others wrote: any input gives a value or a documented error, whatever it is."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import yaml
from fakes.edges import CHAT, read_all, request_bytes, serving
from fakes.transport import FakeTransport
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from pipeline import configuration, job, procfile, redaction
from pipeline.errors import ConfigurationError, InvalidRequest, PipelineError, PromptManagerError, UpstreamError
from pipeline.settings import IngressSettings, RouterSettings, Settings, TransportSettings
from pipeline.transport import keyspace
from pipeline.transport.clock import ServerClock
from pipeline.transport.connection import Link
from pipeline.transport.stage_stream import UNREADABLE, StageLinks, StageStream
from pipeline.transport.writer import Writer
from pipeline.views import View, decode_prompt, decode_view
from workers.prompts.request import HookRequest, decode_body, hook_request
from workers.prompts.results import HookResult, read_result
from workers.providers._coding import decoded
from workers.providers._dialect import Endpoint
from workers.providers._errors import provider_error, retry_after, said
from workers.providers._exchange import Exchange
from workers.providers._fields import kept_fields
from workers.providers._heads import Address, Origin, Proxy, address, head
from workers.providers._proxies import Proxies, Tunnel
from workers.providers._sse import EventBuffer, events
from workers.providers.openai import provider

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "promptmill-hypothesis")  # what it collects about Unicode

SECRET = "sk-a-secret-of-the-fuzzer"
ENDPOINT = Endpoint(prefix="openai", urls={}, headers={}, secrets=redaction.forms([SECRET]))


def fuzz(count: int) -> Callable[[Any], Any]:
    """Return the settings of a fuzzing test: the same examples each time, each within seconds, nothing kept."""
    return hypothesis_settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=5),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


NAMES = sorted(
    {
        *View.__struct_fields__,
        *("id", "version", "variables", "metadata", "store", "input", "tools", "api_base", "litellm_x"),
    }
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=20), st.just(SECRET)
)


MEANT = st.sampled_from(NAMES) | st.text(max_size=8)


def values(names: st.SearchStrategy[str] = MEANT, scalars: st.SearchStrategy[Any] = SCALARS) -> st.SearchStrategy[Any]:
    """Return nested values as JSON has them, with names that mean something."""
    return st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5))


def damaged(data: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return bytes of `data` with something cut out, put in or repeated."""

    def damage(whole: bytes, start: int, length: int, inserted: bytes) -> bytes:
        start %= len(whole) + 1
        return whole[:start] + inserted + whole[start + length :]

    return st.builds(damage, data, st.integers(0, 2000), st.integers(-3, 8), st.binary(max_size=6))


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    """Yield `data` in pieces of chance lengths."""
    chance = random.Random(seed)
    while data:
        size = chance.randint(1, max(1, min(len(data), 40)))
        yield data[:size]
        data = data[size:]


def assert_told(error: PipelineError) -> None:
    """Whoever is refused learns why."""
    assert error.message


JSON = values().map(lambda value: json.dumps(value).encode())
BODIES = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), values(), max_size=8).map(lambda value: json.dumps(value).encode()),
    damaged(JSON),
    st.binary(max_size=200),
)


def is_utf8(data: bytes) -> bool:
    """Whether the edge would let these bytes in."""
    return data.decode(errors="replace").encode() == data


# What clients send


@fuzz(100)
@given(BODIES)
def test_a_body_is_a_view_or_an_invalid_request(body: bytes) -> None:
    try:
        view = decode_view(body)
        decode_prompt(view)
    except InvalidRequest as error:
        assert_told(error)
        return
    last = json.loads(body)
    assert view.model == last.get("model")
    assert view.stream == last.get("stream")


@fuzz(75)
@given(BODIES.filter(is_utf8), st.sampled_from(["chat.completions", "responses"]), st.booleans())
def test_what_goes_upstream_is_json_without_what_must_stay(body: bytes, operation: str, stream: bool) -> None:
    try:
        fields = kept_fields(operation, body, stream=stream)
    except InvalidRequest:
        return
    assert not fields.keys() & {"api_base", "api_key", "prompt_id", "litellm_x"}
    assert json.loads(msgspec.json.encode(fields)).get("stream", False) is stream


@fuzz(50)
@given(BODIES, values())
def test_a_hook_is_asked_with_values_or_the_request_is_invalid(body: bytes, group: Any) -> None:
    reference = job.PromptRef(id="p")
    asked = job.Job(id="0-1", operation="chat.completions", stages_left=("resolve",), deadline=1, prompt=reference)
    try:
        request = hook_request(asked, reference, decode_body(body), group if isinstance(group, dict) else None)
        request.messages(), request.params(), request.prompt_variables()
    except InvalidRequest:
        pass


HOSTILE = damaged(st.sampled_from([request_bytes(json.dumps(CHAT).encode()), request_bytes(b"{}", "/v1/models")]))


@pytest.mark.anyio
async def test_damaged_requests_are_answered_or_cut_off_and_the_server_goes_on() -> None:
    chance = random.Random(20)
    whole = request_bytes(json.dumps(CHAT).encode(), "/v1/chat/completions", "connection: close")
    limits = Settings(ingress=IngressSettings(head_timeout=0.2, body_timeout=0.2, keep_alive=0.2))
    settings = msgspec.structs.replace(limits, router=RouterSettings())
    async with serving(FakeTransport(), settings) as served:

        async def send(data: bytes) -> None:
            async with await served.connect() as client:
                await client.send(data)
                with anyio.fail_after(10):
                    said = await read_all(client)
            assert not said or re.match(rb"HTTP/1\.1 [245]\d\d ", said), said[:80]
            assert b" 500 " not in said[:20]

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                data = bytearray(whole)
                for _ in range(chance.randint(1, 4)):
                    at = chance.randrange(len(data))
                    data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
                tasks.start_soon(send, bytes(data))


# What operators write

SECTIONS = ["model_list", "litellm_settings", "router_settings", "general_settings", "promptmill_settings", "include"]
KEYS = [
    *SECTIONS,
    *("environment_variables", "model_name", "litellm_params", "model_info", "model", "api_base", "api_key", "weight"),
    *("callbacks", "num_retries", "timeout", "model_group_alias", "master_key", "keys", "redis_url", "data_dir"),
    *("extra_headers", "prompt_id", "lease", "accept_ignored", "prompt_env", "key", "models", "maxmemory", "<<"),
    *IngressSettings.__struct_fields__,
    *TransportSettings.__struct_fields__,
]
CONFIGURED = st.dictionaries(st.sampled_from(SECTIONS), values(st.sampled_from(KEYS)), max_size=5)
MODELS = st.lists(st.fixed_dictionaries({"model_name": SCALARS, "litellm_params": values(st.sampled_from(KEYS))}))


def to_yaml(value: Any) -> bytes:
    return bytes(yaml.safe_dump(value, allow_unicode=True, encoding="utf-8"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzing") / "config.yaml"


@pytest.mark.parametrize(
    "written",
    [
        CONFIGURED.map(to_yaml),
        MODELS.map(lambda models: to_yaml({"model_list": models})),
        damaged(CONFIGURED.map(to_yaml)),
        st.text(st.sampled_from("&*!|>-?:,[]{}#'\"%@`\n\t a1<~"), max_size=60).map(str.encode),
        st.binary(max_size=100),
    ],
    ids=["sections", "models", "damaged", "signs", "bytes"],
)
def test_a_configuration_is_settings_or_an_error_for_its_operator(file: Path, written: Any) -> None:
    @fuzz(25)
    @given(written)
    def load(content: bytes) -> None:
        file.write_bytes(content)
        try:
            assert isinstance(configuration.load(file, {}), Settings)
        except ConfigurationError as error:
            assert_told(error)

    load()


@fuzz(50)
@given(st.text(st.sampled_from("web: promptmill worker resolve $PORT\n#\"'\\|&;\t\0é"), max_size=80))
def test_a_procfile_is_commands_or_an_error(text: str) -> None:
    try:
        found = procfile.parse(text, "Procfile")
    except ConfigurationError:
        return
    for name in found.commands:
        assert found.words(name, {"PORT": "1"})
        found.part(name), found.stages(name)


URLS = st.text(st.sampled_from("htps:/@[]%.?#&=é1a\\ \r\n\0x-_~"), max_size=40).map(lambda text: f"http://{text}")


@fuzz(75)
@given(URLS | st.text(max_size=30))
def test_an_address_is_one_or_a_value_error(url: str) -> None:
    try:
        where = address(url)
    except ValueError:
        return
    assert isinstance(where, Address)
    written = head("POST", where, {"Authorization": "Bearer x"})
    assert written.count(b"\r\n") == written.count(b"\n") == written.count(b"\r"), "one line a header"
    assert re.match(rb"POST \S+ HTTP/1\.1\r\n", written)


@fuzz(50)
@given(st.dictionaries(st.sampled_from(["http", "https", "all", "no"]), URLS | st.text(max_size=20)))
def test_a_proxy_is_one_none_or_a_value_error(named: dict[str, str]) -> None:
    try:
        found = Proxies(named).to(Origin(True, "api.example.com", 443))
    except ValueError:
        return
    assert found is None or isinstance(found, Proxy)


# What providers answer

ANSWERS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nx: y\r\n\r\n",
        b"HTTP/1.0 500 No\r\ncontent-type: text/plain\r\n\r\nsome",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Many\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 204 None\r\ncontent-length: 18446744073709551617\r\n\r\n",
    ]
)


async def exchanged(
    data: Iterable[bytes], limit: int | None, *, clean: bool = True
) -> tuple[int, bytes | None, type[UpstreamError] | None]:
    """Return the status, and the body or the error, of an answer that arrives like this."""
    exchange = Exchange(limit)
    for piece in data:
        if not exchange.feed(piece):
            break
    exchange.end(clean=clean)
    until = asyncio.get_running_loop().time() + 1
    try:
        return exchange.status, await exchange.whole(until), None
    except UpstreamError as error:
        return exchange.status, None, type(error)


@fuzz(125)
@given(damaged(damaged(ANSWERS)) | st.binary(max_size=200), st.integers(), st.booleans(), st.sampled_from([None, 1000]))
def test_an_answer_is_complete_or_a_failure_however_it_is_cut(
    data: bytes, seed: int, clean: bool, limit: int | None
) -> None:
    status, body, failure = asyncio.run(exchanged(pieces(data, seed), limit, clean=clean))
    assert (body is None) is (failure is not None)
    assert body is None or (status >= 200 and len(body) <= len(data))


@fuzz(75)
@given(damaged(ANSWERS), st.integers())
def test_how_an_answer_is_cut_into_pieces_does_not_matter(data: bytes, seed: int) -> None:
    cuts = ([data], pieces(data, seed), (bytes([byte]) for byte in data))
    assert len({asyncio.run(exchanged(cut, 1000)) for cut in cuts}) == 1


@fuzz(75)
@given(
    st.sampled_from([b"", b"gzip", b"deflate", b" GZIP ", b"br", b"\xff"]),
    st.binary(max_size=100) | damaged(st.binary(max_size=2000).map(lambda data: __import__("gzip").compress(data))),
    st.booleans(),
)
def test_a_coded_body_is_plain_and_bounded_or_garbled(coding: bytes, body: bytes, error: bool) -> None:
    try:
        plain = decoded({b"content-encoding": coding}, body, 1000, error=error)
    except UpstreamError:
        return
    assert len(plain) <= max(1000, len(body)) + 256 * 1024


LINES = st.sampled_from(
    [b"data: {}", b"data:x", b"data", b": ping", b"event: x", b"id: 1", b"", b"\r", b"data: [DONE]"]
)
STREAMS = st.lists(LINES | st.binary(max_size=20), max_size=12).flatmap(
    lambda lines: st.sampled_from([b"\n", b"\r\n", b"\r"]).map(lambda end: end.join(lines))
)


@fuzz(100)
@given(STREAMS, st.integers())
def test_no_byte_of_a_stream_is_lost_and_events_do_not_depend_on_the_cuts(data: bytes, seed: int) -> None:
    buffer = EventBuffer()
    blocks = [buffer.add(piece) for piece in pieces(data, seed)]
    assert b"".join(blocks) + buffer.rest() == data
    for block in blocks:
        for start, content in events(block):
            assert 0 <= start < len(block)
            assert len(content) <= len(block)


CHUNKS = st.one_of(
    JSON,
    damaged(st.just(b'{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],"usage":null}')),
    damaged(st.just(b'{"type":"response.completed","response":{"object":"response","usage":{"input_tokens":1}}}')),
    damaged(st.just(b'{"error":{"message":"no","code":500}}')),
)


@fuzz(75)
@given(st.lists(CHUNKS, max_size=6), st.integers(), st.sampled_from(["chat.completions", "responses"]), st.booleans())
@example([b'{"error":{"message":"\x80"}}'], 0, "chat.completions", False)
@example([b'{"type":"\x80"}'], 0, "responses", False)
def test_a_stream_is_passed_on_reported_or_garbled(chunks: list[bytes], seed: int, operation: str, done: bool) -> None:
    data = b"".join(b"data: " + chunk.replace(b"\n", b" ") + b"\n\n" for chunk in chunks)
    reader = provider.stream(operation, ENDPOINT)
    try:
        for piece in pieces(data + b"data: [DONE]\n\n" * done, seed):
            reader.feed(piece)
            if reader.failure is not None or reader.finished:
                break
        else:
            reader.close()
    except UpstreamError:
        pass
    assert reader.failure is None or isinstance(reader.failure, UpstreamError)
    assert all(0 <= count < 2**53 for count in reader.usage)


@fuzz(75)
@given(CHUNKS | st.binary(max_size=100), st.sampled_from(["chat.completions", "responses"]))
@example(b'{"error":{"message":"\x80"}}', "chat.completions")
@example(b'{"object":1,"x":' + b"[" * 5000, "responses")
def test_a_whole_answer_is_passed_on_or_garbled(body: bytes, operation: str) -> None:
    try:
        answer = provider.response(operation, body, ENDPOINT)
    except UpstreamError:
        return
    assert all(0 <= count < 2**53 for count in answer.usage)


QUOTES = st.sampled_from([SECRET, base64.b64encode(SECRET.encode()).decode(), "sk-a-*****zzer", f"Bearer {SECRET}"])
WORDS = st.builds(
    lambda before, quote, after: before + quote + after, st.text(max_size=10), QUOTES, st.text(max_size=10)
)


@fuzz(75)
@given(
    st.dictionaries(st.sampled_from(["error", "message", "detail", "type", "code", "param"]), values() | WORDS)
    .flatmap(lambda said: st.sampled_from([said, {"error": said}]))
    .map(lambda said: json.dumps(said).encode())
    | st.binary(max_size=50),
    st.integers(201, 999),
)
@example(b'{"error":{"message":"\x80"}}', 400)
@example(b'{"error":{"code":' + b"9" * 5000 + b"}}", 400)
def test_a_refusal_is_an_error_without_the_key(body: bytes, status: int) -> None:
    error = provider_error(status, {}, said(body), ENDPOINT)
    assert isinstance(error, UpstreamError)
    told = msgspec.json.encode(error.fields("dispatch")).decode() + str(error)
    for form in (*ENDPOINT.secrets, "zzer"):
        assert form not in told


@fuzz(50)
@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text(max_size=30)))
def test_a_time_to_wait_is_a_number_or_none(headers: dict[str, str]) -> None:
    wait = retry_after(headers)
    assert wait is None or 0 <= wait < float("inf")


@pytest.mark.anyio
async def test_a_proxys_answer_opens_the_way_or_refuses_it() -> None:
    chance = random.Random(3)
    for _ in range(300):
        tunnel = Tunnel(Origin(True, "h", 443), Proxy("p", 1))
        data = bytearray(b"HTTP/1.1 200 Established\r\nx: y\r\n\r\n")
        at = chance.randrange(len(data))
        data[at : at + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
        for piece in pieces(bytes(data), chance.randint(0, 99)):
            tunnel.data_received(piece)
        tunnel.eof_received()
        with_error = tunnel.opened.exception()
        assert with_error is None or isinstance(with_error, UpstreamError)
        await asyncio.sleep(0)


# What prompt managers return

OBJECTS = st.recursive(
    SCALARS | st.binary(max_size=4) | st.just(object()) | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.sampled_from(NAMES), inner, max_size=3)
    ),
)


@fuzz(75)
@given(OBJECTS | st.tuples(st.text(max_size=5) | OBJECTS, st.lists(OBJECTS, max_size=3) | OBJECTS, OBJECTS))
def test_what_a_hook_returns_is_a_result_or_its_managers_error(returned: object) -> None:
    request = HookRequest(body={"messages": msgspec.Raw(b"[]")}, prompt=job.PromptRef(id="p"), model="gpt-4")
    try:
        result = read_result(request, returned)
    except PromptManagerError as error:
        assert_told(error)
        return
    assert isinstance(result, HookResult)


# What stands in Redis


def stage_stream() -> StageStream:
    link = Link("unix:///nowhere", "fuzzing")
    clock = ServerClock()
    links = StageLinks(link, link, "fuzzing", TransportSettings())
    return StageStream("dispatch", 5, 16, writer=Writer(link, "fuzzing", clock), clock=clock, links=links)


PACKED = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary()
MSGPACK = values(st.sampled_from(job.Job.__struct_fields__) | st.text(max_size=5), PACKED).map(job.encode)
JOBS = st.just(
    job.encode(job.Job(id="0-1", operation="responses", stages_left=("dispatch",), deadline=1, headers={"a": "b"}))
)
HEADERS = MSGPACK | damaged(MSGPACK) | damaged(JOBS) | st.binary(max_size=60)


@fuzz(100)
@given(HEADERS)
def test_a_jobs_header_decodes_or_raises_what_its_reader_expects(header: bytes) -> None:
    try:
        assert isinstance(job.decode_job(header), job.Job)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        pass


@fuzz(100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"h", b"b", b"s", b"r"]) | st.binary(max_size=3),
            HEADERS | st.binary(max_size=20) | st.just(keyspace.BODIES.encode() + b"x"),
        ),
        max_size=5,
    ),
    st.booleans(),
)
def test_an_entry_is_a_delivery_or_an_unreadable_one(pairs: list[tuple[bytes, bytes]], odd: bool) -> None:
    fields = [part for pair in pairs for part in pair] + [b"h"] * odd
    held = stage_stream()._hold("live", "1-1", fields, 1)
    assert held.job is UNREADABLE or held.job.stages_left[0] == "dispatch"


@fuzz(50)
@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=12), max_size=3))
def test_a_secret_is_not_in_a_redacted_text_in_any_form(text: str, secrets: list[str]) -> None:
    found = redaction.forms(secrets)
    cleaned = redaction.redact(text + secrets[0] + text if secrets else text, found)
    without = cleaned.replace(redaction.REDACTED, "\n")
    long = [form for form in found if len(form) >= redaction.LEAST]
    assert not [form for form in long if form in without and form in text + "".join(secrets)] or [
        form for form in long if form in redaction.REDACTED
    ]
