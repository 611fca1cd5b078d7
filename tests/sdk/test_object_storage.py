"""Files and batches on a server that speaks S3: moto's, which knows nothing of promptmill."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import obstore
import pytest
from fakes.batches import BatchClient, lines
from fakes.blob_cases import CASES, Case
from fakes.environments import Environments
from fakes.gateways import Gateway, model_list, start_gateway
from fakes.upstream import Answer, Received, ScriptedUpstream, completion, raw, reply
from fakes.waiting import wait_until

from pipeline.startup import embedded_url
from pipeline.stores import object_pieces
from pipeline.stores.object_store import connect, prove
from pipeline.stores.objects import ObjectBlobs
from pipeline.transport import keyspace
from pipeline.transport.connection import Link

pytestmark = [pytest.mark.sdk, pytest.mark.anyio, pytest.mark.timeout(400)]

URL = "s3://bucket/gateway"
KEPT = {"files", "batches.ended"}
"""Where there is something when all batches have ended."""

LINES = 1000
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "id-of-the-store", "AWS_SECRET_ACCESS_KEY": "secret-of-the-store"}


def slow_echo(received: Received) -> Answer:
    return raw(0.2, *reply(completion(str(received.json["messages"][-1]["content"]))).steps)


@pytest.fixture(scope="module")
def endpoint(environments: Environments) -> str:
    return str(environments.run("s3", "s3_server.py", {"bucket": "bucket"}))


@pytest.fixture
def options(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return {"endpoint": endpoint, "region": "us-east-1", "allow_http": "true"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_of_every_place(options: dict[str, str], case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_pieces, "PAUSE", 0.0)
    await case(ObjectBlobs(connect(f"s3://bucket/{case.__name__}", options), "blobs"))


async def test_it_does_what_is_needed(options: dict[str, str]) -> None:
    assert await prove("s3://bucket/prefix", options) == ""


@pytest.fixture(scope="module")
def gateway(endpoint: str, directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    upstream.default = slow_echo
    config = (
        model_list(upstream.url) + "promptmill_settings:\n"
        f"  {{batch_window: 200, lease: 1, storage: {URL},\n"
        f"   storage_options: {{endpoint: '{endpoint}', region: us-east-1, allow_http: true}}}}\n"
    )
    with start_gateway(directory, "--scale", "feed=2", config=config, variables=CREDENTIALS) as running:
        yield running


async def owner_of(batch_id: str, directory: Path) -> int:
    """Return the process that has a batch in hand."""
    link = Link(embedded_url(directory / ".promptmill"), "test")
    try:
        consumer = await link.run(("GET", keyspace.lease(batch_id.removeprefix("batch_"))))
    finally:
        await link.close()
    return int(consumer.decode().split("-")[-2])


def kept(options: dict[str, str]) -> list[str]:
    """Return the paths of all objects."""
    return [entry["path"] for entry in obstore.list(connect(URL, options)).collect()]


async def test_a_batch_outlives_its_owner_on_another_feed_and_each_line_ends_once(
    gateway: Gateway, directory: Path, options: dict[str, str]
) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=30) as http:
        client = BatchClient(http)
        made = await client.create(lines(LINES))

        async def half_done() -> bool:
            return await client.done(made["id"]) > LINES // 2

        await wait_until(half_done, timeout=60, every=0.1)
        os.kill(await owner_of(made["id"], directory), signal.SIGKILL)
        outcome = await client.end(made["id"])
    outcome.check(f"r{number}" for number in range(LINES))
    assert len(outcome.output) == LINES
    assert gateway.log.count('"batch taken"') == 2
    await wait_until(lambda: {path.partition("/")[0] for path in kept(options)} == KEPT, timeout=10)
    assert sorted((directory / ".promptmill").glob("[fb]*")) == []
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in gateway.log
