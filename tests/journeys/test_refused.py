"""Every refusal reaches the client in OpenAI's shape, with a remedy, and nothing it said reaches the log."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.callers import Caller, Response, body, calling, parts
from fakes.gateways import MANAGER, Gateway, start_gateway
from fakes.upstream import (
    CUT,
    Answer,
    ScriptedUpstream,
    chunk,
    default,
    drop,
    failure,
    hang,
    raw,
    reply,
    sse,
)
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

MASTER = "sk-master-of-this-test"
UPSTREAM_KEY = "sk-upstream-of-this-test"
WRONG_KEY = "sk-a-wrong-one"
SECRET = "the-words-of-the-user"
SAID = "the-words-of-the-provider"
"""What a log must never hold."""

MANAGER_OF_ONE = MANAGER.replace(
    "    def get_chat",
    "    def should_run_prompt_management(self, prompt_id, dynamic_callback_params):\n"
    "        return prompt_id == 'known'\n\n"
    "    def get_chat",
)
MAX_BACKLOG = 3


def configuration(upstream: ScriptedUpstream) -> str:
    return (
        "model_list:\n"
        "  - model_name: gpt-4\n"
        "    litellm_params:\n"
        f"      {{model: openai/gpt-4, api_base: '{upstream.url}', api_key: {UPSTREAM_KEY}, timeout: 0.5}}\n"
        "  - model_name: gpt-4o-mini\n"
        "    litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/A_KEY_NOBODY_SET}\n"
        "litellm_settings: {callbacks: mine.mine, num_retries: 0}\n"
        "general_settings: {master_key: os.environ/PROMPTMILL_MASTER_KEY}\n"
        f"promptmill_settings: {{max_body_bytes: 65536, max_backlog: {MAX_BACKLOG}, lease: 2}}\n"
    )


def check_log(gateway: Gateway) -> None:
    """No key, nobody's words and no traceback may stand in anything any process has logged."""
    log = gateway.log
    assert log.count("request done") > 2
    for text in (MASTER, UPSTREAM_KEY, WRONG_KEY, SECRET, SAID, "Traceback"):
        assert text not in log, next(line for line in log.splitlines() if text in line)


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(MANAGER_OF_ONE)
    variables = {"PROMPTMILL_MASTER_KEY": MASTER}
    with start_gateway(directory, "--detailed_debug", config=configuration(upstream), variables=variables) as running:
        yield running
        assert running.stop(signal.SIGTERM) == 0
        check_log(running)


@pytest.fixture(autouse=True)
def usual_answers(upstream: ScriptedUpstream) -> None:
    upstream.default = default


@pytest.fixture
async def caller(gateway: Gateway) -> AsyncIterator[Caller]:
    async with calling(gateway.url, MASTER) as open_caller:
        yield open_caller


def check(answer: Response, status: int, kind: str, code: str, *words: str) -> dict[str, Any]:
    error = answer.error
    assert (answer.status, error["type"], error["code"]) == (status, kind, code), error
    assert all(word in error["message"] + error["hint"] for word in words), error
    assert SECRET not in error["message"] + error["hint"]
    return error


