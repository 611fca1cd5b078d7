"""Where user code runs: threads and a loop of its own, with time limits, and nothing of it in the transport's loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.prompts import async_hook, configured, delivery, failed, forwarded, resolve_stage, sync_hook, user_module
from fakes.waiting import wait_until

from pipeline.errors import PromptTimeout
from pipeline.job import PromptRef
from pipeline.settings import PromptSettings
from pipeline.stage import Defer, Fail, Forward
from workers.prompts.calls import Call, Displaced, Overran, Returns
from workers.prompts.isolation import Isolation, open_isolation
from workers.prompts.threads import Threads, _Worker
from workers.prompts.user_loop import UserLoop

pytestmark = pytest.mark.anyio

UNCHANGED = "return model, messages, non_default_params"


@contextlib.asynccontextmanager
async def isolated(slots: int = 4, timeout: float = 5.0) -> AsyncIterator[tuple[Isolation, list[str]]]:
    reasons: list[str] = []
    async with open_isolation(slots, timeout, reasons.append) as isolation:
        yield isolation, reasons


@pytest.fixture
def gate() -> Any:
    """An event user code may block on; set at the end, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


async def many(run: Callable[..., Any], works: list[Any]) -> list[Any]:
    results: list[Any] = [None] * len(works)

    async def one(index: int) -> None:
        results[index] = await run(works[index])

    async with anyio.create_task_group() as tasks:
        for index in range(len(works)):
            tasks.start_soon(one, index)
    return results


async def test_quick_calls_of_a_burst_share_one_thread_and_one_wake_up_each_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.prompts.threads.STALL", 0.5)  # on a busy machine nothing is quick
    async with isolated(slots=64) as (isolation, _):
        wakes = 0
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        idents = await many(isolation.run, [threading.get_ident] * 50)
        assert len(set(idents)) == 1
        assert wakes < 25


async def test_a_burst_of_asynchronous_calls_shares_wake_ups_too() -> None:
    async with isolated() as (isolation, _):

        async def work() -> int:
            return threading.get_ident()

        assert len(set(await many(isolation.run_async, [work] * 50))) == 1


async def test_slow_calls_run_side_by_side_up_to_the_slots(gate: threading.Event) -> None:
    async with isolated(slots=64) as (isolation, _):
        running = 0
        lock = threading.Lock()

        def slow() -> int:
            nonlocal running
            with lock:
                running += 1
            gate.wait(10)
            return threading.get_ident()

        async def open_gate() -> None:
            await wait_until(lambda: running == 63)
            assert await isolation.run(lambda: "quick") == "quick"
            gate.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_gate)
            began = time.monotonic()
            idents = await many(isolation.run, [slow] * 63)
        assert len(set(idents)) == 63
        assert time.monotonic() - began < 5


async def test_more_calls_than_slots_wait_for_their_turn() -> None:
    async with isolated(slots=2) as (isolation, _):
        lock = threading.Lock()
        running, most, done = 0, 0, 0

        def slow() -> None:
            nonlocal running, most, done
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.01)
            with lock:
                running -= 1
                done += 1

        await many(isolation.run, [slow] * 6)
        assert (most, done) == (2, 6)


async def test_an_unused_thread_ends_and_another_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.prompts.threads.IDLE", 0.02)
    async with isolated() as (isolation, _):
        await isolation.run(int)
        await wait_until(lambda: isolation._threads.count == 0)
        assert await isolation.run(lambda: 5) == 5


@pytest.mark.parametrize("hook", [sync_hook, async_hook])
async def test_a_hook_that_overruns_is_answered_with_the_place_where_it_stands(tmp_path: Path, hook: Any) -> None:
    wait = "await asyncio.sleep(60)" if hook is async_hook else "self.gate.wait(10)"
    source = hook(f"{wait}\n{UNCHANGED}").replace("manager = M()", "manager = M()\nmanager.gate = threading.Event()")
    settings = configured(tmp_path, source, prompts=PromptSettings(timeout=0.1))
    async with resolve_stage(settings) as stage:
        outcome = await stage.handle(delivery())
        message = failed(outcome, PromptTimeout)
        user_module().manager.gate.set()
    assert "hooks.manager has not returned and stands at hooks.py:6 after 0.1 s" in message
    assert "prompt_timeout" in message
    assert isinstance(outcome, Fail)
    assert (outcome.error.status, outcome.error.should_retry) == (504, False)


