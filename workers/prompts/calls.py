"""A call of user code on its way out of the transport's loop and back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from workers.prompts.places import Stack


class Overran(Exception):
    """A call took longer than it may; `stack` is where it stands, empty when it had not begun."""

    def __init__(self, stack: Stack) -> None:
        super().__init__("overran")
        self.stack = stack


class Displaced(Exception):
    """A call had not begun when its process was to be started anew: the next one may run it."""


class Call:
    """One piece of user code: what to run, and the future somebody on the transport's loop waits for."""

    __slots__ = ("abandoned", "finished", "future", "run", "work")

    def __init__(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.run = 0
        """Counted up when the call is started anew; what an older run returns is dropped."""
        self.abandoned = False
        self.finished = False

    def finish(self, run: int, value: Any, error: BaseException | None) -> None:
        """Give the outcome to the waiter, on the transport's loop."""
        if run != self.run or self.future.done():
            return
        self.finished = True
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class Returns:
    """Carries outcomes back to the transport's loop: one wake-up per burst, whichever threads they come from."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: deque[tuple[Call, int, Any, BaseException | None]] = deque()
        self._scheduled = False

    def put(self, call: Call, run: int, value: Any, error: BaseException | None = None) -> None:
        """Hand an outcome over, from any thread."""
        self._done.append((call, run, value, error))
        if self._scheduled:
            return
        self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the transport's loop is closed: nobody waits any more
            pass

    def _drain(self) -> None:
        self._scheduled = False  # before emptying: what is put from here on schedules again
        while self._done:
            call, run, value, error = self._done.popleft()
            call.finish(run, value, error)
