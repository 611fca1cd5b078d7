"""The place where user code runs: never on the transport's loop, within a time limit, with its stuck parts counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from workers.prompts.calls import Call, Displaced, Overran, Returns
from workers.prompts.threads import Threads
from workers.prompts.user_loop import UserLoop

TICK: Final = 0.25
"""Seconds between two looks at what is stuck."""

SILENT_TICKS: Final = 4
"""Signs of life in a row that a blocked loop may owe: it is replaced after about a second. Ticks, not seconds, so
that a stall of the whole process accuses nobody."""


class Isolation:
    """Runs synchronous calls on threads and asynchronous ones on a loop of their own."""

    def __init__(self, slots: int, timeout: float, restart: Callable[[str], None]) -> None:
        self._slots = slots
        self.timeout = timeout
        self._restart = restart
        self._main = asyncio.get_running_loop()
        self._returns = Returns(self._main)
        self._threads = Threads(slots, self._returns, self._main)
        self._loop: UserLoop | None = None
        self._homes: dict[Call, UserLoop] = {}
        self._blocked: list[UserLoop] = []
        self._restarting = False

    async def run(self, work: Callable[[], Any]) -> Any:
        """
        Call `work` on a thread and return what it returns.

        Raises Overran after the time limit, and Displaced if it has not begun when a restart is asked for.
        """
        if self._restarting:
            raise Displaced
        return await self._wait(Call(work, self._main.create_future()), self._threads)

    async def run_async(self, work: Callable[[], Any]) -> Any:
        """Await `work()` on the user's loop and return what it returns. Raises Overran after the time limit."""
        if self._loop is None:
            self._loop = UserLoop(self._returns)
        call = Call(work, self._main.create_future())
        self._homes[call] = self._loop
        try:
            return await self._wait(call, self._loop)
        finally:
            home = self._homes.pop(call)
            if call.abandoned:
                home.abandon(call)

    @property
    def stuck(self) -> int:
        """Slots taken by code that overran: threads, and loops that were given up and have not come back."""
        self._blocked = [loop for loop in self._blocked if loop.alive]
        return self._threads.overrun(self.timeout) + len(self._blocked)

    async def watch(self) -> None:
        """Replace a blocked loop; ask for a restart once half of the slots are stuck."""
        while True:
            await anyio.sleep(TICK)
            if self._loop is not None and self._loop.silent() >= SILENT_TICKS:
                self._replace(self._loop)
            if not self._restarting and (stuck := self.stuck) * 2 >= self._slots:
                self._restarting = True
                for call in self._threads.evacuate():
                    if not call.future.done():
                        call.future.set_exception(Displaced())
                self._restart(f"{stuck} of {self._slots} prompt slots are stuck in hooks that do not return")

    async def close(self) -> None:
        """End the threads. What is stuck in user code is left behind: its thread does not keep the process alive."""
        self._threads.close()
        if self._loop is not None:
            self._loop.leave()
        loops = [*self._blocked, *([self._loop] if self._loop is not None else [])]
        with anyio.move_on_after(1, shield=True):
            while self._threads.count or any(loop.alive for loop in loops):  # noqa: ASYNC110 - a thread sets no event
                await anyio.sleep(0.005)

    async def _wait(self, call: Call, place: Threads | UserLoop) -> Any:
        timer = self._main.call_later(self.timeout, self._expire, call)
        place.submit(call)
        try:
            return await call.future
        finally:
            timer.cancel()
            call.abandoned = not call.finished

    def _expire(self, call: Call) -> None:
        if not call.future.done():
            home = self._homes.get(call, self._threads)
            call.future.set_exception(Overran(home.stack(call)))

    def _replace(self, blocked: UserLoop) -> None:
        """Start a fresh loop and start there, anew, what the blocked one held up."""
        self._blocked.append(blocked)
        self._loop = UserLoop(self._returns)
        for call in blocked.evacuate():
            self._homes[call] = self._loop
            self._loop.submit(call)


@asynccontextmanager
async def open_isolation(slots: int, timeout: float, restart: Callable[[str], None]) -> AsyncIterator[Isolation]:
    """Open the place for user code: `slots` threads at most, `timeout` seconds a call, `restart(reason)` when stuck."""
    isolation = Isolation(slots, timeout, restart)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(isolation.watch)
        try:
            yield isolation
        finally:
            tasks.cancel_scope.cancel()
            await isolation.close()