async def test_should_run_counts_as_part_of_the_hook_and_its_time(tmp_path: Path) -> None:
    source = sync_hook(UNCHANGED).replace(
        "\nmanager = M()",
        "\n    gate = threading.Event()\n    def should_run_prompt_management(self, prompt_id, **_):\n"
        "        return self.gate.wait(10)\nmanager = M()",
    )
    async with resolve_stage(configured(tmp_path, source, prompts=PromptSettings(timeout=0.1))) as stage:
        message = failed(await stage.handle(delivery()), PromptTimeout)
        user_module().manager.gate.set()
    assert "hooks.py:9" in message


async def test_an_overrun_in_a_helper_is_told_where_it_was_called(tmp_path: Path) -> None:
    source = async_hook(f"async def deeper():\n    await asyncio.Event().wait()\nawait deeper()\n{UNCHANGED}")
    async with resolve_stage(configured(tmp_path, source, prompts=PromptSettings(timeout=0.1))) as stage:
        assert "stands at hooks.py:7" in failed(await stage.handle(delivery()), PromptTimeout)


async def test_a_call_that_found_no_slot_is_told_so(tmp_path: Path) -> None:
    source = sync_hook(f"self.gate.wait(10)\n{UNCHANGED}").replace("M()\n", "M()\nmanager.gate = threading.Event()\n")
    async with resolve_stage(configured(tmp_path, source, prompts=PromptSettings(timeout=0.1, slots=1))) as stage:
        failed(await stage.handle(delivery()), PromptTimeout)
        assert "did not begin" in failed(await stage.handle(delivery()), PromptTimeout)
        user_module().manager.gate.set()


async def test_an_asynchronous_call_that_overruns_or_is_left_is_cancelled() -> None:
    async with isolated(timeout=0.1) as (isolation, _):
        ended: list[str] = []

        async def endless() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")

        with pytest.raises(Overran):
            await isolation.run_async(endless)
        await wait_until(lambda: len(ended) == 1)
        with anyio.move_on_after(0.02):
            await isolation.run_async(endless)
        await wait_until(lambda: len(ended) == 2)


async def test_a_synchronous_call_that_was_left_before_it_began_never_begins(gate: threading.Event) -> None:
    async with isolated(slots=1) as (isolation, _):
        calls: list[str] = []
        with anyio.move_on_after(0.02):
            await isolation.run(lambda: gate.wait(10))
        with anyio.move_on_after(0.02):
            await isolation.run(lambda: calls.append("left"))
        gate.set()
        await isolation.run(lambda: calls.append("next"))
        assert calls == ["next"]


async def test_asynchronous_calls_behind_a_blocked_loop_overrun_or_are_left_without_having_begun() -> None:
    async with isolated(timeout=0.2) as (isolation, _):
        gate = threading.Event()
        calls: list[str] = []

        async def blocks() -> None:
            gate.wait(10)

        async def next_call() -> None:
            calls.append("began")

        async def overruns() -> None:
            with pytest.raises(Overran) as caught:
                await isolation.run_async(blocks)
            assert any(file == __file__ for file, _ in caught.value.stack)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(overruns)
            await wait_until(lambda: isolation._loop is not None and isolation._loop._tasks)
            with anyio.move_on_after(0.02):
                await isolation.run_async(next_call)
            with pytest.raises(Overran) as caught:
                await isolation.run_async(next_call)
            assert caught.value.stack == ()
        gate.set()
    assert calls == []


async def test_a_thread_that_is_woken_while_it_gives_up_waiting_stays() -> None:
    loop = asyncio.get_running_loop()
    pool = Threads(1, Returns(loop), loop)
    worker = _Worker()
    pool._workers.append(worker)
    worker.wake.release()
    assert pool._retire(worker) is False
    worker.idle = True  # and one that is closed in that moment goes
    assert pool._retire(worker) is True
    assert pool.count == 0


async def test_a_synchronous_call_that_overran_keeps_its_slot_until_it_returns(gate: threading.Event) -> None:
    async with isolated(slots=3, timeout=0.1) as (isolation, reasons):
        with pytest.raises(Overran):
            await isolation.run(lambda: gate.wait(10))
        await wait_until(lambda: isolation.stuck == 1)
        assert await isolation.run(lambda: 1) == 1
        gate.set()
        await wait_until(lambda: isolation.stuck == 0)
        assert reasons == []


