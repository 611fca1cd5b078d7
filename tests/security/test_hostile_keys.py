"""S46, S48-S51: who may ask, what a refusal gives away, and what a gateway without keys serves."""

from __future__ import annotations

import hashlib
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.config_files import MODEL, ConfigFiles
from fakes.configs import settings as make_settings
from fakes.edges import CHAT, KEYS, MASTER, TEAM, calling
from fakes.gateways import promptmill
from fakes.transport import FakeTransport

from ingress.auth import Keyring
from pipeline.errors import BacklogFull, Unauthenticated
from pipeline.exposure import check_exposure
from pipeline.settings import Key, Secret

pytestmark = pytest.mark.anyio

LOCKED = make_settings(keys=KEYS)
DIGEST = hashlib.sha256(MASTER.encode()).hexdigest()

WRONG: dict[str, dict[str, Any]] = {
    "none": {},
    "another": {"authorization": "Bearer sk-another"},
    "a prefix": {"authorization": f"Bearer {MASTER[:-1]}"},
    "one letter more": {"authorization": f"Bearer {MASTER}x"},
    "another case": {"authorization": f"Bearer {MASTER.upper()}"},
    "its hash": {"authorization": f"Bearer {DIGEST}"},
    "its hash as configured": {"authorization": f"Bearer sha256:{DIGEST}"},
    "two of them": {"authorization": f"Bearer {MASTER} {TEAM}"},
    "a list": {"authorization": f"Bearer {MASTER}, Bearer {TEAM}"},
    "a zero byte": {"authorization": f"Bearer {MASTER}\0".encode()},
    "Basic": {"authorization": "Basic OnNrLW1hc3Rlci1vZi10aGUtdGVzdHM="},
    "a cookie": {"cookie": f"authorization=Bearer {MASTER}; api-key={MASTER}"},
    "another header": {"x-litellm-api-key": MASTER, "x-goog-api-key": MASTER},
    "a very long one": {"authorization": "Bearer " + "x" * 60_000},
}


@pytest.mark.parametrize("name", WRONG)
async def test_s48_what_is_not_the_key_is_a_401_and_reaches_nobody(name: str) -> None:
    transport = FakeTransport()
    async with calling(transport, LOCKED) as client:
        path = f"/v1/chat/completions?key={MASTER}&api_key={MASTER}&api-key={MASTER}"
        response = await client.post(path, json=CHAT, headers=WRONG[name])
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert transport.jobs == []
    assert transport.checked == [], "not even the backlog is looked at"


async def test_s46_no_refusal_tells_anything_of_a_key() -> None:
    transport = FakeTransport()
    transport.refusal = BacklogFull("full", retry_after=1.0)
    for key, status in ((MASTER, 429), (MASTER[:-1], 401)):
        async with calling(transport, LOCKED, key) as client:
            response = await client.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == status
        told = response.text + str(response.headers)
        for part in (key, DIGEST, DIGEST[:16], key[-4:], "master"):
            assert part not in told


def test_s48_finding_a_key_takes_as_long_whatever_is_right_about_it() -> None:
    keyring = Keyring(KEYS, {})

    def took(presented: str) -> int:
        headers = {b"authorization": b"Bearer " + presented.encode()}
        began = time.perf_counter_ns()
        with pytest.raises(Unauthenticated):
            keyring.authenticate("/v1/models", headers)
        return time.perf_counter_ns() - began

    pairs = [(took("x" * len(MASTER)), took(MASTER[:-1] + "x")) for _ in range(1000)]  # in turn: others run here too
    nothing, nearly = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert abs(nothing - nearly) < 0.3 * nothing


def test_s48_what_is_kept_to_compare_is_neither_a_key_nor_its_plain_hash() -> None:
    first, second = Keyring(KEYS, {}), Keyring(KEYS, {})
    assert not first._keys.keys() & second._keys.keys(), "a secret of each process goes into it"
    assert not [kept for kept in first._keys if kept.hex().startswith(DIGEST[:8])]


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
async def test_s49_only_the_master_key_sees_the_metrics(path: str) -> None:
    async with calling(FakeTransport(), LOCKED, TEAM) as client:
        response = await client.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "master_key_required")
        assert "promptmill_" not in response.text
        assert (await client.get(path, headers={"authorization": f"Bearer {MASTER}"})).status_code == 200


async def test_s50_what_needs_no_key_tells_nothing() -> None:
    async with calling(FakeTransport(), LOCKED) as client:
        for name in ("liveliness", "liveness", "readiness"):
            response = await client.get(f"/health/{name}")
            assert response.status_code in (200, 503)
            for word in ("gpt-4", "team", "master", "sk-", "127.0.0.1"):
                assert word not in response.text.lower()
        assert (await client.get("/health")).status_code == 401


@pytest.mark.parametrize(
    "origin", ["https://evil.invalid", "null", "http://127.0.0.1.evil.invalid", "file://", "http://["]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/v1/responses"])
async def test_s51_a_page_of_another_site_cannot_use_a_gateway_without_keys(origin: str, path: str) -> None:
    transport = FakeTransport()
    async with calling(transport) as client:
        headers = {"origin": origin, "content-type": "text/plain"}  # which a browser sends without asking first
        response = await client.post(path, json=CHAT, headers=headers)
    assert response.status_code == 401
    assert not transport.jobs


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:4000", "https://[::1]:8443", ""])
async def test_s51_a_page_of_this_machine_can_and_so_can_any_with_a_key(origin: str) -> None:
    async with calling(FakeTransport()) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})).status_code == 200
    async with calling(FakeTransport(), LOCKED, MASTER) as client:
        headers = {"origin": "https://app.example.com"}
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200


@pytest.mark.parametrize("key", ["''", "os.environ/EMPTY", "os.environ/UNSET", "sk-1234"])
def test_s51_an_empty_or_published_master_key_opens_nothing_to_others(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.yaml").write_text(f"{MODEL}general_settings: {{master_key: {key}}}\n")
    variables = {"EMPTY": "", "REDIS_URL": f"unix://{tmp_path}/none.sock"}
    done = promptmill("ingress", "-c", "config.yaml", "--host", "0.0.0.0", "--port", "0", cwd=tmp_path, **variables)
    assert done.returncode == 2, done.stderr
    assert "master" in done.stderr
    assert "Traceback" not in done.stderr


def test_s51_an_unset_key_ends_the_start_and_locks_what_runs(tmp_path: Path) -> None:
    (error,) = ConfigFiles(tmp_path).errors(f"{MODEL}general_settings: {{master_key: os.environ/UNSET}}\n")
    assert "would leave the gateway open" in error
    settings = make_settings(keys=(Key(name="master", values=(Secret("os.environ/UNSET"),), master=True),))
    check_exposure(settings, "127.0.0.1", {})
    with pytest.raises(Unauthenticated):
        Keyring(settings.keys, {}).authenticate("/v1/models", {b"authorization": b"Bearer "})


def test_a_secret_shows_itself_in_no_text() -> None:
    key = Key(name="k", values=(Secret(MASTER), Secret("os.environ/NAME")))
    for text in (repr(key), str(key), f"{key.values[0]}", repr({"a": [key]})):
        assert MASTER not in text
    assert "os.environ/NAME" in repr(key)
