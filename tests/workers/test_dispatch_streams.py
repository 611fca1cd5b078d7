"""Streamed answers through the dispatch stage."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fakes.configs import deployment, settings
from fakes.deliveries import FakeDelivery, make_job
from fakes.upstream import CUT, HANG, ScriptedUpstream, chunk, completion, failure, hang, reply, sse
from fakes.waiting import wait_until

from pipeline.catalog import Catalog
from pipeline.errors import (
    DeadlineExceeded,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from pipeline.settings import RouterSettings
from pipeline.stage import Done, Fail, Outcome, Stage, StageContext
from workers.stages.dispatch import stage

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def dispatching(upstream: ScriptedUpstream, retries: int = 0, **fields: Any) -> AsyncIterator[Stage]:
    fields.setdefault("api_base", upstream.url)
    chosen = settings(deployment(**fields), router=RouterSettings(retries=retries))
    async with stage.open(StageContext(chosen, Catalog(chosen), "dispatch-1", lambda _: None)) as opened:
        yield opened


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


def delivery(remaining: float = 60.0, operation: str = "chat.completions", **body: Any) -> FakeDelivery:
    whole = {"model": "gpt-4", "stream": True, "messages": [{"role": "user", "content": "hi"}], **body}
    return FakeDelivery(make_job(stream=True, operation=operation), json.dumps(whole).encode(), remaining=remaining)


async def handled(upstream: ScriptedUpstream, given: FakeDelivery, **fields: Any) -> Outcome:
    async with dispatching(upstream, **fields) as opened:
        return await opened.handle(given)


def sent(given: FakeDelivery) -> bytes:
    return b"".join(data for data, _, _ in given.sent)


def failed(outcome: Outcome, kind: type) -> UpstreamError:
    assert isinstance(outcome, Fail), outcome
    assert type(outcome.error) is kind, outcome.error
    assert isinstance(outcome.error, UpstreamError)
    return outcome.error


async def test_a_stream_passes_through_and_ends_with_an_empty_body(upstream: ScriptedUpstream) -> None:
    tool = (
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"function":{"arguments":"{\\"a\\": \\u00e9"}}]}}]}\n\n'
    )
    usage = {"prompt_tokens": 4, "completion_tokens": 5}
    upstream.script(sse(chunk("a"), b": ping\n\n", tool, chunk(finish="stop", usage=usage)))
    given = delivery()
    outcome = await handled(upstream, given)
    assert isinstance(outcome, Done)
    assert (outcome.body, outcome.content_type) == (b"", "text/event-stream")
    assert (outcome.facts.prompt_tokens, outcome.facts.completion_tokens) == (4, 5)
    stream = sent(given)
    assert tool in stream
    assert stream.endswith(b"data: [DONE]\n\n")
    assert stream.count(b"\n\n") == 5
    assert upstream.requests[0].json["stream"] is True


async def test_only_the_first_frame_carries_facts_and_content_type(upstream: ScriptedUpstream) -> None:
    upstream.script(sse(*(chunk(str(number)) for number in range(5)), between=0.002))
    given = delivery()
    await handled(upstream, given)
    (_, facts, content_type), *others = given.sent
    assert facts is not None
    assert (facts.model, facts.deployment, facts.attempts) == ("gpt-4", "gpt-4-openai/gpt-4", 1)
    assert facts.queue_ms == 1.5
    assert facts.provider_ms > 0
    assert content_type == "text/event-stream"
    assert others
    assert all((facts, content_type) == (None, "") for _, facts, content_type in others)


async def test_events_are_passed_on_as_they_arrive(upstream: ScriptedUpstream) -> None:
    gate = anyio.Event()
    upstream.script(sse(chunk("a"), between=gate))
    given = delivery()
    async with dispatching(upstream) as opened, anyio.create_task_group() as group:
        group.start_soon(opened.handle, given)
        await wait_until(lambda: given.sent)
        assert b'"a"' in sent(given)
        gate.set()


async def test_an_event_that_arrives_in_pieces_is_one_frame(upstream: ScriptedUpstream) -> None:
    whole = b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9"},"finish_reason":"stop"}]}\n\n'
    upstream.script(sse(*(whole[at : at + 9] for at in range(0, len(whole), 9)), between=0.002))
    given = delivery()
    await handled(upstream, given)
    assert [data for data, _, _ in given.sent] == [whole, b"data: [DONE]\n\n"]


async def test_a_stream_waits_while_the_process_has_too_many_unsent_bytes(upstream: ScriptedUpstream) -> None:
    upstream.script(sse(*(chunk(str(number)) for number in range(5)), between=0.002))
    given = delivery()
    given.has_room = False
    assert isinstance(await handled(upstream, given), Done)
    assert given.waits == 1
    assert sent(given).count(b"\n\n") == 6


@pytest.mark.parametrize("last", [b"data: [DONE]\n\n", {"error": {"message": "quota", "code": 429}}])
async def test_nothing_is_waited_for_after_the_last_word_or_an_error(upstream: ScriptedUpstream, last: Any) -> None:
    upstream.script(sse(chunk("a"), last, between=0.002, done=False, then=HANG))
    with anyio.fail_after(3):
        outcome = await handled(upstream, delivery())
    assert isinstance(outcome, Done if isinstance(last, bytes) else Fail)


async def test_a_host_that_never_says_done_is_completed(upstream: ScriptedUpstream) -> None:
    upstream.script(sse(chunk("a"), chunk(finish="stop"), done=False))
    given = delivery()
    assert isinstance(await handled(upstream, given), Done)
    assert sent(given).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("then", "kind"), [(CUT, UpstreamCut), (None, UpstreamGarbled)])
async def test_a_cut_stream_fails_after_its_frames_and_never_says_done(
    upstream: ScriptedUpstream, then: Any, kind: type
) -> None:
    upstream.script(sse(chunk("a"), done=False, then=then))
    given = delivery()
    failed(await handled(upstream, given, retries=5), kind)
    assert b'"a"' in sent(given)
    assert b"[DONE]" not in sent(given)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "status"),
    [
        (failure(400, "bad"), UpstreamRejected, 400),
        (failure(429, headers={"retry-after": "99"}), UpstreamOverloaded, 429),
        (failure(500), UpstreamUnavailable, 502),
        (reply(completion()), UpstreamGarbled, 502),
        (reply({"error": {"message": "quota"}}), UpstreamGarbled, 502),
        (sse({"error": {"message": "quota", "code": 429}}), UpstreamOverloaded, 429),
        (sse(b"data: {oops\n\n"), UpstreamGarbled, 502),
        (sse(done=False), UpstreamGarbled, 502),
    ],
)
async def test_an_error_before_the_first_chunk_has_its_real_status(
    upstream: ScriptedUpstream, answer: Any, kind: type, status: int
) -> None:
    upstream.script(answer)
    given = delivery()
    assert failed(await handled(upstream, given), kind).fields().status == status
    assert given.sent == []


async def test_a_whole_answer_to_a_streamed_call_is_told_as_such_or_as_its_error(upstream: ScriptedUpstream) -> None:
    upstream.script(reply(completion()), reply({"error": {"message": "quota"}}))
    assert "without a stream" in failed(await handled(upstream, delivery()), UpstreamGarbled).message
    assert "quota" in failed(await handled(upstream, delivery()), UpstreamGarbled).message


async def test_what_fails_before_the_first_chunk_is_retried(upstream: ScriptedUpstream) -> None:
    upstream.script(sse({"error": {"message": "busy"}}))
    given = delivery()
    outcome = await handled(upstream, given, retries=1)
    assert isinstance(outcome, Done)
    assert outcome.facts.attempts == 2


async def test_an_error_event_ends_the_stream_as_failed_with_the_providers_words(upstream: ScriptedUpstream) -> None:
    upstream.script(sse(chunk("a"), {"error": {"message": "lost sk-upstream"}}, chunk("b")))
    given = delivery()
    error = failed(await handled(upstream, given, retries=5), UpstreamUnavailable)
    assert error.message == "openai ended the stream with an error: lost [redacted]"
    assert sent(given).count(b"data:") == 1
    assert len(upstream.requests) == 1


async def test_an_event_over_eight_megabytes_is_garbled(upstream: ScriptedUpstream) -> None:
    upstream.script(sse(chunk("a"), *([b"x" * 2**20] * 9), done=False))
    given = delivery()
    assert "larger than" in failed(await handled(upstream, given), UpstreamGarbled).message


async def test_a_stream_timeout_holds_until_the_first_byte_and_between_bytes(upstream: ScriptedUpstream) -> None:
    upstream.script(hang(), sse(chunk("a"), done=False, then=HANG))
    for frames in (0, 1):
        given = delivery()
        failed(await handled(upstream, given, stream_timeout=0.2, timeout=30.0), UpstreamTimeout)
        assert len(given.sent) == frames


async def test_the_deadline_ends_a_stream_that_goes_on(upstream: ScriptedUpstream) -> None:
    upstream.script(sse(chunk("a"), done=False, then=HANG))
    outcome = await handled(upstream, delivery(remaining=0.3))
    assert isinstance(outcome, Fail)
    assert type(outcome.error) is DeadlineExceeded


async def test_a_client_that_leaves_closes_the_providers_connection_within_a_second(
    upstream: ScriptedUpstream,
) -> None:
    upstream.script(sse(chunk("a"), done=False, then=HANG))
    given = delivery()
    async with dispatching(upstream) as opened:
        async with anyio.create_task_group() as group:
            group.start_soon(opened.handle, given)
            await wait_until(lambda: given.sent)
            group.cancel_scope.cancel()
        await wait_until(lambda: upstream.disconnects, timeout=1)


async def test_connections_are_used_again_after_a_stream(upstream: ScriptedUpstream) -> None:
    async with dispatching(upstream) as opened:
        for _ in range(3):
            upstream.script(sse(chunk("a"), between=0.02))  # the end comes a little after the last word
            await opened.handle(delivery())
    assert upstream.connections == 1


async def test_a_response_stream_passes_through_to_its_last_word(upstream: ScriptedUpstream) -> None:
    last = {"type": "response.completed", "response": {"usage": {"input_tokens": 8, "output_tokens": 3}}}
    upstream.script(sse({"type": "response.created"}, last, done=False))
    given = delivery(operation="responses")
    outcome = await handled(upstream, given)
    assert isinstance(outcome, Done)
    assert (outcome.facts.prompt_tokens, outcome.facts.completion_tokens) == (8, 3)
    assert b"[DONE]" not in sent(given)
    upstream.script(sse({"type": "response.created"}, done=False))
    failed(await handled(upstream, delivery(operation="responses")), UpstreamGarbled)


async def test_a_mock_response_and_echo_stream_too(upstream: ScriptedUpstream) -> None:
    for fields in ({"mock_response": "user: hi"}, {"model": "echo/any"}):
        given = delivery()
        assert isinstance(await handled(upstream, given, **fields), Done)
        assert b'"content":"user: hi"' in sent(given)
        assert given.sent[0][1] is not None
        assert sent(given).endswith(b"data: [DONE]\n\n")
    assert upstream.requests == []
