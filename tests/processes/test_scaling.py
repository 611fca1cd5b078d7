"""More processes of each kind, under `up` and under honcho: the work spreads over all of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from fakes.callers import calling
from fakes.gateways import MANAGER, alive, environment, model_list, start_gateway
from fakes.servers import start_server
from fakes.upstream import Answer, Received, ScriptedUpstream, completion, raw, reply
from fakes.waiting import wait_until

from pipeline.transport.client import STAGES
from pipeline.transport.overview import read_overview

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

ROOT = Path(__file__).parents[2]
BATCHES = ("resolve-batch", "dispatch-batch", "feed")
COUNTS = {"resolve": 2, "dispatch": 3, "ingress": 2}
JOBS = re.compile(r'^promptmill_jobs_total\{(?=.*stage="(\w+)")(?=.*process="([^"]+)").*\} ([0-9.]+)$', re.MULTILINE)
REQUESTS = re.compile(
    r'^promptmill_requests_total\{(?=.*endpoint="chat.*")(?=.*process="([^"]+)").*\} ([0-9.]+)$', re.MULTILINE
)


def answer(received: Received) -> Answer:
    return raw(0.05, *reply(completion(received.json["messages"][0]["content"])).steps)


@pytest.fixture(scope="module")
def upstream(upstream: ScriptedUpstream) -> ScriptedUpstream:
    upstream.default = answer
    return upstream


def configuration(directory: Path, upstream: ScriptedUpstream) -> str:
    (directory / "mine.py").write_text(MANAGER)
    return (
        model_list(upstream.url) + "litellm_settings: {callbacks: mine.mine}\n"
        "promptmill_settings: {prompt_slots: 8, dispatch_slots: 8}\n"
    )


async def busy(url: str) -> dict[str, set[str]]:
    """Send a burst of requests and return, from the metrics, which processes of each kind have had work so far."""
    async with calling(url) as caller:  # connections of its own each time: ingress processes share by connection
        answers = await caller.gather(*({"text": str(n), "prompt_id": "p"} for n in range(60)))
        assert [a.status for a in answers] == [200] * 60
        assert {a.text for a in answers} == {"from mine"}
        text = (await caller.client.get("/metrics")).text
    found: dict[str, set[str]] = defaultdict(set)
    for stage, process, jobs in JOBS.findall(text):
        if float(jobs):
            found[stage].add(process)
    found["ingress"] = {process for process, requests in REQUESTS.findall(text) if float(requests)}
    return found


async def test_work_spreads_over_every_process_of_a_scaled_gateway(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    scales = [word for name, count in COUNTS.items() for word in ("--scale", f"{name}={count}")]
    with start_gateway(tmp_path, *scales, config=configuration(tmp_path, upstream)) as gateway:
        assert len(gateway.children()) == sum(COUNTS.values()) + len([*BATCHES, "server"])

        async def all_busy() -> bool:
            return {name: len(processes) for name, processes in (await busy(gateway.url)).items()} == COUNTS

        await wait_until(all_busy, timeout=20, every=0.2)
        assert gateway.stop(signal.SIGTERM) == 0


@contextmanager
def honcho(directory: Path, redis_url: str, config: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run the project's Procfile under honcho, and yield it and the URL of its ingress."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    variables = environment(REDIS_URL=redis_url, PROMPTMILL_CONFIG=str(config), PATH=path)
    scale = ",".join(f"{name}={count}" for name, count in {**COUNTS, "ingress": 1}.items())
    command = [sys.executable, "-m", "honcho", "-f", str(ROOT / "Procfile"), "-d", str(directory), "start"]
    with (directory / "honcho.log").open("wb") as output:
        process = subprocess.Popen(
            [*command, "-p", str(port), "-c", scale], cwd=directory, env=variables, stdout=output, stderr=output
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


async def test_the_same_procfile_runs_under_honcho_with_a_redis_of_its_own(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(configuration(tmp_path, upstream))
    with start_server(tmp_path / "redis") as server, honcho(tmp_path, server.url, config) as (process, url):

        async def up() -> bool:
            try:
                async with calling(url) as caller:
                    ready = (await caller.client.get("/health/readiness")).status_code == 200
            except httpx2.TransportError:
                return False
            return ready and len((await read_overview(server.url, STAGES)).processes) == 6 + len(BATCHES)

        log = tmp_path / "honcho.log"
        try:
            await wait_until(up, timeout=30, every=0.1)
        except AssertionError:
            raise AssertionError(log.read_text()) from None

        async def all_busy() -> bool:
            found = {name: len(processes) for name, processes in (await busy(url)).items()}
            return found == {**COUNTS, "ingress": 1}

        await wait_until(all_busy, timeout=20, every=0.2)
        pids = [p.pid for p in (await read_overview(server.url, STAGES)).processes]
        process.terminate()
        process.wait(20)
        assert not any(alive(pid) for pid in pids)
        assert not (await read_overview(server.url, STAGES)).processes, "they took themselves off the registry"
        assert "Traceback" not in log.read_text()
