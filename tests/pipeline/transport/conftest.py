"""A real server for every test here, and a check that nothing is left in it."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest
from fakes.servers import Server, start_server

from pipeline.transport import client, keyspace, stage_stream, worker
from pipeline.transport.connection import Link


@pytest.fixture(autouse=True)
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short reads make short tests, for a worker stops when its read returns; beats and claims come sooner too."""
    for module in (client, worker):
        monkeypatch.setattr(module, "BEAT", 0.25)
    monkeypatch.setattr(stage_stream, "BLOCK", 0.05)
    monkeypatch.setattr(stage_stream, "CLAIM_EVERY", 0.2)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


async def _flush(url: str) -> None:
    link = Link(url, "test-flush")
    await link.run(("FLUSHALL",))
    await link.close()


async def _leaks(url: str) -> list[str]:
    link = Link(url, "test-leaks")
    try:
        leaks = []
        for key in await link.run(("KEYS", "*")):
            name = key.decode().removeprefix(keyspace.PREFIX)
            if await link.run(("PTTL", key)) < 0 and not name.startswith(keyspace.PERMANENT):
                leaks.append(name)
        return leaks
    finally:
        await link.close()


@pytest.fixture
def url(shared_server: Server) -> Iterator[str]:
    """The server's URL, empty at the start; afterwards every key must have a lifetime or be on the permanent list."""
    anyio.run(_flush, shared_server.url)
    yield shared_server.url
    assert anyio.run(_leaks, shared_server.url) == []
