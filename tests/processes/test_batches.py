"""Batches in real processes: what comes of them, however they end, and whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from fakes.batches import CHAT, BatchClient, line, lines
from fakes.callers import drained, parts
from fakes.gateways import MANAGER, Gateway, model_list, start_gateway
from fakes.limiters import token_bucket
from fakes.uploads import put
from fakes.upstream import Answer, Received, ScriptedUpstream, completion, failure, raw, reply
from fakes.waiting import wait_until

from pipeline.operations import OPERATIONS, Operation
from pipeline.startup import embedded_url
from pipeline.stores.batch_records import BatchOrder
from pipeline.stores.batches import BatchStore
from pipeline.stores.local import LocalBlobs
from pipeline.transport.connection import Link

pytestmark = [pytest.mark.processes, pytest.mark.anyio, pytest.mark.timeout(240)]

LINES = 2000
WINDOW = 200
GROWTH = 14 * 2**20
"""Bytes by which a process may grow before the garbage collector looks; bodies that are kept are twice that."""
IDS = [f"r{number}" for number in range(LINES)]


def echo(received: Received) -> Answer:
    return reply(completion(asked(received)))


def slow_echo(received: Received) -> Answer:
    return raw(0.3, *echo(received).steps)


def asked(received: Received) -> str:
    return str(received.json["messages"][-1]["content"])


@pytest.fixture(scope="module")
def failpoints(directory: Path) -> Path:
    """Return the directory whose files make a process fail, each once."""
    armed = directory / "failpoints"
    armed.mkdir()
    return armed


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream, failpoints: Path) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(MANAGER)
    # The pace of a model is what earlier tests left: who spoils it has a model of its own.
    config = (
        model_list(upstream.url, "gpt-4", "barred", "limited", "overloaded", "hanging")
        + "  - {model_name: local, litellm_params: {model: echo/echo}}\n"
        "litellm_settings: {callbacks: mine.mine}\n"
        f"promptmill_settings: {{batch_window: {WINDOW}, lease: 2}}\n"
    )
    with start_gateway(directory, config=config, variables={"PROMPTMILL_FAILPOINTS": str(failpoints)}) as running:
        yield running


async def nothing_stays_behind(directory: Path) -> None:
    await wait_until(lambda: drained(directory), timeout=30, every=0.2)
    kept = directory / ".promptmill" / "batches"
    await wait_until(lambda: not [*kept.glob("*.growing"), *kept.glob("*.part")], every=0.2)


@pytest.fixture
async def client(gateway: Gateway, upstream: ScriptedUpstream, directory: Path) -> AsyncIterator[BatchClient]:
    upstream.default = echo
    upstream.requests.clear()
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=30) as http:
        yield BatchClient(http)
    await nothing_stays_behind(directory)


def calls(upstream: ScriptedUpstream) -> Counter[str]:
    return Counter(asked(received) for received in upstream.requests)


async def test_a_batch_runs_every_line_through_its_prompt_manager_once(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    made = await client.create(lines(LINES, prompt_id="p"), metadata={"of": "mine"})
    assert made["status"] == "validating"
    outcome = await client.end(made["id"])
    outcome.check(IDS)
    assert outcome.batch["status"] == "completed"
    assert outcome.batch["error_file_id"] is None
    assert outcome.batch["metadata"] == {"of": "mine"}
    assert outcome.texts() == {f"r{number}": str(number) for number in range(LINES)}
    assert {received.json["messages"][0]["content"] for received in upstream.requests} == {"from mine"}
    assert set(calls(upstream).values()) == {1}
    first = outcome.output[0]
    assert set(first) == {"id", "custom_id", "response", "error", "promptmill"}
    assert (first["response"]["status_code"], first["error"]) == (200, None)
    assert (first["promptmill"]["prompt_id"], first["promptmill"]["prompt"]) == ("p", "changed")
    assert first["promptmill"]["attempts"] == 1
    used = outcome.batch["usage"]
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"] > 0
    stamps = [outcome.batch[f"{name}_at"] for name in ("created", "in_progress", "finalizing", "completed")]
    assert stamps == sorted(stamps)


async def test_no_process_grows_with_the_lines_of_a_batch(client: BatchClient, gateway: Gateway) -> None:
    sizes = []
    for count in (500, 6000):
        made = await client.create(lines(count, model="local", user="u" * 3000))
        await wait_until(lambda made=made: _ended(client, made["id"]), timeout=120, every=0.2)
        sizes.append({part: _resident(pid) for part, pid in parts(gateway).items()})
    few, many = sizes
    assert {part: many[part] - few[part] for part in few if many[part] - few[part] > GROWTH} == {}


async def _ended(client: BatchClient, batch_id: str) -> bool:
    return await client.status(batch_id) == "completed"


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("operation", [each for each in OPERATIONS.values() if each.texts], ids=lambda each: each.path)
async def test_lines_ask_for_what_live_requests_can_with_their_prompts(
    client: BatchClient, upstream: ScriptedUpstream, operation: Operation
) -> None:
    upstream.default = lambda _: reply({"object": "an answer", "usage": {"prompt_tokens": 4, "total_tokens": 4}})
    url, field = f"/v1{operation.path}", operation.content
    bodies = [{"model": "gpt-4", field: "hi"}, {"model": "gpt-4", field: "hi", "prompt_id": "p"}]
    whole = [{"custom_id": str(n), "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)]
    contents = b"".join(json.dumps(each).encode() + b"\n" for each in whole)
    outcome = await client.end((await client.create(contents, endpoint=url))["id"])
    outcome.check("01")
    assert len(outcome.output) == 2
    assert {received.path for received in upstream.requests} == {url}
    assert sorted(received.json[field] for received in upstream.requests) == ["from mine\n\nhi", "hi"]
    assert outcome.batch["usage"]["input_tokens"] == 8


async def test_a_batch_with_wrong_lines_fails_and_runs_nothing(client: BatchClient, upstream: ScriptedUpstream) -> None:
    good, bad = line("a"), b'{"custom_id": "b"\n'
    unknown = line("c", model="nothing-like-it")
    made = await client.create(good + bad + b"\n" + unknown + line("a"))
    outcome = await client.end(made["id"])
    assert outcome.batch["status"] == "failed"
    found = [(error["line"], error["code"]) for error in outcome.batch["errors"]["data"]]
    assert found == [(2, "invalid_json_line"), (4, "model_not_found"), (5, "duplicate_custom_id")]
    assert (outcome.batch["output_file_id"], outcome.batch["error_file_id"]) == (None, None)
    assert outcome.batch["failed_at"]
    assert not upstream.requests


async def test_errors_are_reported_up_to_a_hundred(client: BatchClient) -> None:
    outcome = await client.end((await client.create(b"{\n" * 150))["id"])
    assert [error["line"] for error in outcome.batch["errors"]["data"]] == list(range(1, 101))


async def test_a_batch_whose_every_line_is_refused_is_completed_with_errors_alone(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    upstream.default = lambda _: failure(400, "not like that", code="bad_value")
    outcome = await client.end((await client.create(lines(20)))["id"])
    outcome.check(IDS[:20])
    assert outcome.batch["status"] == "completed"
    assert outcome.batch["output_file_id"] is None
    response = outcome.errors[0]["response"]
    assert response["status_code"] == 400
    assert response["body"]["error"]["message"] == "not like that"
    assert set(calls(upstream).values()) == {1}


async def test_lines_wait_out_a_provider_that_is_down_or_overloaded(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    began = time.monotonic()

    def down_for_a_while(received: Received) -> Answer:
        if time.monotonic() - began > 3:
            return echo(received)
        return failure(429, headers={"retry-after": "1"}) if int(asked(received)) % 2 else failure(503)

    upstream.default = down_for_a_while
    outcome = await client.end((await client.create(lines(50, model="overloaded")))["id"])
    outcome.check(IDS[:50])
    assert len(outcome.output) == 50


async def test_a_limited_provider_is_asked_at_its_pace_and_its_limit_is_used(
    client: BatchClient, upstream: ScriptedUpstream
) -> None:
    limiter, refused = token_bucket(limit=3000, burst=50), 0

    def limited(received: Received) -> Answer:
        nonlocal refused
        said = limiter(received.time)
        if not said.accepted:
            refused += 1
            return failure(429, headers={"retry-after": str(said.retry_after)})
        return echo(received)

    upstream.default = limited
    outcome = await client.end((await client.create(lines(400, model="limited")))["id"])
    outcome.check(IDS[:400])
    assert len(outcome.output) == 400
    assert 1 <= refused < 40
    times = [received.time for received in upstream.requests]
    assert max(times) - min(times) < 3 * (400 - 50) / 50


async def test_a_key_that_its_provider_refuses_costs_no_line(client: BatchClient, upstream: ScriptedUpstream) -> None:
    upstream.default = lambda _: failure(401, "no such key")
    made = await client.create(lines(LINES, model="barred"))

    async def waits() -> bool:
        return bool((await client.get(made["id"]))["promptmill"]["paused"] == "upstream_auth_failed")

    await wait_until(waits, timeout=30)
    assert len(upstream.requests) <= 2 * WINDOW
    upstream.default = echo  # the operator mended it
    outcome = await client.end(made["id"])
    outcome.check(IDS)
    assert len(outcome.output) == LINES


async def test_a_cancelled_batch_keeps_what_is_done_and_says_what_is_not(
    client: BatchClient, upstream: ScriptedUpstream, directory: Path
) -> None:
    upstream.default = slow_echo
    made = await client.create(lines(LINES))
    await wait_until(lambda: client.done(made["id"]), timeout=30)
    answers = [(await client.http.post(f"/v1/batches/{made['id']}/cancel")).json() for _ in range(2)]
    assert {answer["status"] for answer in answers} == {"cancelling"}
    assert answers[0]["cancelling_at"] == answers[1]["cancelling_at"] is not None
    outcome = await client.end(made["id"], timeout=10)
    outcome.check(IDS)
    assert outcome.batch["status"] == "cancelled"
    assert outcome.batch["cancelled_at"] >= outcome.batch["cancelling_at"]
    assert outcome.output
    assert {error["error"]["code"] for error in outcome.errors} == {"batch_cancelled"}
    assert {error["response"] for error in outcome.errors} == {None}
    assert (await client.http.post(f"/v1/batches/{made['id']}/cancel")).json() == outcome.batch
    await nothing_stays_behind(directory)
    assert len(upstream.requests) <= len(outcome.output) + WINDOW


async def test_a_batch_that_runs_out_of_time_expires_with_what_is_done(
    client: BatchClient, upstream: ScriptedUpstream, directory: Path
) -> None:
    # A few lines are answered at once, and all others never: how fast the machine is changes nothing.
    upstream.default = lambda received: raw(*([] if int(asked(received)) < 5 else [60.0]), *echo(received).steps)
    file = (await put(client.http, lines(100, model="hanging"))).json()
    store = BatchStore(LocalBlobs(directory / ".promptmill" / "batches"))
    state = await store.create(BatchOrder("", CHAT, file["id"]), window=8)
    outcome = await client.end(state.request.id)
    outcome.check(IDS[:100])
    assert outcome.batch["status"] == "expired"
    assert set(outcome.texts()) == {"r0", "r1", "r2", "r3", "r4"}
    assert {error["error"]["code"] for error in outcome.errors} == {"batch_expired"}


@pytest.mark.parametrize("point", ["validating", "mid_feed", "after_append", "before_rename", "before_terminal"])
async def test_a_feed_that_is_killed_at_any_step_loses_and_repeats_no_line(
    client: BatchClient, upstream: ScriptedUpstream, gateway: Gateway, failpoints: Path, point: str
) -> None:
    killed = gateway.child("pipeline feed")
    (failpoints / f"feed.{point}").write_text("exit")
    made = await client.create(lines(LINES))
    await wait_until(lambda: gateway.child("pipeline feed") not in (0, killed), timeout=90, every=0.1)
    outcome = await client.end(made["id"])
    outcome.check(IDS)
    assert outcome.texts() == {f"r{number}": str(number) for number in range(LINES)}
    assert sum(calls(upstream).values()) <= LINES + WINDOW


@pytest.mark.parametrize("part", ["dispatch", "resolve", "server"])
async def test_a_batch_outlives_any_other_process(
    client: BatchClient, upstream: ScriptedUpstream, gateway: Gateway, part: str
) -> None:
    upstream.default = slow_echo
    killed = parts(gateway)[part]
    made = await client.create(lines(LINES, prompt_id="p"))
    await wait_until(lambda: client.done(made["id"]), timeout=30)
    os.kill(killed, signal.SIGKILL)
    outcome = await client.end(made["id"])
    outcome.check(IDS)
    assert len(outcome.output) == LINES
    assert sum(calls(upstream).values()) <= LINES + WINDOW


@pytest.mark.parametrize("and_the_feed", [False, True])
async def test_a_batch_outlives_the_loss_of_all_that_is_in_redis(
    client: BatchClient, upstream: ScriptedUpstream, gateway: Gateway, directory: Path, *, and_the_feed: bool
) -> None:
    upstream.default = slow_echo
    made = await client.create(lines(LINES))
    await wait_until(lambda: client.done(made["id"]), timeout=30)
    if and_the_feed:
        os.kill(gateway.child("pipeline feed"), signal.SIGKILL)
    await flush(directory)
    outcome = await client.end(made["id"])
    outcome.check(IDS)
    assert len(outcome.output) == LINES
    assert sum(calls(upstream).values()) <= LINES + (2 if and_the_feed else 1) * WINDOW


async def flush(directory: Path) -> None:
    link = Link(embedded_url(directory / ".promptmill"), "test-flush")
    try:
        await link.run(("FLUSHALL",))
    finally:
        await link.close()


async def test_a_frozen_owner_that_wakes_up_changes_nothing(
    client: BatchClient, upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    upstream.default = slow_echo
    made = await client.create(lines(LINES))
    await wait_until(lambda: client.done(made["id"]), timeout=30)
    frozen = gateway.child("pipeline feed")
    os.kill(frozen, signal.SIGSTOP)
    try:
        # Nobody else is there to take over, so the test is the next owner, and does nothing.
        store = BatchStore(LocalBlobs(gateway_directory(gateway) / "batches"))
        state = await store.get(made["id"], None)
        assert await store.claim(state) == 2
    finally:
        os.kill(frozen, signal.SIGCONT)
    await wait_until(lambda: "has another owner" in gateway.log, timeout=10)
    outcome = await client.end(made["id"])  # the feed claims it again, as its third owner
    outcome.check(IDS)
    assert len(outcome.output) == LINES


def gateway_directory(gateway: Gateway) -> Path:
    pid = gateway.child("pipeline feed")
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return Path(next(v.partition(b"=")[2].decode() for v in variables if v.startswith(b"PROMPTMILL_DATA_DIR=")))


async def test_a_small_batch_does_not_wait_for_a_large_one(client: BatchClient, upstream: ScriptedUpstream) -> None:
    upstream.default = slow_echo
    large = await client.create(lines(LINES))
    await wait_until(lambda: client.done(large["id"]), timeout=30)
    small = await client.create(lines(50))
    outcome = await client.end(small["id"], timeout=10)
    outcome.check(IDS[:50])
    assert await client.status(large["id"]) == "in_progress"
    await client.http.post(f"/v1/batches/{large['id']}/cancel")
    await client.end(large["id"])


async def test_large_bodies_and_answers_go_by_reference(client: BatchClient, upstream: ScriptedUpstream) -> None:
    text = "x" * 100_000
    contents = b"".join(line(f"r{number}", f"{number} {text}") for number in range(30))
    outcome = await client.end((await client.create(contents))["id"])
    outcome.check(IDS[:30])
    assert outcome.texts() == {f"r{number}": f"{number} {text}" for number in range(30)}
