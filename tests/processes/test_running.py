"""A gateway that runs: what it restarts, how it stops, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.gateways import CONFIG, MANAGER, Gateway, alive, promptmill, start_gateway
from fakes.servers import start_server
from fakes.waiting import wait_until

from pipeline.startup import AUTOGROUP, NICENESS

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

LIVE = ("ingress", "worker resolve --lane live", "worker dispatch --lane live")
BATCHES = ("worker --lane batch resolve", "worker --lane batch dispatch", "feed")
MASTER = "sk-a-long-and-random-one"

PEEKING = MANAGER.replace('"from mine"', "str([os.environ.get(n) for n in ('OPENAI_API_KEY', 'HELLO')])")
WAITING = MANAGER.replace(
    "        return", "        open(prompt_variables['started'], 'w').close()\n        time.sleep(0.5)\n        return"
)


def configured(directory: Path, manager: str) -> str:
    (directory / "mine.py").write_text(f"import os, time\n{manager}")
    return CONFIG + (
        "  - model_name: real\n"
        "    litellm_params: {model: openai/x, api_key: os.environ/OPENAI_API_KEY}\n"
        "litellm_settings: {callbacks: mine.mine}\n"
        "environment_variables: {HELLO: there}\n"
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    config = configured(directory, PEEKING)
    with start_gateway(
        directory, "--num_workers", "2", config=config, variables={"OPENAI_API_KEY": "sk-x"}, traced=True
    ) as running:
        running.directory = directory  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def directory(gateway: Gateway) -> Path:
    found: Path = gateway.directory  # type: ignore[attr-defined]
    return found


async def test_a_prompt_is_applied_by_a_process_that_does_not_know_providers_keys(gateway: Gateway) -> None:
    assert gateway.ask(prompt_id="p").startswith("system: [None, 'there']")


async def test_the_first_screen_says_what_there_is(gateway: Gateway) -> None:
    for text in (
        "any (loopback only)",
        "embedded ",
        "ingress 2, resolve 1, dispatch 1, resolve-batch 1, dispatch-batch 1, feed 1",
        "gpt-4 -> echo/echo",
        "real -> openai/x",
        "mine.mine",
        f"curl {gateway.url}/v1/chat/completions",
    ):
        assert text in gateway.log
    assert "\033[" not in gateway.log
    assert "sk-x" not in gateway.log


async def test_a_second_gateway_on_the_same_data_is_refused(gateway: Gateway, directory: Path) -> None:
    done = promptmill("up", "-c", "config.yaml", "--port", "0", cwd=directory)
    assert done.returncode == 2
    assert f"process {gateway.process.pid} already runs" in done.stderr


async def test_status_finds_the_gateway_by_its_data_directory(gateway: Gateway, directory: Path) -> None:
    done = promptmill("status", cwd=directory)
    assert done.returncode == 0, done.stderr
    assert "dispatch (live)" in done.stdout
    found = json.loads(promptmill("status", "-c", "config.yaml", "--json", cwd=directory).stdout)
    # one that another test has just killed stays registered for a while
    assert len({process["pid"] for process in found["processes"]} & set(gateway.children())) >= 3
    assert {process["role"] for process in found["processes"]} == {"ingress", "worker", "feed"}


async def test_processes_of_batches_stand_back_for_those_of_live_requests(gateway: Gateway) -> None:
    nice = {words: os.getpriority(os.PRIO_PROCESS, gateway.child(f"pipeline {words}")) for words in (*LIVE, *BATCHES)}
    assert {nice[words] - nice["ingress"] for words in LIVE} == {0}
    assert {nice[words] - nice["ingress"] for words in BATCHES} == {NICENESS}


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not share the processors among sessions")
async def test_the_sessions_of_batches_stand_back_too(gateway: Gateway) -> None:
    def niceness(words: str) -> int:
        return int(Path(f"/proc/{gateway.child(f'pipeline {words}')}/autogroup").read_text().split()[-1])

    assert {niceness(words) for words in LIVE} == {0}
    assert {niceness(words) for words in BATCHES} == {NICENESS}


@pytest.mark.parametrize("words", ["pipeline worker resolve", "pipeline ingress", "-server "])
async def test_what_crashes_is_started_again(gateway: Gateway, words: str) -> None:
    before = gateway.child(words)
    count = len(gateway.children())
    os.kill(before, signal.SIGKILL)
    await wait_until(lambda: not alive(before) and len(gateway.children()) == count, timeout=20)
    assert "was killed by SIGKILL; starting it again" in gateway.log

    def served() -> bool:
        try:
            return gateway.ask(prompt_id="p").startswith("system:")
        except (AssertionError, OSError):
            return False

    await wait_until(served, timeout=20, every=0.2)


async def test_ctrl_c_finishes_what_is_in_flight_and_leaves_nothing(tmp_path: Path) -> None:
    with start_gateway(tmp_path, config=configured(tmp_path, WAITING), traced=True) as gateway:
        answers: list[str] = []
        started = tmp_path / "started"
        fields = {"prompt_id": "p", "prompt_variables": {"started": str(started)}}
        asking = threading.Thread(target=lambda: answers.append(gateway.ask(**fields)))
        asking.start()
        await wait_until(started.exists, timeout=20)
        children = gateway.children()
        assert len(children) == 7
        assert gateway.stop() == 0
        asking.join(10)
        assert answers == ["system: from mine\nuser: hi"]
    assert not any(alive(pid) for pid in children)
    left = {path.name for path in (tmp_path / ".promptmill").rglob("*") if not path.is_dir()}
    assert not {name for name in left if name.endswith((".lock", ".sock"))}
    assert "stopping: finishing what is in flight" in gateway.log


async def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    slow = WAITING.replace("time.sleep(0.5)", "time.sleep(30)")
    with start_gateway(tmp_path, config=configured(tmp_path, slow), traced=True) as gateway:
        started = tmp_path / "started"
        fields = {"prompt_id": "p", "prompt_variables": {"started": str(started)}}

        def ask() -> None:
            with pytest.raises((OSError, AssertionError)):
                gateway.ask(**fields)

        asking = threading.Thread(target=ask)
        asking.start()
        await wait_until(started.exists, timeout=20)
        children = gateway.children()
        gateway.process.send_signal(signal.SIGINT)
        await wait_until(lambda: "stopping" in gateway.log)
        assert gateway.stop() == 130
        asking.join(10)
    assert not any(alive(pid) for pid in children)


async def test_nothing_outlives_a_killed_supervisor_and_the_next_start_works(tmp_path: Path) -> None:
    # with a Redis that stays: a process that loses it soon writes to its closed log, and ends for that
    with (
        start_server(tmp_path / "redis") as server,
        start_gateway(tmp_path, variables={"REDIS_URL": server.url}, traced=True) as gateway,
    ):
        children = gateway.children()
        assert len(children) == 6
        gateway.stop(signal.SIGKILL)
        await wait_until(lambda: not any(alive(pid) for pid in children), timeout=5)
    (tmp_path / ".promptmill" / "valkey").mkdir()
    (tmp_path / ".promptmill" / "valkey" / "valkey.sock").touch()  # what a killed server leaves
    with start_gateway(tmp_path, traced=True) as gateway:
        assert gateway.ask() == "user: hi"


async def test_a_redis_that_is_named_is_used_and_no_key_is_shown_to_anybody(tmp_path: Path) -> None:
    """Neither in the log nor to user code, for which the configuration still means the same as for the others."""
    config = configured(tmp_path, MANAGER.replace('"from mine"', "os.environ['GATEWAY_KEY']"))
    config += "general_settings: {master_key: os.environ/GATEWAY_KEY}\n"
    with start_server(tmp_path / "redis") as server:
        variables = {"REDIS_URL": server.url, "GATEWAY_KEY": MASTER}
        arguments = ("--detailed_debug", "--request_timeout", "30")
        with start_gateway(tmp_path, *arguments, config=config, variables=variables, traced=True) as gateway:
            assert len(gateway.children()) == 6
            assert server.url in gateway.log
            assert "master (from $GATEWAY_KEY)" in gateway.log
            assert "Authorization: Bearer $GATEWAY_KEY" in gateway.log
            assert gateway.ask(prompt_id="p", key=MASTER) == "system: withheld\nuser: hi"
            assert gateway.stop(signal.SIGTERM) == 0
            assert MASTER not in gateway.log
        done = promptmill("status", cwd=tmp_path, REDIS_URL=server.url)
        assert done.returncode == 1
        assert "(no process for dispatch: start `promptmill worker --lane live dispatch`" in done.stdout


async def test_the_demo_answers_its_own_request(tmp_path: Path) -> None:
    done = promptmill("demo", "--port", "0", "--once", cwd=tmp_path, REDIS_URL="redis://nowhere.invalid")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "system: Be a good Bot!\nuser: hi"
    assert not os.listdir(tmp_path)


async def test_commands_say_that_redis_cannot_be_reached(tmp_path: Path) -> None:
    done = promptmill("status", cwd=tmp_path, REDIS_URL=f"unix://{tmp_path}/none.sock")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    done = promptmill("status", cwd=tmp_path)
    assert (done.returncode, "promptmill up" in done.stderr) == (2, True)
