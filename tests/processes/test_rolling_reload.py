"""SIGHUP to `promptmill up`: every process is replaced by one of the new configuration, and nobody notices."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx2
import pytest
from fakes.callers import calling, drained, parts
from fakes.gateways import Gateway, alive, model_list, start_gateway
from fakes.loads import called_twice, load, slow
from fakes.upstream import ScriptedUpstream
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]


@pytest.fixture(scope="module")
def upstream(upstream: ScriptedUpstream) -> ScriptedUpstream:
    upstream.default = slow
    return upstream


@pytest.fixture(autouse=True)
def no_calls_so_far(upstream: ScriptedUpstream) -> None:
    upstream.requests.clear()


def reload(gateway: Gateway, directory: Path, config: str) -> None:
    (directory / "config.yaml").write_text(config)
    gateway.process.send_signal(signal.SIGHUP)


async def test_a_changed_model_list_is_served_without_a_failed_request(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    with start_gateway(tmp_path, config=model_list(upstream.url, "gpt-4", "leaving"), traced=True) as gateway:
        before = parts(gateway)
        async with load(gateway.url) as clients, calling(gateway.url) as caller:
            await clients.goes_on()
            assert (await caller.chat("x", model="leaving")).status == 200
            assert (await caller.chat("x", model="coming")).status == 404
            reload(gateway, tmp_path, model_list(upstream.url, "gpt-4", "coming"))
            await wait_until(lambda: "reloaded:" in gateway.log, timeout=40)
            await clients.goes_on()
            assert (await caller.chat("x", model="leaving")).status == 404
            assert (await caller.chat("y", model="coming")).status == 200
        assert "reloaded: models coming -> openai/coming" in gateway.log
        assert "no more: models leaving -> openai/leaving" in gateway.log
        assert '"needs_restart":[]' in gateway.log, "its process is about to be replaced"
        assert not set(called_twice(upstream))
        after = parts(gateway)
        assert after["server"] == before["server"]
        assert not {before[part] for part in ("ingress", "resolve", "dispatch")} & set(after.values())
        assert len(gateway.children()) == 7
        await wait_until(lambda: drained(tmp_path), timeout=20, every=0.1)
        assert gateway.stop(signal.SIGTERM) == 0


async def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    good = model_list(upstream.url, "gpt-4")
    with start_gateway(tmp_path, config=good, traced=True) as gateway:
        before = gateway.children()
        for bad, words in (
            ("model_list: [", "config.yaml:"),
            (good + "litellm_settings: {num_retries: many}\n", "num_retries"),
            (good + "litellm_settings: {callbacks: nothing.there}\n", "nothing"),
            (good + f"litellm_settings: {{callbacks: {'m' * 300}.there}}\n", "File name too long"),
        ):
            seen = len(gateway.log)

            def told(seen: int = seen) -> bool:
                return "not reloaded, all goes on as it was: " in gateway.log[seen:]

            reload(gateway, tmp_path, bad)
            await wait_until(told, timeout=20)
            assert words in gateway.log[seen:]
            assert gateway.children() == before
        assert gateway.ask() == "hi"
        crashed = gateway.child("worker dispatch")
        os.kill(crashed, signal.SIGKILL)  # what is started again runs on what was good, not on the file
        await wait_until(lambda: gateway.child("worker dispatch") not in (0, crashed), timeout=20)
        assert gateway.ask() == "hi"


async def test_what_only_a_restart_changes_is_told_and_kept(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    with start_gateway(tmp_path, config=model_list(upstream.url, "gpt-4"), traced=True) as gateway:
        changed = "promptmill_settings: {data_dir: elsewhere, redis_url: 'redis://elsewhere', persistence: always}\n"
        reload(gateway, tmp_path, model_list(upstream.url, "gpt-4", "second") + changed)
        await wait_until(lambda: "| reloading" in gateway.log)
        gateway.process.send_signal(signal.SIGHUP)  # during the first: one more follows
        await wait_until(lambda: gateway.log.count("| reloaded") == 2, timeout=60)
        assert gateway.log.count("only a restart changes data_dir, redis_url, persistence") == 2
        assert gateway.log.count("| reloaded: models second") == 1
        assert not (tmp_path / "elsewhere").exists()
        assert gateway.ask(model="second") == "hi"


async def test_sigterm_during_a_reload_finishes_what_is_in_flight_and_leaves_nothing(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    with start_gateway(tmp_path, config=model_list(upstream.url, "gpt-4"), traced=True) as gateway:
        async with calling(gateway.url) as caller, caller.stream("hi") as response:
            gateway.process.send_signal(signal.SIGHUP)
            await wait_until(lambda: len(gateway.children()) > 4, timeout=20)
            children = gateway.children()
            gateway.process.send_signal(signal.SIGTERM)
            assert b"[DONE]" in await response.aread()
        await wait_until(lambda: gateway.process.poll() is not None, timeout=20)
        assert gateway.process.returncode == 0
        assert not any(alive(pid) for pid in children)
        assert "Traceback" not in gateway.log


async def test_keys_come_and_go_by_a_reload_and_nobody_elses_request_fails(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    def keyed(*names: str) -> str:
        keys = ", ".join(f"{name}: sk-of-{name}" for name in names)
        return model_list(upstream.url, "gpt-4") + f"promptmill_settings: {{keys: {{{keys}}}}}\n"

    async def refused(url: str, name: str) -> bool:
        async with calling(url, f"sk-of-{name}") as caller:
            return (await caller.chat()).status == 401

    with start_gateway(tmp_path, config=keyed("stays", "goes"), traced=True) as gateway:
        async with load(gateway.url, key="sk-of-stays") as clients:
            await clients.goes_on()
            assert not await refused(gateway.url, "goes")
            reload(gateway, tmp_path, keyed("stays", "comes"))
            await wait_until(lambda: refused(gateway.url, "goes"), timeout=5)  # before the workers have drained
            assert not await refused(gateway.url, "comes")
            await wait_until(lambda: "reloaded:" in gateway.log, timeout=40)
            await clients.goes_on()
            assert await refused(gateway.url, "goes")
        assert "sk-of-" not in gateway.log


async def test_an_address_of_others_is_not_left_without_a_key(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    open_to_all = model_list(upstream.url, "gpt-4")
    keyed = open_to_all + "general_settings: {master_key: sk-a-long-and-random-one}\n"
    with start_gateway(tmp_path, "--host", "0.0.0.0", config=keyed, traced=True) as gateway:
        reload(gateway, tmp_path, open_to_all)
        await wait_until(lambda: "not reloaded, all goes on as it was: no key is configured" in gateway.log, timeout=20)
        assert httpx2.get(f"{gateway.url}/v1/models", trust_env=False).status_code == 401


async def test_a_process_that_does_not_start_with_the_new_configuration_leaves_the_old_one_at_work(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    procfile = "ingress: promptmill ingress\nresolve: promptmill worker resolve\ndispatch: promptmill worker dispatch\n"
    (tmp_path / "Procfile").write_text(procfile)
    with start_gateway(tmp_path, config=model_list(upstream.url, "gpt-4"), traced=True) as gateway:
        before = parts(gateway)
        (tmp_path / "Procfile").write_text(procfile.replace("worker dispatch", "worker nowhere"))
        gateway.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: "reloaded in part, the rest goes on as it was: dispatch.1" in gateway.log, timeout=40)
        after = parts(gateway)
        assert (after["dispatch"], after["ingress"]) == (before["dispatch"], before["ingress"])
        assert gateway.ask() == "hi"
        os.kill(after["dispatch"], signal.SIGKILL)
        await wait_until(lambda: parts(gateway).get("dispatch") not in (None, before["dispatch"]), timeout=20)
