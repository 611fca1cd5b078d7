"""Streams that somebody deleted, and what only looks like it."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from pipeline.transport.losses import Losses

pytestmark = pytest.mark.anyio


class Server:
    """A link to a server that tells its name, and how many entries were ever added to its one stream."""

    run, added = b"a", 7

    async def call(self, *commands: tuple[str, ...]) -> list[object]:
        assert [command[0] for command in commands] == ["INFO", "XINFO"]
        told: object = b"# Server\r\nrun_id:%b\r\n" % self.run if self.run else ResponseError("NOPERM")
        return [told, [b"length", 1, b"entries-added", self.added]]


@pytest.mark.parametrize("run", [b"a", b""], ids=["named", "not to be asked"])
async def test_a_count_that_fell_is_another_stream(run: bytes) -> None:
    server = Server()
    server.run = run
    losses = Losses(server, ["dispatch"])  # type: ignore[arg-type]
    assert await losses.look() == []
    server.added = 2
    assert await losses.look() == ["dispatch"]
    assert await losses.look() == []
    server.added = 1
    losses.noticed()
    assert await losses.look() == []


async def test_a_server_that_lost_a_moment_has_the_stream_still() -> None:
    server = Server()
    losses = Losses(server, ["dispatch"])  # type: ignore[arg-type]
    await losses.look()
    server.run, server.added = b"b", 6
    assert await losses.look() == []
    server.added = 0
    assert await losses.look() == ["dispatch"], "and is watched on"
