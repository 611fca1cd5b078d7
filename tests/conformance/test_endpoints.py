"""Rules every endpoint keeps, whatever it serves: found by discovery, so a new file is tested before it has tests."""

from __future__ import annotations

import re

import pytest
from fakes.configs import settings as make_settings
from fakes.edges import KEYS, MASTER, calling
from fakes.transport import FakeTransport
from starlette.routing import Route

from ingress import endpoints
from ingress.auth import OPEN_PATHS
from pipeline import plugins
from pipeline.errors import TransportUnavailable
from pipeline.operations import OPERATIONS, Operation

pytestmark = pytest.mark.anyio
LOCKED = make_settings(keys=KEYS)
FIELDS = {"message", "type", "param", "code", "hint", "stage", "request_id"}
ROUTES: list[Route] = [route for routes in plugins.load_all(endpoints, "routes").values() for route in routes]
CASES = [
    pytest.param(prefix + re.sub(r"[{}]|:path", "", route.path), method, id=f"{method} {prefix}{route.path}")
    for route in ROUTES
    for prefix in ("", "/v1")
    for method in sorted((route.methods or {"GET", "DELETE"}) - {"HEAD"})
]


def test_there_are_endpoints() -> None:
    assert {"chat", "responses", "models", "health", "metrics"} <= set(plugins.names(endpoints))


@pytest.mark.parametrize(("name", "operation"), OPERATIONS.items())
async def test_every_operation_is_served_under_its_path_and_asks_for_its_content(
    name: str, operation: Operation
) -> None:
    transport = FakeTransport()
    async with calling(transport, LOCKED, MASTER) as client:
        body = {"model": "gpt-4", operation.content: [] if operation.content == "messages" else "hi"}
        assert (await client.post(f"/v1{operation.path}", json=body)).status_code == 200
        assert transport.job.operation == name
        missing = await client.post(f"/v1{operation.path}", json={"model": "gpt-4"})
        assert missing.status_code == (400 if operation.required else 200)
        streamed = await client.post(f"/v1{operation.path}", json={**body, "stream": True})
        assert streamed.status_code == (200 if operation.streams else 400)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_paths_are_written_without_v1_and_endpoints_are_asgi(route: Route) -> None:
    assert not route.path.startswith("/v1")
    assert route.app is route.endpoint, "a function would be wrapped into Starlette's Request and Response"


@pytest.mark.parametrize(("path", "method"), [case for case in CASES if case.values[0] not in OPEN_PATHS])
async def test_a_key_is_asked_for(path: str, method: str) -> None:
    async with calling(FakeTransport(), LOCKED) as client:
        response = await client.request(method, path, content=b"{}")
        assert (await client.head(path)).status_code == 401
    assert response.status_code == 401
    assert set(response.json()["error"]) == FIELDS


@pytest.mark.parametrize(("path", "method"), CASES)
async def test_every_answer_has_an_id_and_errors_have_openais_shape(path: str, method: str) -> None:
    transport = FakeTransport()
    async with calling(transport, LOCKED, MASTER) as client:
        for content in (b"{}", b"", b"[", b"\xff"):
            response = await client.request(method, path, content=content)
            assert response.headers["x-request-id"].startswith("0-")
            if response.status_code >= 400:
                error = response.json()["error"]
                assert set(error) == FIELDS
                assert error["message"]
                assert isinstance(error["code"], str)
                assert error["request_id"] == response.headers["x-request-id"]
            assert response.status_code != 500
    assert not transport.jobs, "none of these is a request"


@pytest.mark.parametrize(("path", "method"), CASES)
async def test_without_redis_there_is_an_answer(path: str, method: str) -> None:
    transport = FakeTransport()
    transport.refusal = transport.samples = TransportUnavailable("away")
    async with calling(transport, LOCKED, MASTER) as client:
        response = await client.request(method, path, content=b"{}")
    assert response.status_code in (200, 400, 404, 503)


@pytest.mark.parametrize("path", sorted({path for path, _ in (case.values for case in CASES)}))
async def test_other_methods_are_refused_in_shape(path: str) -> None:
    async with calling(FakeTransport(), LOCKED, MASTER) as client:
        for method in ("PUT", "PATCH", "OPTIONS", "TRACE"):
            response = await client.request(method, path)
            assert response.status_code in (404, 405)
            assert set(response.json()["error"]) == FIELDS
