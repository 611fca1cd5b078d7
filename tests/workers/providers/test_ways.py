"""The ways to providers that are not a plain connection: TLS, and proxies named by the environment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.request import getproxies_environment

import anyio
import pytest
from fakes.waiting import wait_until
from fakes.wires import AUTHORITY, Wire, answering, listen, proxying

from pipeline.errors import ModelDisabled, UpstreamUnavailable
from pipeline.settings import DispatchSettings
from workers.providers._dialect import UpstreamRequest
from workers.providers._http import Sender

pytestmark = pytest.mark.anyio

Asked = list[tuple[str, dict[str, str]]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in getproxies_environment():
        for variable in (f"{name}_proxy", f"{name}_proxy".upper()):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(AUTHORITY))


@contextlib.asynccontextmanager
async def sending() -> AsyncIterator[Sender]:
    async with Sender(DispatchSettings(connect_timeout=5)) as sender:
        yield sender


def to(port: int, host: str = "localhost", scheme: str = "https") -> UpstreamRequest:
    return UpstreamRequest("POST", f"{scheme}://{host}:{port}/v1/x", {"Authorization": "Bearer sk"}, b"{}")


async def refused(port: int, host: str = "localhost", scheme: str = "https") -> UpstreamUnavailable:
    async with sending() as sender:
        with pytest.raises(UpstreamUnavailable) as caught:
            await sender.call(to(port, host, scheme), 5)
        assert not sender._pool._shared.connections
    assert "localhost" not in caught.value.message
    return caught.value


async def test_calls_over_tls_share_a_connection_that_agreed_on_http() -> None:
    agreed: list[str | None] = []

    async def serve(wire: Wire) -> None:
        agreed.append(wire.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answering(b"x" * 300_000)(wire)

    async with sending() as sender, listen(serve, tls=True) as wires:
        for _ in range(2):
            assert (await sender.call(to(wires.port), 5)).body == b"x" * 300_000
        async with sender.stream(to(wires.port), between=5, total=5) as stream:
            while await stream.receive() is not None:
                pass
    assert wires.accepted == 1
    assert agreed == ["http/1.1"]


async def test_connections_share_what_is_known_of_certificates() -> None:
    async with sending() as sender, listen(answering(), tls=True) as wires:
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(sender.call, to(wires.port), 5)
        assert wires.accepted == 2
        assert len({id(sender._pool._shared.context()) for _ in range(2)}) == 1


async def test_a_tls_call_that_is_left_closes_its_connection_at_once() -> None:
    heard = anyio.Event()

    async def serve(wire: Wire) -> None:
        await wire.request()
        heard.set()

    async with sending() as sender, listen(serve, tls=True) as wires:
        async with anyio.create_task_group() as group:
            group.start_soon(sender.call, to(wires.port), 30)
            await heard.wait()
            group.cancel_scope.cancel()
        await wait_until(lambda: wires.closed == 1, timeout=1)


async def test_a_certificate_of_nobody_we_trust_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with listen(answering(), tls=True) as wires:
        error = await refused(wires.port)
    assert "certificate is not trusted" in error.message
    assert "SSL_CERT_FILE" in error.hint


async def test_a_certificate_for_another_host_is_refused() -> None:
    async with listen(answering(), tls=True) as wires:
        error = await refused(wires.port, "127.0.0.1")
    assert "for another host" in error.message


async def test_a_host_that_speaks_no_tls_is_said_to() -> None:
    async def serve(wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listen(serve) as wires:
        error = await refused(wires.port)
    assert "no TLS connection" in error.message


async def test_a_host_that_leaves_during_the_handshake_is_unavailable() -> None:
    async def serve(wire: Wire) -> None:
        wire.writer.close()

    async with listen(serve) as wires:
        assert (await refused(wires.port)).code == "upstream_unavailable"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_a_plain_call_asks_its_proxy_for_the_whole_address(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    asked: Asked = []
    async with listen(proxying(asked)) as proxy:
        monkeypatch.setenv(variable, f"http://us%40er:pass@127.0.0.1:{proxy.port}")
        async with sending() as sender:
            assert (await sender.call(to(80, "provider.invalid", "http"), 5)).body == b"proxy"
    (first, headers) = asked[0]
    assert first == "POST http://provider.invalid/v1/x HTTP/1.1"
    assert headers["host"] == "provider.invalid"
    assert headers["proxy-authorization"] == "Basic dXNAZXI6cGFzcw=="
    assert headers["authorization"] == "Bearer sk"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_a_tls_call_goes_through_a_tunnel_that_hides_it(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    asked: Asked = []
    async with listen(proxying(asked)) as proxy, listen(answering(b"far"), tls=True) as wires:
        monkeypatch.setenv(variable, f"user:pass@127.0.0.1:{proxy.port}")
        async with sending() as sender:
            for _ in range(2):
                assert (await sender.call(to(wires.port), 5)).body == b"far"
        assert wires.accepted == 1
    assert asked == [
        (
            f"CONNECT localhost:{wires.port} HTTP/1.1",
            {"host": f"localhost:{wires.port}", "proxy-authorization": "Basic dXNlcjpwYXNz"},
        )
    ]


async def test_a_proxy_may_answer_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 40")
        await asyncio.sleep(0.02)  # two reads, not one
        await wire.send(b"3 Forbidden\r\n\r\n")

    async with listen(serve) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert "with 403" in (await refused(443)).message


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "refused the way to the provider with 407"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nsurplus", "refused the way"),
        (b"x" * 20_000, "not HTTP"),
        (b"", "closed the connection"),
    ],
)
async def test_a_proxy_that_refuses_is_unavailable(monkeypatch: pytest.MonkeyPatch, verdict: bytes, words: str) -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(verdict)
        wire.writer.close()

    async with listen(serve) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        error = await refused(443)
        assert words in error.message
        assert "HTTPS_PROXY" in error.hint


async def test_a_certificate_is_verified_through_a_tunnel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with listen(proxying([])) as proxy, listen(answering(), tls=True) as wires:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert "not trusted" in (await refused(wires.port)).message


async def test_a_call_left_while_the_proxy_is_asked_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()

    async with listen(serve) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        async with sending() as sender:
            with anyio.move_on_after(0.1) as scope:
                await sender.call(to(443), 30)
        assert scope.cancelled_caught
        await wait_until(lambda: proxy.closed == 1, timeout=1)


async def test_a_proxy_that_is_not_there_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    for scheme in ("http", "https"):
        assert "through the proxy" in (await refused(80, scheme=scheme)).message


@pytest.mark.parametrize("rule", ["localhost", "*", "other, localhost:{port}"])
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
async def test_a_host_in_no_proxy_is_called_directly(monkeypatch: pytest.MonkeyPatch, rule: str, variable: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with listen(answering(b"near")) as wires:
        monkeypatch.setenv(variable, rule.format(port=wires.port))
        async with sending() as sender:
            assert (await sender.call(to(wires.port, scheme="http"), 5)).body == b"near"


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "https://proxy:3128", "http://"])
async def test_a_proxy_that_cannot_be_used_disables_the_model(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    async with sending() as sender:
        with pytest.raises(ModelDisabled, match="proxy") as caught:
            await sender.call(to(443), 5)
    assert "HTTPS_PROXY" in caught.value.hint
