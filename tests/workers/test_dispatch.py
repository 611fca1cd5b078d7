"""The dispatch stage against real loopback providers, without a transport."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fakes.configs import deployment, settings
from fakes.deliveries import FakeDelivery, make_job
from fakes.upstream import (
    ScriptedUpstream,
    completion,
    failure,
    gzip_bomb,
    hang,
    redirect,
    reply,
    run_upstream_in_thread,
)

from pipeline.catalog import Catalog
from pipeline.errors import (
    ConfigMismatch,
    DeadlineExceeded,
    InvalidRequest,
    ModelDisabled,
    ModelNotFound,
    UpstreamAuthFailed,
    UpstreamGarbled,
    UpstreamNotApi,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamResting,
    UpstreamTimeout,
)
from pipeline.job import Facts
from pipeline.settings import Deployment, DispatchSettings, RouterSettings, Secret, Settings
from pipeline.stage import Defer, Done, Fail, Outcome, Stage, StageContext
from workers.stages.dispatch import stage

pytestmark = pytest.mark.anyio

BODY = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def dispatching(*deployments: Deployment, **fields: Any) -> AsyncIterator[Stage]:
    chosen: Settings = settings(*deployments, **fields)
    context = StageContext(chosen, Catalog(chosen), "dispatch-1", lambda _: None)
    async with stage.open(context) as opened:
        yield opened


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


def delivery(body: Any = BODY, remaining: float = 60.0, **job: Any) -> FakeDelivery:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return FakeDelivery(make_job(**job), data, remaining=remaining)


async def handled(upstream: ScriptedUpstream, given: FakeDelivery, **fields: Any) -> Outcome:
    fields.setdefault("api_base", upstream.url)
    router = RouterSettings(retries=fields.pop("router_retries", 0))
    async with dispatching(deployment(**fields), router=router) as opened:
        return await opened.handle(given)


def failed(outcome: Outcome, kind: type) -> Any:
    assert isinstance(outcome, Fail)
    assert type(outcome.error) is kind, outcome.error
    return outcome.error


def done(outcome: Outcome) -> Done:
    assert isinstance(outcome, Done), outcome
    return outcome


async def test_a_jobs_body_reaches_the_provider_and_its_answer_comes_back_untouched(
    upstream: ScriptedUpstream,
) -> None:
    raw = json.dumps(completion("hello"), indent=2).encode()
    upstream.script(reply(raw, headers={"content-type": "application/json; charset=utf-8"}))
    answer = done(await handled(upstream, delivery(facts=Facts(prompt_id="p", prompt="changed", queue_ms=2))))
    assert answer.body == raw
    assert answer.content_type == "application/json; charset=utf-8"
    request = upstream.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer sk-upstream"
    assert request.headers["content-type"] == "application/json"
    assert request.json == {"model": "gpt-4", "messages": BODY["messages"]}
    facts = answer.facts
    assert (facts.model, facts.deployment, facts.attempts) == ("gpt-4", "gpt-4-openai/gpt-4", 1)
    assert (facts.prompt_id, facts.prompt, facts.queue_ms) == ("p", "changed", 3.5)
    assert (facts.prompt_tokens, facts.completion_tokens) == (3, 2)
    assert facts.provider_ms > 0


async def test_a_request_can_neither_redirect_a_call_nor_choose_its_key(upstream: ScriptedUpstream) -> None:
    async with ScriptedUpstream() as witness:
        stolen = {"api_base": witness.url, "base_url": witness.url, "api_key": "sk-thief", "proxy": witness.url}
        nested = {**stolen, "extra_headers": {"authorization": "Bearer sk-thief"}, "custom_llm_provider": "x"}
        body = {**BODY, **nested, "extra_body": stolen, "metadata": stolen, "organization": "org"}
        done(await handled(upstream, delivery(body)))
        assert witness.connections == 0
    assert upstream.requests[0].json == BODY
    assert b"thief" not in upstream.requests[0].body
    assert "thief" not in str(upstream.requests[0].headers)


async def test_duplicate_keys_smuggle_nothing(upstream: ScriptedUpstream) -> None:
    body = b'{"model":"evil","stream":true,"messages":[],"model":"gpt-4","stream":false,"api_base":"x","api_base":"y"}'
    done(await handled(upstream, delivery(body)))
    assert upstream.requests[0].body == b'{"model":"gpt-4","stream":false,"messages":[]}'


async def test_defaults_of_the_deployment_fill_what_the_request_leaves_out(upstream: ScriptedUpstream) -> None:
    done(await handled(upstream, delivery({**BODY, "top_p": 0.1}), defaults={"temperature": 0, "top_p": 1}))
    assert upstream.requests[0].json == {**BODY, "temperature": 0, "top_p": 0.1}


async def test_responses_go_to_their_own_path_with_their_metadata(upstream: ScriptedUpstream) -> None:
    upstream.script(reply({"object": "response", "usage": {"input_tokens": 1, "output_tokens": 2}}))
    body = {"model": "gpt-4", "input": "hi", "metadata": {"a": "b"}}
    answer = done(await handled(upstream, delivery(body, operation="responses")))
    assert upstream.requests[0].path == "/v1/responses"
    assert upstream.requests[0].json == body
    assert (answer.facts.prompt_tokens, answer.facts.completion_tokens) == (1, 2)


@pytest.mark.parametrize(
    ("operation", "field"), [("completions", "prompt"), ("embeddings", "input"), ("moderations", "input")]
)
async def test_texts_go_to_their_own_paths_and_their_tokens_are_counted(
    upstream: ScriptedUpstream, operation: str, field: str
) -> None:
    upstream.script(reply({"data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}}))
    body = {"model": "gpt-4", field: ["a", "b"], "encoding_format": "base64"}
    noted = {**body, "metadata": {"a": "b"}, "api_base": "http://x"}
    answer = done(await handled(upstream, delivery(noted, operation=operation)))
    assert upstream.requests[0].path == f"/v1/{operation}"
    assert upstream.requests[0].json == body
    assert (answer.facts.prompt_tokens, answer.facts.completion_tokens) == (4, 0)


async def test_wildcards_and_aliases_find_their_deployment(upstream: ScriptedUpstream) -> None:
    wild = deployment("openai/*", "openai/*", api_base=upstream.url)
    async with dispatching(wild, router=RouterSettings(aliases={"fast": "openai/*"})) as opened:
        answer = done(await opened.handle(delivery(model="openai/gpt-9")))
        assert answer.facts.model == "openai/gpt-9"
        assert upstream.requests[0].json["model"] == "gpt-9"
        failed(await opened.handle(delivery(model="openai/../admin")), InvalidRequest)
    assert len(upstream.requests) == 1


async def test_an_unknown_model_is_not_found_with_the_closest_names_the_key_may_use() -> None:
    async with dispatching(deployment("gpt-4"), deployment("gpt-4-secret"), deployment("other")) as opened:
        error = failed(await opened.handle(delivery(model="gpt-4x", allowed_models=("gpt-4", "oth*"))), ModelNotFound)
        assert error.hint == "did you mean gpt-4?"
        assert "gpt-4x" in error.message
        many = [deployment(name) for name in ("alpha", "beta", "gamma", "delta")]
    async with dispatching(*many) as opened:
        assert "/v1/models" in failed(await opened.handle(delivery(model="zzzzzzzz")), ModelNotFound).hint


async def test_a_job_of_another_configuration_is_deferred_for_a_while_and_then_refused() -> None:
    async with dispatching(digest="mine") as opened:
        waits = []
        job = make_job(model="new", config="theirs")
        for _ in range(16):
            outcome = await opened.handle(FakeDelivery(job))
            assert isinstance(outcome, Defer)
            waits.append(outcome.seconds)
            job = outcome.job
        assert len(waits) == 16
        assert 7.5 < sum(waits) < 22.5
        assert failed(await opened.handle(FakeDelivery(job)), ConfigMismatch).hint
        failed(await opened.handle(delivery(model="new", config="mine")), ModelNotFound)


async def test_a_body_that_is_no_object_fails_without_a_call(upstream: ScriptedUpstream) -> None:
    failed(await handled(upstream, delivery(b"[]")), InvalidRequest)
    assert upstream.requests == []


async def test_a_model_without_its_key_is_disabled_and_names_the_variable(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    outcome = await handled(upstream, delivery(), api_key=None)
    assert "OPENAI_API_KEY" in failed(outcome, ModelDisabled).message
    assert isinstance(outcome, Fail)
    assert outcome.facts.attempts == 0
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-environment")
    done(await handled(upstream, delivery(), api_key=None))
    assert upstream.requests[0].headers["authorization"] == "Bearer sk-from-environment"


async def test_environment_variables_of_the_configuration_hold_keys_too(upstream: ScriptedUpstream) -> None:
    placed = deployment(api_base=upstream.url, api_key=Secret("os.environ/CONFIGURED"))
    async with dispatching(placed, environment={"CONFIGURED": "sk-configured"}) as opened:
        done(await opened.handle(delivery()))
    assert upstream.requests[0].headers["authorization"] == "Bearer sk-configured"


async def test_a_rejection_is_the_providers_own_and_not_retried(upstream: ScriptedUpstream) -> None:
    upstream.script(failure(400, "bad temperature", code="bad", param="temperature"))
    outcome = await handled(upstream, delivery(), router_retries=3)
    fields = failed(outcome, UpstreamRejected).fields()
    assert (fields.status, fields.code, fields.param) == (400, "bad", "temperature")
    assert len(upstream.requests) == 1
    assert isinstance(outcome, Fail)
    assert outcome.facts.attempts == 1


async def test_a_failure_is_retried_on_another_deployment(upstream: ScriptedUpstream) -> None:
    async with ScriptedUpstream() as other:
        for broken in (upstream, other):
            broken.script(failure(503))
        pair = [deployment(id=name, api_base=up.url) for name, up in (("a", upstream), ("b", other))]
        async with dispatching(*pair, router=RouterSettings(retries=2)) as opened:
            answer = done(await opened.handle(delivery(retries=2)))
        assert answer.facts.attempts == 3
        assert {len(upstream.requests), len(other.requests)} == {1, 2}


async def test_a_refused_key_is_never_the_clients_and_is_not_tried_again(upstream: ScriptedUpstream) -> None:
    upstream.script(failure(401, "Incorrect API key provided: sk-upstream"))
    error = failed(await handled(upstream, delivery()), UpstreamAuthFailed)
    assert error.fields().status == 502
    assert "sk-upstream" not in error.message
    upstream.script(failure(401))
    outcome = await handled(upstream, delivery(), router_retries=1)
    failed(outcome, UpstreamAuthFailed)
    assert isinstance(outcome, Fail)
    assert outcome.facts.attempts == 1


async def test_an_overloaded_provider_tells_when_to_come_back(upstream: ScriptedUpstream) -> None:
    upstream.script(failure(429, headers={"retry-after": "120"}))
    error = failed(await handled(upstream, delivery(), router_retries=2), UpstreamOverloaded)
    assert error.retry_after == 120
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(b"<html>hi</html>", headers={"content-type": "text/html"}), UpstreamNotApi),
        (reply({"error": {"message": "nope"}}), UpstreamGarbled),
        (reply(b'{"choices": [{"mess'), UpstreamGarbled),
        (reply(b""), UpstreamNotApi),
        (gzip_bomb(3_000_000), UpstreamGarbled),
        (redirect("http://127.0.0.1:9/"), UpstreamNotApi),
    ],
)
async def test_an_answer_that_is_none_is_garbled(
    upstream: ScriptedUpstream, answer: Any, kind: type[UpstreamGarbled]
) -> None:
    upstream.script(answer)
    limits = DispatchSettings(max_response_bytes=1_000_000)
    placed = deployment(api_base=upstream.url)
    async with dispatching(placed, dispatch=limits, router=RouterSettings(retries=0)) as opened:
        failed(await opened.handle(delivery()), kind)


async def test_a_slow_provider_times_out_and_a_passed_deadline_is_told_as_such(upstream: ScriptedUpstream) -> None:
    upstream.script(hang(), hang())
    failed(await handled(upstream, delivery(), timeout=0.1), UpstreamTimeout)
    failed(await handled(upstream, delivery(remaining=0.2), router_retries=3), DeadlineExceeded)
    assert len(upstream.requests) == 2


async def test_a_mock_response_calls_nobody_and_one_in_a_body_is_ignored(upstream: ScriptedUpstream) -> None:
    answer = done(await handled(upstream, delivery(), mock_response="canned"))
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "canned"
    assert upstream.requests == []
    done(await handled(upstream, delivery({**BODY, "mock_response": "free lunch"})))
    assert upstream.requests[0].json == BODY


async def test_echo_answers_without_a_provider() -> None:
    async with dispatching(deployment(model="echo/any", api_key=None)) as opened:
        answer = done(await opened.handle(delivery()))
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "user: hi"
    assert answer.facts.attempts == 1


def test_the_stage_says_what_it_is() -> None:
    assert (stage.name, stage.max_deliveries) == ("dispatch", 5)
    assert stage.slots(Settings(dispatch=DispatchSettings(slots=7))) == 7


def test_there_are_never_more_slots_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.stages.dispatch.connections_left", lambda: 200)
    assert stage.slots(Settings(dispatch=DispatchSettings(slots=2000))) == 200
    assert "0-abc" in stage.poisoned("0-abc").message


async def test_an_upstream_in_its_own_thread_serves_too() -> None:
    with run_upstream_in_thread() as upstream:
        done(await handled(upstream, delivery()))
    assert len(upstream.requests) == 1


async def test_a_line_whose_turn_is_far_away_is_put_off_with_what_is_known_of_it(upstream: ScriptedUpstream) -> None:
    upstream.script(failure(429, headers={"retry-after": "20"}))
    async with dispatching(deployment(api_base=upstream.url)) as opened:
        line = delivery(lane="batch", admitted=make_job().deadline - 60_000)
        outcome = await opened.handle(line)
        assert isinstance(outcome, Defer)
        assert 18 < outcome.seconds < 22
        assert isinstance(outcome.otherwise, UpstreamResting), "a line for which there is no room does not mean more"
        assert (outcome.job.facts.attempts, outcome.job.facts.deployment) == (1, "gpt-4-openai/gpt-4")
        again = await opened.handle(FakeDelivery(outcome.job))
        assert isinstance(again, Defer)
        assert again.job.facts.attempts == 1
    assert len(upstream.requests) == 1


async def test_a_line_whose_time_would_run_out_goes_back_to_who_fed_it(upstream: ScriptedUpstream) -> None:
    upstream.script(failure(429, headers={"retry-after": "40"}))
    async with dispatching(deployment(api_base=upstream.url)) as opened:
        outcome = await opened.handle(delivery(lane="batch", admitted=make_job().deadline - 60_000))
        assert 38 < failed(outcome, UpstreamResting).retry_after < 42
        assert isinstance(outcome, Fail)
        assert outcome.facts.attempts == 1
        answer = done(await opened.handle(delivery()))
        assert answer.facts.attempts == 1


async def test_what_a_provider_says_is_left_reaches_the_pace_of_lines(upstream: ScriptedUpstream) -> None:
    for left in range(6, -1, -1):
        headers = {"x-ratelimit-remaining-requests": str(left), "x-ratelimit-reset-requests": "20s"}
        upstream.script(reply(completion("hi"), headers=headers))

    def line() -> FakeDelivery:
        return delivery(lane="batch", admitted=make_job().deadline - 60_000)

    async with dispatching(deployment(api_base=upstream.url)) as opened:
        for _ in range(7):
            done(await opened.handle(line()))
        put_off = await opened.handle(line())
        assert isinstance(put_off, Defer)
        assert 18 < put_off.seconds < 22
        done(await opened.handle(delivery()))  # live jobs are not held back by a word
    assert len(upstream.requests) == 8


async def test_an_rpm_that_is_configured_is_the_pace_of_lines_from_the_first_on(upstream: ScriptedUpstream) -> None:
    def line() -> FakeDelivery:
        return delivery(lane="batch", admitted=make_job().deadline - 60_000)

    async with dispatching(deployment(api_base=upstream.url, rpm=6)) as opened:
        done(await opened.handle(line()))
        put_off = await opened.handle(line())
        assert isinstance(put_off, Defer)
        assert 8 < put_off.seconds < 22
        for _ in range(3):
            done(await opened.handle(delivery()))


async def test_batch_params_hold_for_lines_alone_and_never_over_what_a_line_says(upstream: ScriptedUpstream) -> None:
    placed = deployment(
        api_base=upstream.url,
        defaults={"user": "live"},
        batch_defaults={"service_tier": "flex", "user": "batch", "top_p": 1},
    )
    async with dispatching(placed) as opened:
        done(await opened.handle(delivery({**BODY, "top_p": 0.1}, lane="batch")))
        done(await opened.handle(delivery()))
    line, live = (request.json for request in upstream.requests)
    assert line == {**BODY, "service_tier": "flex", "user": "batch", "top_p": 0.1}
    assert live == {**BODY, "user": "live"}


async def test_the_timeout_of_batch_params_is_that_of_lines(upstream: ScriptedUpstream) -> None:
    upstream.script(hang())
    placed = deployment(api_base=upstream.url, timeout=60.0, batch_timeout=0.05)
    async with dispatching(placed, router=RouterSettings(retries=0)) as opened:
        failed(await opened.handle(delivery(lane="batch")), UpstreamTimeout)
