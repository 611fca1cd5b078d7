"""The command as a process: what ends its start, what it serves without Redis, how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import click.testing
import httpx2
import pytest
from fakes.transport import FakeTransport
from fakes.waiting import wait_until

from ingress import command
from pipeline.listener import listen
from pipeline.settings import Settings
from pipeline.startup import Source

pytestmark = pytest.mark.anyio
CONFIG = """
model_list:
  - model_name: gpt-4
    litellm_params: {model: openai/gpt-4, api_key: sk-upstream}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROMPTMILL_MASTER_KEY", "LITELLM_MASTER_KEY", "PROMPTMILL_SOCKET_FD", "PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")


def refused(*arguments: str) -> str:
    result = click.testing.CliRunner().invoke(command.ingress, arguments)
    assert result.exit_code == 2, result.output
    return result.output


def test_an_address_of_others_without_a_key_ends_the_start(config: str) -> None:
    assert "PROMPTMILL_MASTER_KEY" in refused("-c", config, "--host", "0.0.0.0", "--port", "0")


def test_a_published_key_is_no_key(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_MASTER_KEY", "sk-1234")
    assert "published example" in refused("-c", config, "--host", "0.0.0.0", "--port", "0")


def test_a_busy_port_ends_the_start(config: str) -> None:
    with listen("127.0.0.1", 0) as taken:
        assert "is in use" in refused("-c", config, "--port", str(taken.getsockname()[1]))


def test_the_port_comes_from_the_environment_too(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as taken:
        monkeypatch.setenv("PORT", str(taken.getsockname()[1]))
        assert "is in use" in refused("-c", config)


def test_an_inherited_socket_is_judged_by_its_own_address(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = listen("0.0.0.0", 0)
    monkeypatch.setenv("PROMPTMILL_SOCKET_FD", str(bound.detach()))
    assert "no key is configured, and 0.0.0.0" in refused("-c", config)


def test_what_is_served_is_what_was_loaded(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    @asynccontextmanager
    async def open_client(settings: Settings, url: str) -> AsyncIterator[FakeTransport]:
        seen.append(url)
        yield FakeTransport()

    async def serve(settings: Settings, transport: FakeTransport, bound: Any, source: Source) -> None:
        seen.extend([settings.deployments[0].model_name, type(transport), bound.getsockname()[0]])
        bound.close()

    monkeypatch.setattr(command, "open_client", open_client)
    monkeypatch.setattr(command, "serve", serve)
    result = click.testing.CliRunner().invoke(command.ingress, ["-c", config, "--port", "0", "--detailed_debug"])
    assert result.exit_code == 0, result.output
    assert seen == ["redis://127.0.0.1:1", "gpt-4", FakeTransport, "127.0.0.1"]


@contextmanager
def process(config: str, port_holder: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command on an inherited socket, as `up` does."""
    fd = port_holder.fileno()
    started = subprocess.Popen(
        [sys.executable, "-c", "from ingress.command import ingress; ingress()", "-c", config],
        env={**os.environ, "PROMPTMILL_SOCKET_FD": str(fd)},
        pass_fds=[fd],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with started:
        try:
            yield started
        finally:
            started.kill()


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_without_redis_lives_is_not_ready_and_stops_with_status_0(config: str, number: int) -> None:
    with listen("127.0.0.1", 0) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with process(config, bound) as running:
            async with httpx2.AsyncClient(base_url=url) as client:

                async def alive() -> bool:
                    try:
                        return (await client.get("/health/liveness")).json() == "I'm alive!"
                    except httpx2.HTTPError:
                        return False

                await wait_until(alive, timeout=20, every=0.05)
                response = await client.get("/health/readiness")
                assert (response.status_code, response.json()["redis"]) == (503, "not connected")
                body = {"model": "gpt-4", "messages": []}
                response = await client.post("/v1/chat/completions", json=body)
                assert (response.status_code, response.json()["error"]["code"]) == (503, "redis_unavailable")
            running.send_signal(number)
            _, errors = await anyio.to_thread.run_sync(running.communicate)
        assert running.returncode == 0, errors.decode()
        assert b'"event":"ingress drained"' in errors
        assert b"Traceback" not in errors
