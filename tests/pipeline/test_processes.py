"""One supervised process: its output, its restarts, its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from fakes.waiting import wait_until

from pipeline.processes import Backoff, Child, Output, Spec, ending

pytestmark = pytest.mark.anyio


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-S", "-c", script)


class Run:
    """A child that runs; `crashes` are the statuses nobody asked for."""

    def __init__(self, *command: str, grace: float = 5.0) -> None:
        self.crashes: list[int] = []
        self.child = Child(
            Spec(name="a.1", command=command, environment=dict(os.environ), grace=grace),
            Output(10, colour=False),
            lambda child, status: self.crashes.append(status),
        )


@asynccontextmanager
async def running(run: Run) -> AsyncIterator[Run]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.child.run)
        yield run
        await run.child.stop()


def test_a_crash_is_forgiven_three_times_then_costs_more_and_more() -> None:
    backoff = Backoff()
    assert [backoff.pause(1) for _ in range(10)] == [0, 0, 0, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.pause(60) == 0


def test_who_was_told_to_end_and_did_costs_nothing_but_who_has_nothing_to_do_does() -> None:
    backoff = Backoff()
    assert [backoff.pause(5, 0) for _ in range(10)] == [0] * 10
    assert [backoff.pause(1, 0) for _ in range(5)] == [0, 0, 0, 1, 2]


async def test_lines_come_with_the_name_of_their_process(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import sys, time; print('one'); print('two', file=sys.stderr); print('end', end=''); time.sleep(60)"
    async with running(Run(*python(script))) as run:
        seen = ""

        def both() -> bool:
            nonlocal seen
            seen += capfd.readouterr().err
            return "two" in seen

        await wait_until(both)
        await run.child.stop()
        seen += capfd.readouterr().err
    assert seen.splitlines() == ["a.1        | one", "a.1        | two", "a.1        | end"]


async def test_a_line_without_end_is_passed_on_in_parts(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(Run(*python("print('x' * 200_000, end=''); import time; time.sleep(60)"))):
        seen = ""

        def much() -> bool:
            nonlocal seen
            seen += capfd.readouterr().err
            return seen.count("x") > 65536

        await wait_until(much)


def test_names_are_coloured_on_a_terminal_only(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output(3, colour=True)
    output.write("a", b"1")
    output.write("b", b"2")
    output.write("a", b"3")
    assert capfd.readouterr().err == "\033[36ma   | \033[0m1\n\033[33mb   | \033[0m2\n\033[36ma   | \033[0m3\n"


async def test_what_ends_by_itself_is_started_again() -> None:
    async with running(Run(*python("raise SystemExit(7)"))) as run:
        await wait_until(lambda: run.crashes == [7, 7, 7, 7])
        assert run.child.pid is None


async def test_what_cannot_be_started_is_tried_again(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(Run("/no/such/program")) as run:
        await wait_until(lambda: len(run.crashes) == 4)
    assert run.crashes == [127] * 4
    assert "a.1 cannot be started: /no/such/program: No such file" in capfd.readouterr().err


async def test_what_does_not_stop_in_time_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    async with running(Run(*python(script), grace=0.1)) as run:
        await wait_until(lambda: "deaf" in capfd.readouterr().err)
        await run.child.stop()
    assert "a.1 did not stop within 0 s; killing it" in capfd.readouterr().err
    assert not run.crashes


async def test_a_child_that_is_stopped_while_it_starts_does_not_stay() -> None:
    run = Run(*python("import time; time.sleep(60)"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.child.run)
        await anyio.lowlevel.checkpoint()  # it is being started now
        with anyio.fail_after(5):
            await run.child.stop()
    assert run.child.pid is None


async def test_what_a_process_left_behind_ends_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import subprocess; print('pid', subprocess.Popen(['sleep', '60']).pid); import time; time.sleep(60)"
    async with running(Run(*python(script))) as run:
        seen = ""

        def told() -> bool:
            nonlocal seen
            seen += capfd.readouterr().err
            return "pid" in seen

        await wait_until(told)
        pid = int(seen.split()[-1])
        await run.child.stop()

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as stat:
            return " Z " in stat.read()

    await wait_until(gone)


def test_endings_are_told_in_words() -> None:
    assert ending(3) == "ended with status 3"
    assert ending(-signal.SIGKILL) == "was killed by SIGKILL"
    assert ending(-200) == "ended with status -200"
