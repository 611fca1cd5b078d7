"""Who may ask: keys, their places, and what is open to everybody."""

from __future__ import annotations

import hashlib

import pytest
from fakes.configs import settings as make_settings
from fakes.edges import CHAT, KEYS, MASTER, TEAM, calling
from fakes.transport import FakeTransport

from ingress.auth import Keyring
from pipeline.errors import ConfigurationError, Unauthenticated
from pipeline.settings import Key, Secret

pytestmark = pytest.mark.anyio
LOCKED = make_settings(keys=KEYS)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {MASTER}"},
        {"authorization": f"bearer  {MASTER} "},
        {"x-api-key": MASTER},
        {"api-key": MASTER},
        {"authorization": "Basic dXNlcjpwYXNz", "api-key": MASTER},
        {"authorization": "Bearer ", "x-api-key": MASTER},
    ],
)
async def test_a_key_is_taken_from_any_of_three_headers(headers: dict[str, str]) -> None:
    transport = FakeTransport()
    async with calling(transport, LOCKED) as client:
        response = await client.post("/chat/completions", json=CHAT, headers=headers)
    assert response.status_code == 200
    assert transport.job.tenant == "master"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer sk-wrong"},
        {"authorization": f"Bearer {MASTER[:-1]}"},
        {"authorization": f"Bearer {MASTER}x"},
        {"authorization": MASTER},
        {"authorization": "Bearer " + hashlib.sha256(MASTER.encode()).hexdigest()},
        {"authorization": "Bearer sha256:" + hashlib.sha256(MASTER.encode()).hexdigest()},
        {"authorization": "Bearer k\xe9y".encode("latin-1")},
        {"cookie": f"api-key={MASTER}"},
    ],
)
async def test_everything_else_is_a_401_and_reaches_nobody(headers: dict[str, str]) -> None:
    transport = FakeTransport()
    async with calling(transport, LOCKED) as client:
        response = await client.post(f"/v1/chat/completions?api_key={MASTER}", json=CHAT, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-should-retry"] == "false"
    assert MASTER not in response.text
    assert not transport.jobs
    assert not transport.checked


async def test_without_keys_everybody_is_welcome_with_any() -> None:
    transport = FakeTransport()
    async with calling(transport) as client:
        assert (await client.post("/chat/completions", json=CHAT)).status_code == 200
        response = await client.post("/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-1234"})
        assert response.status_code == 200
    assert [job.tenant for job in transport.jobs] == ["", ""]


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/health", "/metrics", "/nowhere", "//v1/models", "/v1/../metrics", "/health/readiness/"],
)
async def test_no_method_and_no_path_gets_around_the_key(method: str, path: str) -> None:
    async with calling(FakeTransport(), LOCKED) as client:
        headers = {"x-http-method-override": "GET", "host": "a/health/readiness?x#y"}
        assert (await client.request(method, f"http://gateway{path}", headers=headers)).status_code == 401


@pytest.mark.parametrize("path", ["/health/liveliness", "/health/liveness", "/health/readiness"])
async def test_probes_need_no_key(path: str) -> None:
    async with calling(FakeTransport(), LOCKED) as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.get(f"/v1{path}")).status_code == 200


async def test_two_values_of_a_key_work_while_it_is_rotated() -> None:
    settings = make_settings(keys=(Key(name="app", values=(Secret("old-value"), Secret("os.environ/NEW"))),))
    transport = FakeTransport()
    async with calling(transport, settings, NEW="new-value") as client:
        for value in ("old-value", "new-value"):
            response = await client.post("/chat/completions", json=CHAT, headers={"x-api-key": value})
            assert response.status_code == 200
    assert [job.tenant for job in transport.jobs] == ["app", "app"]


def test_a_hashed_key_is_matched_by_what_was_hashed() -> None:
    digest = hashlib.sha256(b"plain").hexdigest()
    keyring = Keyring([Key(name="app", values=(Secret(f"sha256:{digest}"),))], {})
    assert keyring.authenticate("/", {b"x-api-key": b"plain"}).name == "app"
    with pytest.raises(Unauthenticated):
        keyring.authenticate("/", {b"x-api-key": digest.encode()})


def test_a_key_whose_variable_is_unset_locks_the_gateway() -> None:
    keyring = Keyring([Key(name="master", values=(Secret("os.environ/UNSET"),))], {})
    for value in (b"", b"None", b"os.environ/UNSET"):
        with pytest.raises(Unauthenticated):
            keyring.authenticate("/", {b"x-api-key": value})


@pytest.mark.parametrize("value", ["sha256:", "sha256:abc", "sha256:" + "g" * 64, "sha256:" + "a" * 62])
def test_a_hash_that_is_none_ends_the_start_without_being_shown(value: str) -> None:
    with pytest.raises(ConfigurationError, match="64 hexadecimal digits") as caught:
        Keyring([Key(name="app", values=(Secret(value),))], {})
    assert "g" * 64 not in str(caught.value)


async def test_the_team_key_sees_only_its_models() -> None:
    async with calling(FakeTransport(), LOCKED, TEAM) as client:
        assert [m["id"] for m in (await client.get("/v1/models")).json()["data"]] == ["gpt-4"]
