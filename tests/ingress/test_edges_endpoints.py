"""The endpoints that make no job: models, health, metrics, and paths that do not exist."""

from __future__ import annotations

import msgspec
import pytest
from fakes.configs import deployment
from fakes.configs import settings as make_settings
from fakes.edges import CHAT, KEYS, MASTER, TEAM, calling
from fakes.transport import FakeTransport

from pipeline import metrics
from pipeline.errors import TransportUnavailable
from pipeline.settings import Callback, RouterSettings

pytestmark = pytest.mark.anyio
MODELS = make_settings(
    deployment(),
    deployment("cheap-1", "groq/llama"),
    deployment("openai/*", "openai/*"),
    keys=KEYS,
    router=RouterSettings(aliases={"fast": "cheap-1"}),
)


async def test_models_are_listed_as_openai_lists_them() -> None:
    async with calling(FakeTransport(), MODELS, MASTER) as client:
        listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["gpt-4", "cheap-1", "openai/*", "fast"]
    assert listed["data"][1] == {"id": "cheap-1", "object": "model", "created": 1677610602, "owned_by": "groq"}
    assert listed["data"][2]["owned_by"] == "openai"


@pytest.mark.parametrize("name", ["gpt-4", "fast", "openai/gpt-4o"])
async def test_one_model_is_found_by_name_alias_or_wildcard(name: str) -> None:
    async with calling(FakeTransport(), MODELS, MASTER) as client:
        response = await client.get(f"/models/{name}")
    assert (response.status_code, response.json()["id"]) == (200, name)


@pytest.mark.parametrize(("name", "key"), [("nope", MASTER), ("fast", TEAM), ("openai/gpt-4o", TEAM), ("nope", TEAM)])
async def test_a_model_that_is_not_there_and_one_of_others_look_the_same(name: str, key: str) -> None:
    async with calling(FakeTransport(), MODELS, key) as client:
        response = await client.get(f"/v1/models/{name}")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "model_not_found")
    assert error["message"] == f"model '{name}' does not exist; `GET /v1/models` lists what there is"


async def test_liveness_is_litellms() -> None:
    async with calling(FakeTransport()) as client:
        assert (await client.get("/health/liveliness")).json() == "I'm alive!"


async def test_ready_when_redis_and_every_needed_stage_are_there() -> None:
    transport = FakeTransport()
    async with calling(transport) as client:
        response = await client.get("/health/readiness")
    assert response.status_code == 200
    assert response.json() == {"status": "healthy", "redis": "connected", "workers": {"resolve": 1, "dispatch": 2}}


async def test_not_ready_without_redis() -> None:
    transport = FakeTransport()
    transport.fleet = msgspec.structs.replace(transport.fleet, connected=False)
    async with calling(transport) as client:
        response = await client.get("/health/readiness")
        assert (response.status_code, response.json()["redis"]) == (503, "not connected")
        assert (await client.get("/health")).json()["status"] == "unhealthy"


async def test_resolve_workers_are_needed_only_for_prompt_managers() -> None:
    transport = FakeTransport()
    transport.fleet = msgspec.structs.replace(transport.fleet, workers={"resolve": 0, "dispatch": 1})
    async with calling(transport) as client:
        assert (await client.get("/health/readiness")).status_code == 200
    async with calling(transport, make_settings(callbacks=(Callback(path="custom_prompt.manager"),))) as client:
        assert (await client.get("/health/readiness")).status_code == 503


async def test_not_ready_while_draining() -> None:
    async with calling(FakeTransport()) as client:
        client.edge.draining = True  # type: ignore[attr-defined]
        response = await client.get("/health/readiness")
        assert (response.status_code, response.json()["status"]) == (503, "shutting_down")
        assert (await client.get("/health")).json()["status"] == "shutting_down"
        assert (await client.get("/health/liveness")).status_code == 200


async def test_health_sums_up_the_fleet() -> None:
    async with calling(FakeTransport(), make_settings(keys=KEYS), TEAM) as client:
        assert (await client.get("/health")).json() == {
            "status": "healthy",
            "redis": "connected",
            "workers": {"resolve": 1, "dispatch": 2},
            "backlog": {"dispatch": 3},
            "backlog_bytes": {"dispatch": 4},
            "waiting": 0,
            "requests": 0,
            "buffered_bytes": 0,
        }


async def test_metrics_are_those_of_the_whole_fleet() -> None:
    transport = FakeTransport()
    metrics.CLAIMS["resolve",].inc()
    transport.samples = [("resolve-1", metrics.snapshot()), ("garbled", b"\xc1")]
    async with calling(transport, make_settings(keys=KEYS), MASTER) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'promptmill_claims_total{process="resolve-1",stage="resolve"}' in response.text
    assert 'promptmill_requests_total{endpoint="chat",process="ingress-test",status="200"}' in response.text
    for sample in (
        'backlog{lane="live",process="fleet",stage="dispatch"} 3.0',
        'pending{lane="live",process="fleet",stage="dispatch"} 2.0',
        'delayed{lane="live",process="fleet",stage="dispatch"} 1.0',
        'oldest_seconds{lane="live",process="fleet",stage="dispatch"} 9.0',
        'lag_seconds{lane="live",process="fleet",stage="dispatch"} 8.0',
        'backlog_bytes{lane="live",process="fleet",stage="dispatch"} 7.0',
        'workers{lane="live",process="fleet",stage="dispatch"} 1.0',
        'dead_letters_kept{process="fleet"} 4.0',
        'redis_memory_bytes{process="fleet"} 1000.0',
        'redis_memory_limit_bytes{process="fleet"} 2000.0',
    ):
        assert f"promptmill_{sample}" in response.text
    assert 'promptmill_requests_in_flight{kind="jobs",process="ingress-test"} 0.0' in response.text


async def test_metrics_do_without_redis() -> None:
    transport = FakeTransport()
    transport.samples = TransportUnavailable("away")
    async with calling(transport) as client:
        assert 'process="ingress-test"' in (await client.get("/metrics")).text


async def test_metrics_are_for_the_master_key() -> None:
    async with calling(FakeTransport(), make_settings(keys=KEYS), TEAM) as client:
        response = await client.get("/metrics")
    assert (response.status_code, response.json()["error"]["code"]) == (403, "master_key_required")


async def test_nothing_a_client_names_becomes_a_label() -> None:
    async with calling(FakeTransport()) as client:
        await client.post("/v1/chat/completions", json=CHAT | {"model": "canary-model"})
        await client.post("/v1/chat/completions", json=CHAT | {"prompt_id": "canary-prompt"})
        await client.get("/canary-path")
        text = (await client.get("/metrics")).text
    assert "canary" not in text
    assert 'endpoint="other"' in text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("POST", "/V1/chat/completions", 404, "not_found"),
        ("POST", "//v1/chat/completions", 404, "not_found"),
        ("POST", "/v1/chat/completions;x", 404, "not_found"),
        ("POST", "/v1/v1/chat/completions", 404, "not_found"),
        ("GET", "/v1/responses", 404, "not_found"),
        ("DELETE", "/v1/responses/resp_1", 404, "not_found"),
        ("POST", "/responses/resp_1/cancel", 404, "not_found"),
    ],
)
async def test_what_is_not_offered_is_said_in_openais_shape(method: str, path: str, status: int, code: str) -> None:
    async with calling(FakeTransport()) as client:
        response = await client.request(method, f"http://gateway{path}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["request_id"]) == (
        status,
        code,
        response.headers["x-request-id"],
    )
    assert ("allow" in response.headers) == (status == 405)
