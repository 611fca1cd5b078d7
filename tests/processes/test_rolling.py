"""Restarting any one process under load, by SIGTERM: nobody's request fails, and no provider is called twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.callers import drained, parts
from fakes.gateways import MANAGER, Gateway, alive, start_gateway
from fakes.loads import called_twice, load, slow
from fakes.upstream import ScriptedUpstream, run_upstream_in_thread
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with run_upstream_in_thread() as running:
        running.default = slow
        yield running


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rolling")


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(MANAGER.replace('{"role": "system", "content": "from mine"}, ', ""))
    config = (
        "model_list:\n"
        "  - model_name: gpt-4\n"
        f"    litellm_params: {{model: openai/gpt-4, api_base: '{upstream.url}', api_key: sk-upstream}}\n"
        "litellm_settings: {callbacks: mine.mine}\n"
    )
    with start_gateway(directory, config=config) as running:
        yield running


@pytest.fixture(autouse=True)
def no_calls_so_far(upstream: ScriptedUpstream) -> None:
    upstream.requests.clear()


@pytest.mark.parametrize("part", ["ingress", "resolve", "dispatch"])
async def test_a_process_that_is_told_to_end_under_load_is_replaced_and_nobody_notices(
    gateway: Gateway, directory: Path, upstream: ScriptedUpstream, part: str
) -> None:
    before = parts(gateway)
    async with load(gateway.url, prompt_id="p") as clients:
        await clients.goes_on()
        os.kill(before[part], signal.SIGTERM)
        await wait_until(lambda: not alive(before[part]), timeout=20)
        await wait_until(lambda: parts(gateway).get(part), timeout=20)
        await clients.goes_on()
    assert not called_twice(upstream)
    assert f"{part}.1" in gateway.log
    assert "ended with status 0; starting it again" in gateway.log
    assert {p: pid for p, pid in parts(gateway).items() if p != part} == {
        p: pid for p, pid in before.items() if p != part
    }
    await wait_until(lambda: drained(directory), timeout=20, every=0.1)
