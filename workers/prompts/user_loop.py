"""An event loop for asynchronous hooks, in a thread of its own that user code may block without harm."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Any

from workers.prompts.calls import Call, Returns
from workers.prompts.places import Stack, of_frame, of_task


class UserLoop:
    """
    One event loop in one daemon thread. Public methods are called on the transport's loop.

    A hook that blocks the thread costs the loop its place: it is evacuated, and ends when the hook returns.
    """

    def __init__(self, returns: Returns) -> None:
        self._returns = returns
        self._loop = asyncio.new_event_loop()
        self._inbox: deque[Call] = deque()
        self._scheduled = False
        self._tasks: dict[Call, asyncio.Task[None]] = {}
        self._leaving = False
        self._closing = False
        self._silent = 0
        self._thread = threading.Thread(target=self._serve, name="prompt hooks (async)", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def submit(self, call: Call) -> None:
        """Start `call` as a task; calls of one burst share a wake-up."""
        self._inbox.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._soon(self._drain)

    def abandon(self, call: Call) -> None:
        """Cancel a call nobody waits for any more."""
        self._soon(self._cancel, call)

    def stack(self, call: Call) -> Stack:
        """Return where a call stands; nothing when it has not begun."""
        task = self._tasks.get(call)
        if task is None:
            return ()
        if asyncio.current_task(self._loop) is task and self._thread.ident is not None:
            return of_frame(sys._current_frames().get(self._thread.ident))
        return of_task(task)

    def silent(self) -> int:
        """Ask for a sign of life; return how many earlier requests in a row were not answered."""
        if not self._tasks and not self._inbox:
            self._silent = 0
            return 0
        self._silent += 1
        self._soon(self._answer)
        return self._silent - 1

    def evacuate(self) -> list[Call]:
        """
        Give up on a blocked thread: return every call but the one that blocks it, to be started anew elsewhere.

        Like a redelivery, this runs again what had merely been waiting.
        """
        self._leaving = True
        culprit = asyncio.current_task(self._loop)
        moved = [call for call, task in list(self._tasks.items()) if task is not culprit]
        while self._inbox:
            moved.append(self._inbox.popleft())
        for call in moved:
            call.run += 1
        self.leave(moved)
        return [call for call in moved if not call.abandoned]

    def leave(self, without: list[Call] | None = None) -> None:
        """Cancel the tasks of `without` (not given: of all), and end the thread once it has nothing left to do."""
        self._leaving = True
        self._soon(self._wind_up, without)

    def _soon(self, callback: Any, *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop has ended: it holds nothing
            pass

    def _serve(self) -> None:
        """Run the loop until it is left; user code that ends it, say by SystemExit in a task, does not end us."""
        asyncio.set_event_loop(self._loop)
        while not self._leaving or self._tasks:
            # A background task of the user's may raise SystemExit through here; the loop itself stays whole.
            with suppress(BaseException):
                self._loop.run_forever()
        self._close()

    def _close(self) -> None:
        self._closing = True
        # What the user left in the background may raise or stop the loop even now; it is closed all the same.
        with suppress(BaseException):
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            if left:
                self._loop.run_until_complete(asyncio.wait(left, timeout=1.0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _drain(self) -> None:
        self._scheduled = False
        with suppress(IndexError):  # empty, or evacuated in this very moment
            while True:
                call = self._inbox.popleft()
                if not call.abandoned:
                    self._tasks[call] = self._loop.create_task(self._run(call, call.run))

    async def _run(self, call: Call, run: int) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = await call.work()
        except BaseException as raised:  # noqa: BLE001 - whatever user code raises goes to the waiter
            error = raised
        self._returns.put(call, run, value, error)
        del self._tasks[call]
        self._stop_when_done()

    def _cancel(self, call: Call) -> None:
        task = self._tasks.get(call)
        if task is not None:
            task.cancel()

    def _answer(self) -> None:
        self._silent = 0

    def _wind_up(self, without: list[Call] | None) -> None:
        for call in list(self._tasks) if without is None else without:
            self._cancel(call)
        self._stop_when_done()

    def _stop_when_done(self) -> None:
        if self._leaving and not self._tasks and not self._closing:
            self._loop.stop()
