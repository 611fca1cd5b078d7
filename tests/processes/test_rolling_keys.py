"""Processes that run on their own: SIGHUP changes their keys in place, and old and new ones run side by side."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx2
import pytest
from fakes.callers import calling
from fakes.gateways import environment
from fakes.loads import called_twice, load, slow
from fakes.servers import start_server
from fakes.upstream import ScriptedUpstream, run_upstream_in_thread
from fakes.waiting import wait_until

from pipeline.transport.overview import read_overview

pytestmark = [pytest.mark.processes, pytest.mark.anyio]


class Processes:
    """An ingress and a dispatch worker, as another process manager would run them."""

    def __init__(self, directory: Path, upstream: ScriptedUpstream, redis_url: str) -> None:
        self.upstream = upstream
        self.redis_url = redis_url
        self.running: list[subprocess.Popen[bytes]] = []
        self.url = ""
        self._directory = directory

    @property
    def log(self) -> str:
        return (self._directory / "output.log").read_text()

    def write(self, *clients: str, provider: str = "one", more: str = "") -> None:
        """Write a configuration with a key for each of `clients`, and one for the provider."""
        keys = ", ".join(f"{name}: os.environ/{name.upper()}" for name in clients)
        (self._directory / "config.yaml").write_text(
            "model_list:\n"
            "  - model_name: gpt-4\n"
            f"    litellm_params: {{model: openai/gpt-4, api_base: '{self.upstream.url}', api_key: sk-{provider}}}\n"
            f"{more}"
            "environment_variables:\n" + "".join(f"  {name.upper()}: sk-of-{name}\n" for name in clients) + ""
            f"promptmill_settings: {{keys: {{{keys}}}}}\n"
        )

    def hang_up(self) -> int:
        """Send SIGHUP to both, and return how much of the log there is."""
        length = len(self.log)
        for process in self.running:
            process.send_signal(signal.SIGHUP)
        return length

    async def both_say(self, event: str, since: int) -> list[dict[str, object]]:
        """Wait until both have logged the event, and return it."""
        found: list[dict[str, object]] = []

        def said() -> bool:
            lines = [line for line in self.log[since:].splitlines() if line.endswith("}")]
            found[:] = [fields for fields in map(json.loads, lines) if fields["event"] == event]
            return len(found) == 2

        await wait_until(said, timeout=10)
        return found

    def sent_keys(self) -> set[str]:
        return {received.headers["authorization"] for received in self.upstream.requests}

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a process on the configuration as it is now."""
        variables = environment(
            traced=True, REDIS_URL=self.redis_url, PROMPTMILL_CONFIG=str(self._directory / "config.yaml")
        )
        command = [sys.executable, "-P", "-m", "pipeline", *words]
        with (self._directory / "output.log").open("ab") as output:
            self.running.append(subprocess.Popen(command, env=variables, stdout=output, stderr=output))
        return self.running[-1]

    async def serve(self) -> None:
        """Start an ingress at `url`, and wait until it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.run("ingress", "--port", str(port))

        async def ready() -> bool:
            try:
                async with calling(self.url) as caller:
                    return (await caller.client.get("/health/readiness")).status_code == 200
            except httpx2.TransportError:
                return False

        await wait_until(ready, timeout=30, every=0.05)


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    with run_upstream_in_thread() as upstream, start_server(tmp_path / "redis") as server:
        upstream.default = slow
        found = Processes(tmp_path, upstream, server.url)
        found.write("stays", "goes")
        try:
            found.run("worker", "dispatch")
            await found.serve()
            yield found
        finally:
            for process in found.running:
                process.kill()
                process.wait()


async def test_keys_change_in_place_and_no_request_with_another_key_fails(processes: Processes) -> None:
    async def status(name: str) -> int:
        async with calling(processes.url, f"sk-of-{name}") as caller:
            return (await caller.chat(f"{name} asks")).status

    async with load(processes.url, key="sk-of-stays") as clients:
        await clients.goes_on()
        assert (await status("goes"), await status("comes")) == (200, 401)
        processes.write("stays", "comes", provider="two")
        since = processes.hang_up()
        said = await processes.both_say("keys reloaded", since)
        assert [event["needs_restart"] for event in said] == [[], []]
        assert (await status("goes"), await status("comes")) == (401, 200)
        processes.upstream.requests.clear()
        await clients.goes_on()
    assert processes.sent_keys() == {"Bearer sk-two"}
    assert not called_twice(processes.upstream)
    assert [process.poll() for process in processes.running] == [None, None]
    assert "sk-" not in processes.log


async def test_what_cannot_be_used_or_needs_a_restart_is_told_and_changes_nothing(
    processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("model_list: [")
    await processes.both_say("configuration not reloaded", processes.hang_up())
    processes.write("stays", provider="two", more="  - model_name: new\n    litellm_params: {model: echo/echo}\n")
    said = await processes.both_say("keys reloaded", processes.hang_up())
    assert [event["needs_restart"] for event in said] == [["model_list"], ["model_list"]]
    async with calling(processes.url, "sk-of-stays") as caller:
        assert (await caller.chat()).status == 200
        assert (await caller.chat(model="new")).status == 404
    assert processes.sent_keys() == {"Bearer sk-two"}
    for process in processes.running:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(20) for process in processes.running] == [0, 0]


async def test_a_job_of_a_newer_ingress_waits_for_a_newer_worker(processes: Processes) -> None:
    processes.write("stays", more="  - model_name: new\n    litellm_params: {model: echo/echo}\n")
    await processes.serve()
    async with calling(processes.url, "sk-of-stays") as caller, anyio.create_task_group() as tasks:

        async def ask() -> None:
            got = await caller.chat("hi", model="new")
            assert got.status == 200, (got.content, processes.log)
            assert got.text == "user: hi"

        tasks.start_soon(ask)

        async def put_off() -> bool:
            stages = (await read_overview(processes.redis_url, ("dispatch",))).stages
            return any(stage.delayed for stage in stages)

        await wait_until(put_off, timeout=20)
        assert (await caller.chat("meanwhile")).status == 200
        processes.run("worker", "dispatch")