async def test_with_half_of_the_slots_stuck_a_restart_is_asked_for_once(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.prompts.isolation.TICK", 0.01)
    async with isolated(slots=4, timeout=0.05) as (isolation, reasons):
        for _ in range(3):
            with pytest.raises(Overran):
                await isolation.run(lambda: gate.wait(10))
        await wait_until(lambda: reasons)
        assert "of 4 prompt slots are stuck" in reasons[0]
        await anyio.sleep(0.05)  # several looks of the watcher
        assert len(reasons) == 1
        with pytest.raises(Displaced):  # here it could only wait
            await isolation.run(lambda: 1)


async def test_what_waits_for_stuck_threads_is_put_off_until_the_process_was_started_anew(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.prompts.isolation.TICK", 0.2)
    source = sync_hook(f"prompt_id == 'blocks' and self.gate.wait(10)\n{UNCHANGED}")
    settings = configured(tmp_path, source, prompts=PromptSettings(timeout=0.3, slots=2))
    async with resolve_stage(settings) as stage:
        user_module().manager.gate = gate
        late = await many(stage.handle, [delivery({}, prompt=PromptRef(id="blocks")) for _ in range(2)])
        assert {type(outcome) for outcome in late} == {Fail}
        waiting = delivery({})
        assert await stage.handle(waiting) == Defer(0.0, waiting.job)


async def test_a_hook_that_blocks_its_loop_delays_no_other_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.prompts.isolation.TICK", 0.1)
    source = async_hook(f"""
        self.runs = getattr(self, "runs", []) + [prompt_id]
        if prompt_id == "blocks":
            self.gate.wait(20)
        elif prompt_id == "waits":
            messages.append("scribble")
            await asyncio.sleep(0.5)
            messages.pop()
        {UNCHANGED}
    """).replace("M()\n", "M()\nmanager.gate = threading.Event()\n")
    settings = configured(tmp_path, source, prompts=PromptSettings(timeout=2.5, slots=64))
    outcomes: dict[str, Any] = {}
    async with resolve_stage(settings) as stage:

        async def ask(prompt_id: str) -> None:
            began = time.monotonic()
            outcomes[prompt_id] = (await stage.handle(delivery({}, prompt_id)), time.monotonic() - began)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "waits")
            await wait_until(lambda: getattr(user_module().manager, "runs", []) == ["waits"])
            tasks.start_soon(ask, "blocks")
            await wait_until(lambda: "blocks" in user_module().manager.runs)
            tasks.start_soon(ask, "queued")
        manager = user_module().manager
        assert sorted(manager.runs) == ["blocks", "queued", "waits", "waits"]
        for prompt_id in ("waits", "queued"):
            outcome, took = outcomes[prompt_id]
            assert forwarded(outcome)["messages"] == [{"role": "user", "content": "hi"}]
            assert took < 2.4
        assert "stands at hooks.py:8" in failed(outcomes["blocks"][0], PromptTimeout)
        after = await stage.handle(delivery({}, "after"))
        assert isinstance(after, Forward)
        manager.gate.set()
    assert manager.runs.count("blocks") == 1


async def test_a_blocked_loop_that_comes_back_in_time_still_answers_and_ends() -> None:
    async with isolated(slots=2, timeout=10) as (isolation, reasons):
        gate = threading.Event()

        async def blocks() -> str:
            gate.wait(10)
            await asyncio.sleep(0)
            return "late"

        async def quick() -> str:
            return "quick"

        async def others() -> None:
            await wait_until(lambda: isolation._loop is not None and isolation._loop._tasks)
            assert await isolation.run_async(quick) == "quick"
            assert isolation.stuck == 1
            await wait_until(lambda: reasons)  # one of two slots
            gate.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            assert await isolation.run_async(blocks) == "late"
        await wait_until(lambda: isolation.stuck == 0)


async def test_what_was_started_anew_is_not_answered_by_its_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.prompts.isolation.TICK", 0.02)
    async with isolated(timeout=10) as (isolation, _):
        unblock, finish = threading.Event(), threading.Event()
        runs: list[str] = []

        async def waits() -> str:
            runs.append("began")
            try:
                while not finish.is_set():  # noqa: ASYNC110 - an asyncio event cannot be set from another thread
                    await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                runs.append("cancelled")
                return "first"
            return "second"

        async def blocks() -> None:
            unblock.wait(10)

        async def directs() -> None:
            await wait_until(lambda: runs == ["began"])
            tasks.start_soon(isolation.run_async, blocks)
            await wait_until(lambda: len(runs) == 2)
            unblock.set()
            await wait_until(lambda: runs == ["began", "began", "cancelled"] and isolation.stuck == 0)
            finish.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(directs)
            assert await isolation.run_async(waits) == "second"


async def test_a_background_task_that_blocks_the_loop_is_left_behind_too(gate: threading.Event) -> None:
    async with isolated(timeout=5) as (isolation, _):
        kept = []

        async def background() -> None:
            gate.wait(10)

        async def starts() -> str:
            kept.append(asyncio.get_running_loop().create_task(background()))
            return "started"

        async def quick() -> str:
            return "quick"

        await isolation.run_async(starts)
        assert await isolation.run_async(quick) == "quick"
        assert isolation.stuck == 1
        gate.set()
        await wait_until(lambda: isolation.stuck == 0)


async def test_a_background_task_that_exits_ends_neither_the_loop_nor_the_process() -> None:
    async with isolated() as (isolation, _):
        kept = []

        async def background() -> None:
            raise SystemExit

        async def starts() -> None:
            kept.append(asyncio.get_running_loop().create_task(background()))

        async def quick() -> str:
            return "quick"

        await isolation.run_async(starts)
        await wait_until(lambda: kept and kept[0].done())
        assert await isolation.run_async(quick) == "quick"
        assert isinstance(kept[0].exception(), SystemExit)


async def test_what_still_runs_in_the_background_is_cancelled_at_the_end() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    kept = []

    async def starts() -> None:
        kept.append(asyncio.get_running_loop().create_task(background()))
        await asyncio.sleep(0)

    async with isolated() as (isolation, _):
        await isolation.run_async(starts)
    assert ended == ["cancelled"]


async def test_a_loop_closes_whatever_its_background_tasks_do() -> None:
    kept = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            asyncio.get_running_loop().stop()

    async def starts() -> asyncio.AbstractEventLoop:
        kept.append(asyncio.get_running_loop().create_task(background()))
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async with isolated() as (isolation, _):
        loop = await isolation.run_async(starts)
    assert loop.is_closed()


async def test_a_loop_that_is_left_twice_lets_background_tasks_end(gate: threading.Event) -> None:
    entered, ended = threading.Event(), threading.Event()

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            entered.set()
            gate.wait(10)
            await asyncio.sleep(0.01)
            ended.set()

    async def starts() -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(background())
        await asyncio.sleep(0)
        return task

    main = asyncio.get_running_loop()
    loop = UserLoop(Returns(main))
    call = Call(starts, main.create_future())
    loop.submit(call)
    await call.future
    loop.leave()
    await wait_until(entered.is_set)
    loop.leave()
    gate.set()
    await wait_until(lambda: not loop.alive)
    assert ended.is_set()
    loop.leave()


async def test_a_stuck_thread_does_not_hold_up_the_end(gate: threading.Event) -> None:
    began = time.monotonic()
    async with isolated(timeout=0.05) as (isolation, _):
        with pytest.raises(Overran):
            await isolation.run(lambda: gate.wait(10))
        assert all(t.daemon for t in threading.enumerate() if t.name.startswith("prompt hook"))
    assert time.monotonic() - began < 3


async def test_the_transports_loop_goes_on_while_hooks_block_or_compute(gate: threading.Event) -> None:
    async with isolated(slots=8) as (isolation, _):
        late = 0.0

        async def tick() -> None:
            nonlocal late
            while not gate.is_set():
                began = time.monotonic()
                await anyio.sleep(0.005)
                late = max(late, time.monotonic() - began)

        async def blocks() -> None:
            time.sleep(1)  # noqa: ASYNC251 - the very thing a careless hook does

        def computes() -> None:
            limit = time.monotonic() + 1
            while time.monotonic() < limit:
                sum(range(1000))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            async with anyio.create_task_group() as hooks:
                hooks.start_soon(isolation.run_async, blocks)
                hooks.start_soon(isolation.run, computes)
                hooks.start_soon(isolation.run, lambda: time.sleep(1))
            gate.set()
        assert late < 0.7


async def test_an_outcome_of_an_older_run_is_dropped() -> None:
    loop = asyncio.get_running_loop()
    call = Call(int, loop.create_future())
    call.run = 1
    returns = Returns(loop)
    returns.put(call, 0, "old")
    returns.put(call, 1, "new")
    returns.put(call, 1, "twice")
    assert await call.future == "new"


def test_an_outcome_after_the_end_of_the_transports_loop_is_dropped() -> None:
    loop = asyncio.new_event_loop()
    call = Call(int, loop.create_future())
    loop.close()
    Returns(loop).put(call, 0, "late")
    assert not call.future.done()
