"""The supervisor's ways that whole gateways do not take in the other tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.configs import settings
from fakes.servers import start_server
from fakes.waiting import wait_until

from pipeline import lockfile, readiness, supervise
from pipeline.errors import ConfigurationError
from pipeline.first_screen import Ready
from pipeline.listener import address_for_clients, listen
from pipeline.plan import Plan
from pipeline.procfile import parse, scales
from pipeline.supervise import Supervisor

pytestmark = pytest.mark.anyio


def plan(directory: Path, procfile: str, redis_url: str, **fields: Any) -> Plan:
    processes = parse(procfile, "F")
    (directory / "config.yaml").write_text("model_list: []\n")
    return Plan(
        settings=settings(source=str(directory / "config.yaml"), data_dir=str(directory)),
        version="1.2.3",
        procfile=processes,
        counts=scales([], processes),
        environment=dict(os.environ),
        redis_url=redis_url,
        **fields,
    )


async def run(decided: Plan, directory: Path) -> int:
    with lockfile.hold(directory) as lock, listen("127.0.0.1", 0) as sock:
        return await Supervisor(decided, lambda: decided, sock, lock).run()


async def test_a_procfile_that_was_asked_for_may_run_anything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Ready] = []

    async def errand(ready: Ready) -> None:
        await wait_until(lambda: (tmp_path / "hello").exists())
        seen.append(ready)

    with start_server(tmp_path / "redis") as server:
        procfile = f'other: {sys.executable} -c \'open("{tmp_path}/hello", "w"); import time; time.sleep(60)\'\n'
        assert await run(plan(tmp_path, procfile, server.url, errand=errand), tmp_path) == 0
    assert seen[0].processes == {"other": 1}
    assert not (tmp_path / lockfile.NAME).exists()


async def test_a_start_that_takes_long_says_what_is_missing_and_can_be_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "SLOW", 0.05)
    decided = plan(tmp_path, "other: sleep 60\n", f"unix://{tmp_path}/none.sock")
    said = ""

    def waiting() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "not ready yet: Redis: " in said

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, decided, tmp_path)
        await wait_until(waiting)
        os.kill(os.getpid(), signal.SIGTERM)


async def test_a_configuration_that_the_disk_does_not_give_on_sighup_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = ""

    def unreadable() -> Plan:
        raise OSError("the disk fails")

    def has_said(words: str) -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return words in said

    with start_server(tmp_path / "redis") as server, listen("127.0.0.1", 0) as sock, lockfile.hold(tmp_path) as lock:
        supervisor = Supervisor(plan(tmp_path, "other: sleep 60\n", server.url), unreadable, sock, lock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.run)
            await wait_until(lambda: has_said("is starting"))
            os.kill(os.getpid(), signal.SIGHUP)
            await wait_until(lambda: has_said("not reloaded, all goes on as it was: the disk fails"))
            os.kill(os.getpid(), signal.SIGTERM)


async def test_an_address_of_redis_that_cannot_be_one_ends_the_start_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL cannot be used"):
        await run(plan(tmp_path, "other: sleep 60\n", "garbage"), tmp_path)
    assert not (tmp_path / lockfile.NAME).exists()


async def test_processes_that_do_not_register_are_named(tmp_path: Path) -> None:
    with start_server(tmp_path) as server, listen("127.0.0.1", 0) as sock:
        assert await readiness.missing({"resolve.1": 1}, None, server.url) == ["no sign of resolve.1 yet"]
        assert await readiness.missing({}, None, server.url) == []
        address = address_for_clients(sock)
        sock.close()
        assert await readiness.missing({}, address, server.url) == ["the ingress does not answer yet"]


async def test_an_ingress_that_takes_connections_and_says_nothing_is_not_ready(tmp_path: Path) -> None:
    with start_server(tmp_path) as server, listen("127.0.0.1", 0) as sock:
        missing = await readiness.missing({}, address_for_clients(sock), server.url)
        assert missing == ["the ingress does not answer yet"]