BODIES: dict[str, tuple[bytes, int, str, str, str]] = {
    "no JSON": (b'{"model": "gpt-4", ' + SECRET.encode(), 400, "invalid_request_error", "invalid_request", "JSON"),
    "an array": (b"[]", 400, "invalid_request_error", "invalid_request", "object"),
    "too deep": (
        b'{"model": "gpt-4", "messages": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        400,
        "invalid_request_error",
        "invalid_request",
        "deep",
    ),
    "a model that is a number": (b'{"model": 4}', 400, "invalid_request_error", "invalid_request", "`model`"),
    "messages that are text": (
        json.dumps({"model": "gpt-4", "messages": SECRET}).encode(),
        400,
        "invalid_request_error",
        "invalid_request",
        "`messages`",
    ),
    "no messages": (b'{"model": "gpt-4"}', 400, "invalid_request_error", "invalid_request", "`prompt_id`"),
    "oversize": (
        json.dumps(body(SECRET * 5000)).encode(),
        413,
        "invalid_request_error",
        "request_too_large",
        "65536",
    ),
    "an unknown model": (
        json.dumps(body(SECRET, model="gpt-5")).encode(),
        404,
        "invalid_request_error",
        "model_not_found",
        "gpt-4",
    ),
    "an unknown prompt": (
        json.dumps(body(SECRET, prompt_id="nobody's")).encode(),
        404,
        "invalid_request_error",
        "prompt_not_found",
        "mine.mine",
    ),
    "a model without its key": (
        json.dumps(body(SECRET, model="gpt-4o-mini")).encode(),
        503,
        "upstream_error",
        "model_disabled",
        "A_KEY_NOBODY_SET",
    ),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_cannot_be_served_is_refused_with_a_remedy(
    caller: Caller, upstream: ScriptedUpstream, name: str
) -> None:
    content, status, kind, code, word = BODIES[name]
    before = len(upstream.requests)
    check(await caller.post(content), status, kind, code, word)
    assert len(upstream.requests) == before


@pytest.mark.parametrize("headers", [{"authorization": ""}, {"authorization": f"Bearer {WRONG_KEY}"}])
async def test_no_key_or_a_wrong_one_is_unauthenticated(caller: Caller, headers: dict[str, str]) -> None:
    answer = await caller.post(json.dumps(body(SECRET)).encode(), **headers)
    check(answer, 401, "authentication_error", "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert WRONG_KEY not in answer.content.decode()


async def test_a_path_or_a_method_that_is_not_there_is_told_so(caller: Caller) -> None:
    check(await caller.post(b"{}", "/v1/nothing"), 404, "invalid_request_error", "not_found")
    check(await caller.post(b"{}", "/v1/models"), 405, "invalid_request_error", "method_not_allowed")


UPSTREAM: dict[str, tuple[Callable[[], Answer], int, str, str]] = {
    "400": (lambda: failure(400, SAID, type="invalid_request_error", code="bad"), 400, "invalid_request_error", "bad"),
    "401": (lambda: failure(401, SAID), 502, "upstream_error", "upstream_auth_failed"),
    "422": (
        lambda: failure(422, SAID, type="invalid_request_error"),
        422,
        "invalid_request_error",
        "upstream_rejected",
    ),
    "429": (lambda: failure(429, SAID, {"retry-after": "7"}), 429, "rate_limit_error", "upstream_rate_limited"),
    "500": (lambda: failure(500, SAID), 502, "upstream_error", "upstream_unavailable"),
    "503": (lambda: failure(503, SAID), 503, "upstream_error", "upstream_unavailable"),
    "timeout": (hang, 504, "upstream_error", "upstream_timeout"),
    "garbage": (lambda: reply(f"<html>{SAID}".encode()), 502, "upstream_error", "upstream_not_api"),
    "an error under 200": (
        lambda: reply({"error": {"message": SAID, "code": 500}}),
        502,
        "upstream_error",
        "upstream_unavailable",
    ),
    "no HTTP": (lambda: raw(SAID.encode() + b"\r\n\r\n", CUT), 502, "upstream_error", "upstream_garbled"),
    "cut": (drop, 502, "upstream_error", "upstream_unavailable"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", UPSTREAM)
async def test_what_the_provider_does_wrong_is_told_in_the_same_shape(
    caller: Caller, upstream: ScriptedUpstream, name: str, stream: bool
) -> None:
    answer, status, kind, code = UPSTREAM[name]
    upstream.script(answer())
    before = len(upstream.requests)
    got = await caller.chat(SECRET, stream=stream)
    error = got.error
    assert (got.status, error["type"], error["code"]) == (status, kind, code), error
    assert len(upstream.requests) == before + 1
    assert UPSTREAM_KEY not in got.content.decode()
    if name == "429":
        assert got.headers["retry-after"] == "7"


async def test_an_error_inside_a_stream_is_an_event(caller: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(sse(chunk("some"), {"error": {"message": SAID, "type": "server_error"}}, done=False))
    got = await caller.read(SECRET)
    assert b"[DONE]" not in got
    assert "error" in json.loads(got.rstrip().rpartition(b"data: ")[2])


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """Hold a process as if its machine stood still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def serves(caller: Caller) -> bool:
    return (await caller.chat()).status == 200


async def test_a_full_backlog_refuses_with_a_time_to_come_back(gateway: Gateway, caller: Caller) -> None:
    refused: list[Response] = []

    async def ask() -> None:
        answer = await caller.chat(SECRET)
        if answer.status != 200:
            refused.append(answer)

    async with stopped(parts(gateway)["dispatch"]), anyio.create_task_group() as tasks:
        for _ in range(5 * MAX_BACKLOG):  # some of them are already on their way to the stopped worker
            tasks.start_soon(ask)
        await wait_until(lambda: refused)
        tasks.cancel_scope.cancel()
    for answer in refused:
        check(answer, 429, "rate_limit_error", "backlog_full")
        assert int(answer.headers["retry-after"]) >= 1
    await wait_until(lambda: serves(caller))


async def test_without_redis_a_request_is_refused_at_once_and_served_when_it_is_back(
    gateway: Gateway, caller: Caller
) -> None:
    async with stopped(gateway.process.pid):  # who would start it again
        os.kill(parts(gateway)["server"], signal.SIGKILL)

        async def refused() -> bool:
            with anyio.move_on_after(2):  # what was sent before the loss was noticed waits for Redis to come back
                return (await caller.chat(SECRET)).status == 503
            return False

        await wait_until(refused, timeout=10)
        answer = await caller.chat(SECRET)
        check(answer, 503, "service_unavailable", "redis_unavailable", "Redis cannot be reached", "try again")
        assert answer.headers["retry-after"] == "1"
    await wait_until(lambda: serves(caller), timeout=15)


async def test_a_stage_without_any_worker_is_named(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("ingress: promptmill ingress\n")
    with start_gateway(tmp_path) as gateway:
        async with calling(gateway.url) as caller:
            answer = await caller.chat(SECRET)
            check(answer, 503, "service_unavailable", "no_worker", "dispatch", "promptmill worker dispatch")
            at_once = await caller.chat(SECRET)
            assert (at_once.status, at_once.at - answer.at < 1) == (503, True)
