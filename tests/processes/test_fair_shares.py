"""Keys with batches get equal shares, however many batches they have and whichever process runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest
from fakes.batches import BatchClient, lines
from fakes.gateways import Gateway, model_list, start_gateway
from fakes.upstream import ScriptedUpstream, completion, raw, reply
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio, pytest.mark.timeout(120)]

FAIR = 0.95
LINES = 1500


@pytest.fixture(scope="module")
def upstream(upstream: ScriptedUpstream) -> ScriptedUpstream:
    upstream.default = lambda received: raw(0.3, *reply(completion(received.json["model"])).steps)
    return upstream


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    config = (
        model_list(upstream.url) + "general_settings: {master_key: sk-the-master-key}\n"
        "promptmill_settings: {batch_window: 120, keys: {one: sk-of-one, five: sk-of-five}}\n"
    )
    with start_gateway(directory, "--scale", "feed=2", config=config) as running:
        yield running


@pytest.fixture
async def clients(gateway: Gateway) -> AsyncIterator[list[BatchClient]]:
    async with AsyncExitStack() as stack:
        found = []
        for key in ("sk-of-one", "sk-of-five"):
            headers = {"Authorization": f"Bearer {key}"}
            http = httpx2.AsyncClient(base_url=gateway.url, timeout=30, headers=headers)
            found.append(BatchClient(await stack.enter_async_context(http)))
        yield found


def jain(shares: list[int]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


async def test_one_large_batch_and_five_small_ones_of_another_key_get_equal_shares(clients: list[BatchClient]) -> None:
    one, five = clients
    ids = [[(await one.create(lines(LINES)))["id"]], [(await five.create(lines(LINES // 5)))["id"] for _ in range(5)]]

    async def done() -> list[list[int]]:
        return [[await client.done(name) for name in names] for client, names in zip(clients, ids, strict=True)]

    async def all_run() -> bool:
        return all(all(counts) for counts in await done())

    await wait_until(all_run, timeout=30)
    before = await done()
    reached = [sum(counts) for counts in before]

    async def much_was_done() -> bool:
        return sum(map(sum, await done())) >= sum(reached) + 900

    await wait_until(much_was_done, timeout=60)
    shares = [sum(counts) - start for counts, start in zip(await done(), reached, strict=True)]
    for client, names in zip(clients, ids, strict=True):
        for name in names:
            await client.http.post(f"/v1/batches/{name}/cancel")
    assert jain(shares) >= FAIR, shares
