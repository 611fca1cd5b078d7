"""The outermost layer: bugs become a 500 in shape, and every request ends in one line."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
import structlog
from fakes.configs import settings as make_settings
from fakes.edges import CHAT, KEYS, TEAM, calling
from fakes.transport import FakeTransport, answer

from ingress import exchange, guard, relay

pytestmark = pytest.mark.anyio


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    capture = structlog.testing.LogCapture()
    for module in (exchange, guard, relay):
        log = structlog.wrap_logger(None, processors=[capture], wrapper_class=structlog.stdlib.BoundLogger)
        monkeypatch.setattr(module, "log", log)
    return capture.entries


async def test_a_bug_is_a_500_without_a_trace_of_it(lines: list[dict[str, Any]]) -> None:
    def script(*_: Any) -> Any:
        raise RuntimeError("canary-secret")

    async with calling(FakeTransport(script)) as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (500, "internal_error", "server_error")
    assert "canary" not in response.text
    assert "Traceback" not in response.text
    failed = next(line for line in lines if line["event"] == "request failed")
    assert failed["request_id"] == response.headers["x-request-id"]
    assert isinstance(failed["exc_info"], RuntimeError)


async def test_a_bug_after_the_head_was_sent_only_cuts_the_response(lines: list[dict[str, Any]]) -> None:
    async with calling(FakeTransport(lambda *_: [answer()])) as client:
        app = client._transport.app  # type: ignore[attr-defined]

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                raise RuntimeError("the server is broken")

        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
        await app(scope, None, send)
    assert [line["event"] for line in lines] == ["request failed", "request done"]


async def test_every_request_ends_in_one_line_that_quotes_nobody(lines: list[dict[str, Any]]) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "canary-content"}]}
    async with calling(FakeTransport(), make_settings(keys=KEYS), TEAM) as client:
        response = await client.post("/v1/chat/completions", json=body)
    (line,) = lines
    seconds = line.pop("seconds")
    assert 0 <= seconds < 5
    assert line == {
        "event": "request done",
        "log_level": "info",
        "request_id": response.headers["x-request-id"],
        "tenant": "team",
        "endpoint": "chat",
        "model": "gpt-4",
        "deployment": "east",
        "prompt_id": "",
        "prompt_tokens": 0,
        "completion_tokens": 7,
        "attempts": 2,
        "queue_ms": 1.25,
        "prompt_ms": 0.0,
        "provider_ms": 30.0,
        "status": 200,
        "code": "",
    }


async def test_refusals_are_lines_too_and_probes_are_for_debugging(lines: list[dict[str, Any]]) -> None:
    async with calling(FakeTransport(), make_settings(keys=KEYS)) as client:
        await client.post("/v1/chat/completions", content=json.dumps(CHAT))
        await client.get("/health/liveness")
    assert [(line["log_level"], line["status"]) for line in lines] == [("info", 401), ("debug", 200)]
    assert lines[0]["code"] == "invalid_api_key"


async def test_what_is_not_http_goes_on_to_the_router() -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async with calling(FakeTransport(), make_settings(keys=KEYS)) as client:
        scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
        await client._transport.app(scope, None, send)  # type: ignore[attr-defined]
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_request_leaves_no_garbage_that_only_the_collector_finds() -> None:
    async with calling(FakeTransport(lambda *_: [answer()])) as client:
        gc.collect()
        gc.disable()  # it stops all requests while it looks, for tens of milliseconds
        try:
            before = exchanges()  # what other tests have left
            for _ in range(3):
                assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            left = exchanges() - before
        finally:
            gc.enable()
    assert left <= 1, "that of the last request may still be on its way out"


def exchanges() -> int:
    return [type(found) for found in gc.get_objects()].count(exchange.Exchange)
