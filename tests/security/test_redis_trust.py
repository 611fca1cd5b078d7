"""S52-S54, S56, F19: what Redis is trusted with, what it may hold, and the least it must allow."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from fakes.callers import calling
from fakes.configs import settings
from fakes.deliveries import make_job
from fakes.gateways import CONFIG, MANAGER, start_gateway
from fakes.pipelines import ScriptedStage, connected_client, forward, job_for, quick, raw_link, running_worker, spec
from fakes.proxy import Proxy
from fakes.servers import Server, start_server
from fakes.waiting import wait_until
from fakes.wires import AUTHORITY, tls_server

from pipeline.errors import InvalidRequest, TransportError
from pipeline.job import BATCH, LIVE, Frame, PromptRef, Reply, encode
from pipeline.stage import Delivery, Done, Fail, Outcome
from pipeline.transport import keyspace
from pipeline.transport.connection import Link
from pipeline.transport.deadletters import list_dead
from pipeline.transport.overview import read_overview

pytestmark = pytest.mark.anyio

QUICK = settings(transport=quick())
ROOT = Path(__file__).parents[2]
ODD = ["{x}", "a:b:*", "a\nb", "\0", "pm:{0}:dead", "x" * 1_000_000, "é", "' .. redis.call('FLUSHALL') .. '"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("trust")) as running:
        yield running


async def _flush(url: str) -> None:
    async with raw_link(url) as link:
        await link.run(("FLUSHALL",))


@pytest.fixture
def url(server: Server) -> str:
    anyio.run(_flush, server.url)
    return server.url


async def echo(delivery: Delivery) -> Outcome:
    return Done(delivery.body)


async def stream(delivery: Delivery) -> Outcome:
    await delivery.send(b"data: 1\n\n", content_type="text/event-stream")
    return Done()


async def refuse(_: Delivery) -> Outcome:
    return Fail(InvalidRequest("no"))


async def test_s52_nothing_a_client_or_an_operator_names_gets_into_the_name_of_a_key(url: str) -> None:
    names: set[str] = set()
    dispatch = ScriptedStage(echo)
    async with (
        raw_link(url) as link,
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("resolve", ScriptedStage(forward)), spec("dispatch", dispatch)),
    ):
        for odd in ODD:
            fields = {"tenant": odd, "model": odd, "endpoint": odd, "config": odd, "headers": {odd: odd}}
            job = job_for(client, prompt=PromptRef(id=odd, version=odd, label=odd), **fields)
            waiter = await client.submit(job, b"x" * 100_000)
            names |= {key.decode() for key in await link.run(("KEYS", "*"))}
            with anyio.fail_after(10):
                assert (await waiter.next()).reply.error is None
            names |= {key.decode() for key in await link.run(("KEYS", "*"))}
    assert len(dispatch.seen) == len(ODD)
    for name in names:
        assert re.fullmatch(r"pm:\{0\}:[a-z]+(:[\w.-]+){0,2}", name), name


GARBAGE: list[tuple[bytes | str, ...]] = [
    ("x", "y"),
    ("h", b"\xc1"),
    ("h", b"", "s", "-1", "b", b""),
    (
        "h",
        encode(make_job(stages_left=("dispatch",))),
        "r",
        keyspace.ADMITTED if hasattr(keyspace, "ADMITTED") else "x",
    ),
    ("h", encode({"v": 99, "id": "0-1"}), "b", b"{}"),
    ("b", b"z" * 10_000_000),
    ("h", "ünïcode".encode("latin-1"), "s", "1e9"),
]


async def test_f19_s53_s54_rubbish_in_every_key_stops_nobody_and_comes_to_rest_in_one_pass(url: str) -> None:
    chance = random.Random(54)
    dispatch = ScriptedStage(echo)
    async with raw_link(url) as link, connected_client(url, QUICK) as client:
        for stage in ("resolve", "dispatch"):
            for lane in (LIVE, BATCH):
                for fields in GARBAGE:
                    await link.run(("XADD", keyspace.jobs(stage, lane), "*", *fields))
                for _ in range(25):
                    entry = [chance.randbytes(chance.randint(0, 30)) for _ in range(2 * chance.randint(1, 4))]
                    await link.run(("XADD", keyspace.jobs(stage, lane), "*", *entry))
                await link.run(("ZADD", keyspace.delayed(stage, lane), 1, b"\xff", 2, "", 3, encode({"a": 1})))
        for _ in range(20):
            await link.run(("XADD", keyspace.CANCEL, "*", chance.randbytes(3), chance.randbytes(9)))
            reply = [
                part for name in (b"f", b"t", b"r", b"b") for part in (name, chance.randbytes(chance.randint(0, 20)))
            ]
            await link.run(("XADD", keyspace.replies(client.consumer), "*", *reply))
            await link.run(("ZADD", keyspace.CONSUMERS, 2**40, chance.randbytes(4)))
        async with running_worker(url, QUICK, spec("resolve", ScriptedStage(forward)), spec("dispatch", dispatch)):
            for _ in range(5):
                with anyio.fail_after(20):
                    waiter = await client.submit(job_for(client), b"good")
                    assert (await waiter.next()).body == b"good"

            async def rested() -> bool:
                lengths = [
                    await link.run((command, name))
                    for stage in ("resolve", "dispatch")
                    for lane in (LIVE, BATCH)
                    for command, name in (
                        ("XLEN", keyspace.jobs(stage, lane)),
                        ("ZCARD", keyspace.delayed(stage, lane)),
                        ("EXISTS", keyspace.held_bytes(stage, lane)),
                    )
                ]
                return not any(lengths)

            await wait_until(rested, timeout=20)
    assert len(dispatch.seen) == 5
    letters = await list_dead(url, 1000)
    assert len(letters) >= 4 * (len(GARBAGE) + 25 - 1)
    assert {letter.deliveries for letter in letters} == {1}


SQUATTERS: list[tuple[str, tuple[str, ...]]] = [
    ("bytes", ("SET", "x")),
    ("bytes", ("SET", "9999999999999")),
    ("bytes", ("SET", str(2**63 - 1))),
    ("bytes", ("LPUSH", "1")),
    ("admitted", ("SET", "x")),
    ("admitted", ("LPUSH", "1")),
    ("replies", ("SET", "x")),
    ("dead", ("LPUSH", "1")),
]


@pytest.mark.parametrize(("family", "command"), SQUATTERS, ids=lambda value: "-".join(value)[:30])
async def test_f19_s53_a_value_in_the_place_of_ours_ends_no_process_and_is_written_over(
    url: str, family: str, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.transport.client.BEAT", 0.05)
    dispatch = ScriptedStage(echo)
    async with (
        raw_link(url) as link,
        connected_client(url, QUICK) as client,
        running_worker(url, QUICK, spec("resolve", ScriptedStage(forward)), spec("dispatch", dispatch)),
    ):
        names = {
            "bytes": keyspace.held_bytes("dispatch", LIVE),
            "admitted": keyspace.admitted(client.consumer),
            "replies": keyspace.replies(client.consumer),
            "dead": keyspace.DEAD,
        }
        await link.run(("DEL", names[family]))
        await link.run((command[0], names[family], *command[1:]))
        up = keyspace.up(client.consumer)

        async def registered_again() -> bool:
            return int(await link.run(("PTTL", up))) > 10_000

        for _ in range(2):  # a whole beat of the ingress, after the one that may be under way
            await link.run(("PEXPIRE", up, 5_000))
            await wait_until(registered_again, timeout=10)
        assert (await read_overview(url, ["resolve", "dispatch"])).processes
        waiter = await client.submit(job_for(client), b"good")
        with anyio.fail_after(10):
            assert (await waiter.next()).body == b"good"
    assert len(dispatch.seen) == 1


async def test_s54_a_forged_reply_or_frame_for_nobody_is_dropped_and_one_for_a_waiter_is_believed(url: str) -> None:
    """Entries are not signed: who can write to the server can answer. SECURITY.md says so."""
    async with raw_link(url) as link, connected_client(url, QUICK) as client:
        waiter = await client.submit(job_for(client, stages_left=("dispatch",)), b"{}")
        stream_of = keyspace.replies(client.consumer)
        for forged in ("0-" + "0" * 32, ""):
            await link.run(("XADD", stream_of, "*", "t", encode(Reply(id=forged)), "b", b"forged"))
            await link.run(("XADD", stream_of, "*", "f", encode([Frame(forged, "run", 0, b"forged")])))
        with anyio.move_on_after(0.3):
            await waiter.next()
            raise AssertionError("somebody else's answer was taken")
        await link.run(("XADD", stream_of, "*", "t", encode(Reply(id=waiter.id)), "b", b"forged"))
        with anyio.fail_after(5):
            assert (await waiter.next()).body == b"forged"


# S56: the least the server must allow


def documented_commands() -> list[str]:
    """Return what docs/operations.md says the user of a gateway needs."""
    paragraph = re.search(r"^\*\*Commands\.\*\*.*?\n\n", (ROOT / "docs" / "operations.md").read_text(), re.M | re.S)
    assert paragraph is not None
    return [f"+{name.lower().replace(' ', '|')}" for name in re.findall(r"`([A-Z]+(?: [A-Z]+)?)`", paragraph[0])]


async def allow_least(server: Server) -> str:
    """Make a user who may do what is documented, and return the URL that is his."""
    async with raw_link(server.url) as link:
        rules = ("reset", "on", ">a-pass:word@", "~pm:*", "-@all", *documented_commands())
        await link.run(("ACL", "SETUSER", "gateway", *rules))
        await link.run(("ACL", "LOG", "RESET"))
        await link.run(("CONFIG", "RESETSTAT"))
    return server.url.replace("unix://", "unix://gateway:a-pass%3Aword%40@")


async def denied(server: Server) -> list[str]:
    """Return what the user was refused."""
    async with raw_link(server.url) as link:
        log = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in await link.run(("ACL", "LOG"))]
    return [f"{entry[b'reason'].decode()} {entry[b'object'].decode()}" for entry in log]


async def test_s56_a_user_limited_to_our_prefix_and_commands_is_enough_for_all_that_happens(
    server: Server, url: str
) -> None:
    limited = await allow_least(server)
    for handler in (echo, stream, refuse):
        async with (
            connected_client(limited, QUICK) as client,
            running_worker(
                limited, QUICK, spec("resolve", ScriptedStage(forward)), spec("dispatch", ScriptedStage(handler))
            ),
        ):
            waiter = await client.submit(job_for(client), b"x" * 100_000)
            with anyio.fail_after(10):
                while isinstance(await waiter.next(), Frame):
                    pass
            left = await client.submit(job_for(client), b"{}")
            left.cancel()
            await client.process_metrics()
    assert await list_dead(limited) == ()
    assert await denied(server) == []


@pytest.mark.processes
async def test_s56_a_whole_gateway_runs_as_that_user_and_the_server_may_hold_other_things(
    server: Server, url: str, tmp_path: Path
) -> None:
    limited = await allow_least(server)
    async with raw_link(url) as link:
        await link.run(("SET", "other", "theirs"))
    (tmp_path / "mine.py").write_text(MANAGER)
    config = f"{CONFIG}litellm_settings: {{callbacks: mine.mine}}\n"
    with start_gateway(tmp_path, config=config, variables={"REDIS_URL": limited}) as gateway:
        async with calling(gateway.url) as caller:
            for fields in ({}, {"prompt_id": "p"}, {"stream": True}):
                assert (await caller.chat(**fields)).status == 200
            assert (await caller.client.get("/metrics")).status_code == 200
        assert gateway.stop() == 0
        assert "a-pass" not in gateway.log
    assert await denied(server) == []
    async with raw_link(url) as link:
        assert await link.run(("GET", "other")) == b"theirs"


async def test_s56_another_prefix_is_out_of_reach_for_that_user(server: Server, url: str) -> None:
    async with raw_link(await allow_least(server)) as link:
        for command in (
            ("GET", "other"),
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
            ("EVAL", "return 1", 0),
        ):
            with pytest.raises(TransportError):
                await link.run(command)
    assert len(await denied(server)) == 5


@asynccontextmanager
async def tls_to(url: str) -> AsyncIterator[int]:
    """Speak TLS before a server, with a certificate for `localhost` that only the tests' authority signed."""
    proxy = Proxy(url.removeprefix("unix://"))
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls_server())
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        proxy.cut()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("host", "query", "works"),
    [
        ("localhost", f"?ssl_ca_certs={AUTHORITY}", True),
        ("localhost", "", False),
        ("127.0.0.1", f"?ssl_ca_certs={AUTHORITY}", False),
    ],
    ids=["known", "unknown authority", "another name"],
)
async def test_s56_a_server_is_believed_only_with_a_certificate_for_its_name(
    url: str, host: str, query: str, works: bool
) -> None:
    async with tls_to(url) as port:
        link = Link(f"rediss://{host}:{port}/0{query}", "test-tls")
        try:
            if works:
                assert await link.run(("PING",)) == b"PONG"
            else:
                with pytest.raises(TransportError) as caught:
                    await link.run(("PING",))
                assert "certificate" in str(caught.value.__cause__).lower()
        finally:
            await link.close()
