"""Replies become responses: whole, as streams, as errors before and after the first byte."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from fakes.edges import CHAT, calling, request_bytes, serving
from fakes.transport import FakeTransport, answer, frame
from fakes.waiting import wait_until

from ingress import relay
from pipeline.errors import Cancelled, DeadlineExceeded, WorkerLost
from pipeline.job import ErrorFields, Facts

pytestmark = pytest.mark.anyio
STREAM = CHAT | {"stream": True}
ERROR = ErrorFields(
    status=429, type="rate_limit_error", code="upstream_rate_limited", message="slow down", param="n", hint="wait",
    stage="dispatch", retry_after=1.2, should_retry=False,
)  # fmt: skip


async def ask(*items: Any, body: Any = CHAT, path: str = "/v1/chat/completions") -> Any:
    async with calling(FakeTransport(lambda *_: items)) as client:
        return await client.post(path, json=body)


async def test_an_answer_goes_out_as_it_is_with_its_facts_in_headers() -> None:
    response = await ask(answer(b'{"a": 1}', status=201))
    assert (response.status_code, response.content) == (201, b'{"a": 1}')
    headers = response.headers
    assert headers["content-type"] == "application/json"
    assert headers["x-promptmill-model"] == "gpt-4"
    assert headers["x-promptmill-deployment"] == "east"
    assert headers["x-promptmill-attempts"] == "2"
    assert (headers["x-promptmill-queue-ms"], headers["x-promptmill-provider-ms"]) == ("1.2", "30.0")
    assert "x-promptmill-prompt" not in headers


async def test_the_prompts_facts_are_told_too() -> None:
    response = await ask(answer(facts=Facts(prompt_id="1234", prompt="changed", prompt_ms=3.0)))
    headers = response.headers
    assert (headers["x-promptmill-prompt-id"], headers["x-promptmill-prompt"]) == ("1234", "changed")
    assert headers["x-promptmill-prompt-ms"] == "3.0"
    assert headers["x-promptmill-model"] == "gpt-4", "the client's name, when no stage knew a better one"


async def test_no_fact_can_break_out_of_its_header() -> None:
    facts = Facts(model="m\r\nset-cookie: a=b", deployment="zoë €\x00", prompt_id="a\tb")
    response = await ask(answer(facts=facts, content_type="text/plain\r\nx-evil: 1"))
    assert "set-cookie" not in response.headers
    assert "x-evil" not in response.headers
    assert response.headers["x-promptmill-model"] == "m??set-cookie: a=b"
    assert response.headers["x-promptmill-deployment"] == "zoë ??"
    assert response.headers["x-promptmill-prompt-id"] == "a?b"


async def test_an_error_has_openais_shape_and_the_remedy_beside_it() -> None:
    response = await ask(answer(b"", error=ERROR))
    assert response.status_code == 429
    assert response.json() == {
        "error": {
            "message": "slow down",
            "type": "rate_limit_error",
            "param": "n",
            "code": "upstream_rate_limited",
            "hint": "wait",
            "stage": "dispatch",
            "request_id": response.headers["x-request-id"],
        }
    }
    assert response.headers["retry-after"] == "2"
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-promptmill-attempts"] == "2"


async def test_a_client_may_be_told_to_retry() -> None:
    fields = ErrorFields(status=503, type="t", code="c", message="m", should_retry=True)
    assert (await ask(answer(b"", error=fields))).headers["x-should-retry"] == "true"


@pytest.mark.parametrize("status", [0, 100, 700, -1])
async def test_a_status_that_http_does_not_know_is_a_502(status: int) -> None:
    assert (await ask(answer(b"{}", status=status))).status_code == 502


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), WorkerLost("lost"), Cancelled("left")])
async def test_what_ends_the_wait_is_an_error_with_its_own_status(error: Any) -> None:
    response = await ask(error)
    assert (response.status_code, response.json()["error"]["code"]) == (error.status, error.code)
    assert response.headers["x-promptmill-model"] == "gpt-4"


async def test_a_streams_error_before_its_first_frame_keeps_its_status() -> None:
    response = await ask(answer(b"", error=ERROR), body=STREAM)
    assert (response.status_code, response.headers["content-type"]) == (429, "application/json")


async def test_frames_go_out_as_they_come_and_the_answers_bytes_last() -> None:
    response = await ask(
        frame(b"data: 1\n\n"), frame(b"data: 2\n\n", 1), answer(b"data: [DONE]\n\n", frames=2), body=STREAM
    )
    assert response.status_code == 200
    assert response.content == b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-promptmill-deployment"] == "east"


async def test_a_frame_without_facts_or_type_still_starts_an_event_stream() -> None:
    response = await ask(frame(b"data: 1\n\n", facts=None, content_type=""), answer(b"", frames=1), body=STREAM)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-promptmill-model"] == "gpt-4"


async def test_a_stream_that_was_not_asked_for_is_passed_on_as_well() -> None:
    response = await ask(frame(b"data: 1\n\n"), answer(b"", frames=1))
    assert response.content == b"data: 1\n\n"


async def test_an_error_after_the_first_frame_is_an_event_and_never_done() -> None:
    response = await ask(frame(b"data: 1\n\n"), answer(b"", error=ERROR, frames=1), body=STREAM)
    assert response.status_code == 200
    first, last, rest = response.text.split("\n\n")
    assert (first, rest) == ("data: 1", "")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["code"], error["request_id"]) == ("upstream_rate_limited", response.headers["x-request-id"])
    assert "[DONE]" not in response.text


async def test_an_error_does_not_melt_into_half_an_event() -> None:
    response = await ask(frame(b'data: {"a'), answer(b"", error=ERROR, frames=1), body=STREAM)
    assert response.text.startswith('data: {"a\n\ndata: {"error":')


@pytest.mark.parametrize("end", [WorkerLost("lost"), DeadlineExceeded("late"), answer(b"", error=ERROR)])
async def test_no_error_follows_the_end_of_a_whole_stream(end: Any) -> None:
    response = await ask(frame(b"data: 1\n\n"), frame(b"data: [DONE]\n\n", seq=1), end, body=STREAM)
    assert response.text == "data: 1\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("error", [WorkerLost("lost"), DeadlineExceeded("late"), Cancelled("too slow")])
async def test_what_breaks_a_stream_off_is_an_event_too(error: Any) -> None:
    response = await ask(frame(b"data: 1\n\n"), error, body=STREAM)
    assert json.loads(response.text.split("data: ")[-1])["error"]["code"] == error.code


async def test_the_responses_api_gets_its_own_error_event() -> None:
    items = (frame(b"event: x\ndata: 1\n\n"), answer(b"", error=ERROR, frames=1))
    response = await ask(*items, body={"model": "gpt-4", "input": "hi", "stream": True}, path="/v1/responses")
    event, data = response.text.split("\n\n")[1].split("\n")
    assert event == "event: error"
    fields = json.loads(data.removeprefix("data: "))
    assert (fields["type"], fields["message"], fields["error"]["code"]) == (
        "error", "slow down", "upstream_rate_limited",
    )  # fmt: skip


async def test_an_answer_in_one_piece_to_a_stream_stays_one() -> None:
    response = await ask(answer(b'{"a":1}'), body=STREAM)
    assert (response.headers["content-type"], response.content) == ("application/json", b'{"a":1}')


class TestSilence:
    """A stream whose first frame takes long: with the two intervals cut short."""

    @pytest.fixture(autouse=True)
    def hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay, "QUIET", 0.02)
        monkeypatch.setattr(relay, "PING_EVERY", 0.02)

    async def ask_late(self, *items: Any) -> Any:
        transport = FakeTransport(lambda *_: [])
        found = []
        async with calling(transport) as client, anyio.create_task_group() as tasks:

            async def post() -> None:
                found.append(await client.post("/v1/chat/completions", json=STREAM))

            tasks.start_soon(post)
            await wait_until(lambda: transport.waiters)
            await anyio.sleep(0.07)  # the silence itself is what is tested
            transport.waiters[0].put(*items)
        return found[0]

    async def test_pings_keep_the_connection_until_the_first_frame(self) -> None:
        response = await self.ask_late(frame(b"data: 1\n\n"), answer(b"", frames=1))
        assert response.text.startswith(": ping\n\n: ping\n\n")
        assert response.text.endswith("data: 1\n\n")
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"

    async def test_an_error_after_pings_is_an_event(self) -> None:
        response = await self.ask_late(answer(b"", error=ERROR))
        assert response.status_code == 200
        assert json.loads(response.text.split("data: ")[-1])["error"]["code"] == "upstream_rate_limited"

    async def test_a_lost_worker_after_pings_is_an_event(self) -> None:
        response = await self.ask_late(WorkerLost("lost"))
        assert json.loads(response.text.split("data: ")[-1])["error"]["code"] == "worker_lost"

    async def test_an_answer_in_one_piece_after_pings_becomes_an_event(self) -> None:
        response = await self.ask_late(answer(b'{\n"a":1}'))
        assert response.text.endswith(': ping\n\ndata: {\ndata: "a":1}\n\n')


class TestPushing:
    """Over a real socket: frames that come while their client keeps up need no task to pass them on."""

    async def test_frames_are_pushed_behind_the_first_and_the_end_comes_last(self) -> None:
        transport = FakeTransport(lambda *_: [frame(b"data: 0\n\n")])
        async with serving(transport) as served, await served.connect() as client:
            await client.send(request_bytes(json.dumps(STREAM).encode()))
            data = await _until(client, b"data: 0\n\n\r\n")
            (waiter,) = transport.waiters
            waiter.put(frame(b"data: 1\n\n", 1), frame(b"", 2), frame(b"data: ", 3))
            assert waiter.pushed == 3
            data += await _until(client, b"data: \r\n")
            waiter.put(answer(b"", error=ERROR, frames=4))
            data += await _until(client, b"0\r\n\r\n")
        body = data.partition(b"\r\n\r\n")[2]
        assert body.startswith(b"9\r\ndata: 0\n\n\r\n9\r\ndata: 1\n\n\r\n6\r\ndata: \r\n")
        assert b'\r\n\n\ndata: {"error"' in body, "half an event was pushed last"

    async def test_a_client_that_does_not_read_is_waited_for_and_misses_nothing(self) -> None:
        events = [b"data: %06d %s\n\n" % (n, b"x" * 20_000) for n in range(1000)]
        transport = FakeTransport(lambda *_: [frame(events[0])])
        async with serving(transport) as served, await served.connect() as client:
            await client.send(request_bytes(json.dumps(STREAM).encode()))
            await wait_until(lambda: transport.waiters and transport.waiters[0]._push)
            (waiter,) = transport.waiters
            for n, event in enumerate(events[1:], 1):
                waiter.put(frame(event, n))
                await anyio.lowlevel.checkpoint()
            waiter.put(answer(b"", frames=len(events)))
            assert 0 < waiter.pushed < len(events) - 1
            data = await _until(client, b"0\r\n\r\n")
        chunk = b"%x\r\n" % len(events[0])
        assert data.partition(b"\r\n\r\n")[2] == b"".join(chunk + event + b"\r\n" for event in events) + b"0\r\n\r\n"


async def _until(client: anyio.abc.SocketStream, end: bytes) -> bytes:
    data = bytearray()
    with anyio.fail_after(5):
        while not data.endswith(end):
            data += await client.receive()
    return bytes(data)


class TestDisconnects:
    """Over a real socket: the job of a client that leaves is cancelled."""

    @pytest.mark.parametrize("stream", [False, True])
    async def test_leaving_before_the_answer_cancels_the_job(self, stream: bool) -> None:
        transport = FakeTransport(lambda *_: [])
        async with serving(transport) as served:
            async with await served.connect() as client:
                await client.send(request_bytes(json.dumps(CHAT | {"stream": stream}).encode()))
                await wait_until(lambda: transport.waiters)
                assert not transport.waiters[0].cancelled
            await wait_until(lambda: transport.waiters[0].cancelled)
            await wait_until(lambda: served.edge.permits.requests == 0)

    async def test_leaving_in_the_middle_of_a_stream_cancels_the_job(self) -> None:
        transport = FakeTransport(lambda *_: [frame(b"data: 1\n\n")])
        async with serving(transport) as served:
            async with await served.connect() as client:
                await client.send(request_bytes(json.dumps(STREAM).encode()))
                data = b""
                while b"data: 1" not in data:
                    data += await client.receive()
            await wait_until(lambda: transport.waiters[0].cancelled)

    async def test_leaving_cancels_only_what_is_not_answered_yet(self) -> None:
        transport = FakeTransport()
        async with serving(transport) as served:
            async with await served.connect() as client:
                for _ in range(2):
                    await client.send(request_bytes(json.dumps(CHAT).encode()))
                    assert b"200 OK" in await client.receive()
                transport.script = lambda *_: []
                await client.send(request_bytes(json.dumps(CHAT).encode()))
                await wait_until(lambda: len(transport.waiters) == 3)
                for waiter in transport.waiters:
                    waiter.answered = False  # so that a cancellation would show
            await wait_until(lambda: transport.waiters[2].cancelled)
        assert [waiter.cancelled for waiter in transport.waiters] == [False, False, True]

    async def test_a_server_that_says_so_by_oserror_cancels_the_job(self) -> None:
        transport = FakeTransport(lambda *_: [frame(b"data: 1\n\n"), frame(b"data: 2\n\n", 1)])
        async with calling(transport) as client:
            scope, receive, _ = asgi_call(json.dumps(STREAM).encode())
            sent = []

            async def send(message: Any) -> None:
                sent.append(message)
                if message["type"] == "http.response.body":
                    raise OSError("gone")

            await client._transport.app(scope, receive, send)  # type: ignore[attr-defined]
        assert transport.waiters[0].cancelled
        assert len(sent) == 2

    async def test_an_error_event_nobody_takes_is_dropped(self) -> None:
        transport = FakeTransport(lambda *_: [frame(b"data: 1\n\n"), WorkerLost("lost")])
        async with calling(transport) as client:
            scope, receive, _ = asgi_call(json.dumps(STREAM).encode())

            async def send(message: Any) -> None:
                if b"worker_lost" in message.get("body", b""):
                    raise OSError("gone")

            await client._transport.app(scope, receive, send)  # type: ignore[attr-defined]

    async def test_a_client_that_reads_nothing_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay, "STUCK", 0.05)
        transport = FakeTransport(lambda *_: [frame(b"data: 1\n\n")])
        async with calling(transport) as client:
            scope, receive, _ = asgi_call(json.dumps(STREAM | {"timeout": 0.05}).encode())

            async def send(message: Any) -> None:
                if message["type"] == "http.response.body":
                    await anyio.sleep_forever()

            with anyio.fail_after(5):
                await client._transport.app(scope, receive, send)  # type: ignore[attr-defined]
        assert transport.waiters[0].cancelled

    async def test_on_other_servers_a_task_watches_for_the_client_leaving(self) -> None:
        transport = FakeTransport(lambda *_: [])
        late = {"type": "http.request", "body": b""}
        messages = [{"type": "http.disconnect"}, late, {"type": "http.request", "body": json.dumps(CHAT).encode()}]

        async def receive() -> Any:
            return messages.pop()

        sent = []

        async def send(message: Any) -> None:
            sent.append(message)

        async with calling(transport) as client:
            scope, _, _ = asgi_call(b"")
            with anyio.fail_after(5):
                await client._transport.app(scope, receive, send)  # type: ignore[attr-defined]
        assert transport.waiters[0].cancelled
        assert sent[0]["status"] == 499

    async def test_a_watcher_that_fails_takes_no_other_down(self) -> None:
        transport = FakeTransport()
        async with calling(transport) as client:
            scope, receive, sent = asgi_call(json.dumps(CHAT).encode(), fail_after_body=True)
            await client._transport.app(scope, receive, sent)  # type: ignore[attr-defined]
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


def asgi_call(body: bytes, *, fail_after_body: bool = False) -> tuple[dict[str, Any], Any, Any]:
    """Return scope, receive and send of a POST, for what an HTTP client cannot do."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        if fail_after_body:
            raise RuntimeError("the server is broken")
        return await anyio.sleep_forever()

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/chat/completions", "headers": [], "query_string": b""}
    return scope, receive, send
