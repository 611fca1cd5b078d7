"""Killing any one process with 200 requests in flight: nobody's request is lost, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx2
import pytest
from fakes.callers import Caller, Response, calling, drained, overview, parts
from fakes.gateways import MANAGER, Gateway, alive, model_list, promptmill, start_gateway
from fakes.upstream import (
    Answer,
    Received,
    ScriptedUpstream,
    chunk,
    completion,
    raw,
    reply,
    sse,
)
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

REQUESTS = 200
UPSTREAM_TAKES = 0.7
RECOVERY = 10.0
"""Seconds in which the requests of a dead worker must be answered, beside the provider's own time."""

LATE = 1.0
"""Seconds by which a busy provider may notice a call after it was made."""

SHORT_HOOK = "import time\n" + MANAGER.replace("        return", "        time.sleep(0.3)\n        return")
"""Long enough that clients on a busy machine are not slower than the stage: it holds some of them when it is killed."""


def slow_answer(received: Received) -> Answer:
    """Answer after a while, with the text of the last message."""
    return raw(UPSTREAM_TAKES, *reply(completion(asked(received))).steps)


def asked(received: Received) -> str:
    return str(received.json["messages"][-1]["content"])


@pytest.fixture(scope="module")
def upstream(upstream: ScriptedUpstream) -> ScriptedUpstream:
    upstream.default = slow_answer
    return upstream


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(SHORT_HOOK)
    config = model_list(upstream.url) + "litellm_settings: {callbacks: mine.mine}\n"
    with start_gateway(directory, config=config) as running:
        yield running


@pytest.fixture(autouse=True)
def no_calls_so_far(upstream: ScriptedUpstream) -> None:
    upstream.requests.clear()


async def the_process_is_back(gateway: Gateway, directory: Path, part: str, before: dict[str, int]) -> None:
    """Wait until the killed process runs again and is registered, and the others are those they were."""
    await wait_until(lambda: parts(gateway).get(part) not in (None, before[part]), timeout=20, every=0.1)
    after = parts(gateway)
    assert {p: pid for p, pid in after.items() if p != part} == {p: pid for p, pid in before.items() if p != part}

    async def registered() -> bool:
        found = await overview(directory)
        return found is not None and {pid for p, pid in after.items() if p != "server"} <= {
            process.pid for process in found.processes
        }

    await wait_until(registered, timeout=20, every=0.1)


def claimed(gateway: Gateway, stage: str) -> int:
    """Return how many deliveries of a stage were taken over so far."""
    return sum('"event":"claimed"' in line and f'"stage":"{stage}"' in line for line in gateway.log.splitlines())


async def nothing_stays_behind(directory: Path) -> None:
    await wait_until(lambda: drained(directory), timeout=30, every=0.2)
    listed = promptmill("dead", "list", "--json", cwd=directory)
    assert (listed.returncode, listed.stdout) == (0, ""), listed


class Crowd:
    """Two hundred clients, and who of them was answered how."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.answers: dict[str, Response] = {}
        self.cut: list[str] = []

    async def ask(self, name: str) -> None:
        try:
            self.answers[name] = await self._caller.chat(name, prompt_id="p")
        except httpx2.TransportError:
            self.cut.append(name)


@pytest.mark.parametrize("part", ["resolve", "dispatch", "server"])
async def test_every_client_is_answered_whatever_process_is_killed(
    gateway: Gateway, directory: Path, upstream: ScriptedUpstream, part: str
) -> None:
    before = parts(gateway)
    async with calling(gateway.url) as caller:
        crowd = Crowd(caller)
        async with anyio.create_task_group() as tasks:
            for number in range(REQUESTS):
                tasks.start_soon(crowd.ask, f"{part} {number}")
            await wait_until(lambda: len(upstream.requests) >= 40, timeout=20)
            os.kill(before[part], signal.SIGKILL)
            killed = time.monotonic()
            await wait_until(lambda: not alive(before[part]))
    assert not crowd.cut
    assert Counter(answer.status for answer in crowd.answers.values()) == {200: REQUESTS}
    assert {name: answer.text for name, answer in crowd.answers.items()} == {name: name for name in crowd.answers}
    last = max(answer.at for answer in crowd.answers.values())
    print(f"{part}: the last answer came {last - killed:.1f} s after the kill")
    assert last - killed <= RECOVERY + UPSTREAM_TAKES
    calls = Counter(asked(received) for received in upstream.requests)
    again = {name for name, count in calls.items() if count > 1}
    first = {asked(received): received.time for received in reversed(upstream.requests)}
    assert max(calls.values()) <= 2
    assert all(first[name] < killed + LATE and crowd.answers[name].at > killed for name in again)
    assert part == "dispatch" or not again
    assert claimed(gateway, part) or part == "server", "the process held nothing when it was killed"
    await the_process_is_back(gateway, directory, part, before)
    await nothing_stays_behind(directory)


async def test_every_stream_of_a_killed_worker_ends_whole_or_in_worker_lost(
    gateway: Gateway, directory: Path, upstream: ScriptedUpstream
) -> None:
    streams: dict[str, bytes] = {}

    def some_late_some_begun(received: Received) -> Answer:
        first, *rest = sse(*(chunk(f"{word} ") for word in range(5)), between=0.1).steps
        return Answer((first, *rest) if int(asked(received)) % 2 else (UPSTREAM_TAKES, first, *rest))

    async def read(caller: Caller, name: str) -> None:
        streams[name] = await caller.read(name)

    before = parts(gateway)
    upstream.default = some_late_some_begun
    async with calling(gateway.url) as caller, anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(read, caller, str(number))
        await wait_until(lambda: len(upstream.requests) == 60, timeout=20)
        os.kill(before["dispatch"], signal.SIGKILL)
    upstream.default = slow_answer
    calls = Counter(asked(received) for received in upstream.requests)
    lost = {name for name, stream in streams.items() if b"worker_lost" in stream}
    assert len(streams) == 60
    assert lost
    assert all((b"[DONE]" in stream) is (name not in lost) for name, stream in streams.items())
    assert all(stream.count(b'4 "') == 1 for name, stream in streams.items() if name not in lost)
    assert all(calls[name] == 1 for name in lost)
    assert max(calls.values()) <= 2
    await the_process_is_back(gateway, directory, "dispatch", before)
    await nothing_stays_behind(directory)


async def test_a_killed_ingress_loses_its_clients_and_nobody_else(
    gateway: Gateway, directory: Path, upstream: ScriptedUpstream
) -> None:
    before = parts(gateway)
    async with calling(gateway.url) as caller:
        crowd = Crowd(caller)
        async with anyio.create_task_group() as tasks:
            for number in range(REQUESTS):
                tasks.start_soon(crowd.ask, f"ingress {number}")
            await wait_until(lambda: len(upstream.requests) >= 40, timeout=20)
            os.kill(before["ingress"], signal.SIGKILL)
        assert len(crowd.cut) + len(crowd.answers) == REQUESTS
        assert {answer.status for answer in crowd.answers.values()} <= {200}
        assert len(crowd.cut) > REQUESTS / 2
    async with calling(gateway.url) as caller:
        assert (await caller.chat("after", prompt_id="p")).text == "after"
    await the_process_is_back(gateway, directory, "ingress", before)
    await nothing_stays_behind(directory)
    assert max(Counter(asked(received) for received in upstream.requests).values()) == 1
