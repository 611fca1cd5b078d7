"""Threads for synchronous hooks: one drains quick calls back to back, slow ones get threads of their own."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from time import monotonic
from typing import Final

from pipeline import failpoints
from workers.prompts.calls import Call, Returns
from workers.prompts.places import Stack, of_frame

STALL: Final = 0.002
"""Seconds a call may run before the calls behind it get another thread; a thread hop costs 45 µs."""

IDLE: Final = 10.0
"""Seconds an unused thread is kept."""


class _Worker:
    """A thread and what it is at; all but `wake` and `thread` is guarded by the pool's mutex."""

    __slots__ = ("began", "call", "idle", "thread", "wake")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.began = monotonic()
        self.idle = False
        self.wake = threading.Semaphore(0)
        self.thread: threading.Thread | None = None


class Threads:
    """
    A pool of at most `slots` daemon threads, so that a stuck hook cannot keep the process from ending.

    Everything public is called on the transport's loop.
    """

    def __init__(self, slots: int, returns: Returns, loop: asyncio.AbstractEventLoop) -> None:
        self._slots = slots
        self._returns = returns
        self._loop = loop
        self._mutex = threading.Lock()
        self._waiting: deque[Call] = deque()
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def count(self) -> int:
        """Threads there are."""
        return len(self._workers)

    def submit(self, call: Call) -> None:
        """Queue `call`; a thread that is draining takes it along, otherwise one is woken."""
        with self._mutex:
            self._waiting.append(call)
            spare = self._capacity() if self._stalled() else 0
        if spare:
            self._engage(1)
        if self._timer is None:
            self._timer = self._loop.call_later(STALL, self._grow)

    def stack(self, call: Call) -> Stack:
        """Return where a running call stands; nothing when it has not begun."""
        with self._mutex:
            found = next((w.thread for w in self._workers if w.call is call), None)
        ident = found.ident if found else None
        return of_frame(sys._current_frames().get(ident)) if ident is not None else ()

    def overrun(self, limit: float) -> int:
        """Return how many threads have been at one call for longer than `limit` seconds."""
        now = monotonic()
        with self._mutex:
            return sum(1 for w in self._workers if w.call is not None and now - w.began > limit)

    def evacuate(self) -> list[Call]:
        """Return the calls that wait for a thread; they will not run here."""
        with self._mutex:
            waiting = [call for call in self._waiting if not call.abandoned]
            self._waiting.clear()
        return waiting

    def close(self) -> None:
        """Let every thread end when it is done with its call."""
        with self._mutex:
            self._closed = True
            self._waiting.clear()
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.wake.release()
        if self._timer is not None:
            self._timer.cancel()

    def _stalled(self) -> bool:
        """Whether no busy thread can be expected to look for its next call soon; one between two calls can."""
        now = monotonic()
        return not any(not w.idle and (w.call is None or now - w.began < STALL) for w in self._workers)

    def _capacity(self) -> int:
        return self._slots - (len(self._workers) - len(self._idle))

    def _grow(self) -> None:
        """Double the busy threads while calls wait behind slow ones."""
        self._timer = None
        with self._mutex:
            if not self._waiting:
                return
            spare = self._capacity()
            busy = len(self._workers) - len(self._idle)
            wanted = min(max(1, busy), len(self._waiting), spare) if self._stalled() else 0
        if wanted:
            self._engage(wanted)
        if spare > wanted:
            self._timer = self._loop.call_later(STALL, self._grow)

    def _engage(self, wanted: int) -> None:
        """Put `wanted` more threads to work: idle ones first, the one used last before the others."""
        fresh: list[_Worker] = []
        with self._mutex:
            for _ in range(wanted):
                if self._idle:
                    worker = self._idle.pop()
                    worker.idle, worker.began = False, monotonic()
                    worker.wake.release()
                else:
                    fresh.append(_Worker())
            self._workers += fresh
        if fresh:
            self._start(fresh)

    def _start(self, fresh: list[_Worker]) -> None:
        """Start the first of `fresh`, which starts the next: starting a thread waits for it, the loop must not."""
        worker, rest = fresh[0], fresh[1:]
        worker.thread = threading.Thread(target=self._work, args=(worker, rest), name="prompt hook", daemon=True)
        worker.thread.start()

    def _work(self, worker: _Worker, rest: list[_Worker]) -> None:
        if rest:
            self._start(rest)
        while (call := self._next(worker)) is not None:
            run, value, error = call.run, None, None
            try:
                if failpoints.ARMED:
                    failpoints.reach_on_thread("resolve.mid_hook")
                value = call.work()
            except BaseException as raised:  # noqa: BLE001 - whatever user code raises goes to the waiter
                error = raised
            with self._mutex:
                worker.call = None
            self._returns.put(call, run, value, error)
            del call, value, error

    def _next(self, worker: _Worker) -> Call | None:
        """Return the next call to run, waiting for it; None when the thread should end."""
        while True:
            with self._mutex:
                while self._waiting:
                    call = self._waiting.popleft()
                    if not call.abandoned:
                        worker.call, worker.began = call, monotonic()
                        return call
                if self._closed:
                    self._workers.remove(worker)
                    return None
                worker.idle = True
                self._idle.append(worker)
            if not worker.wake.acquire(timeout=IDLE) and self._retire(worker):
                return None

    def _retire(self, worker: _Worker) -> bool:
        """Take an unused thread out, unless it was woken in this very moment."""
        with self._mutex:
            if not worker.idle:
                worker.wake.acquire()
                return False
            if worker in self._idle:
                self._idle.remove(worker)
            self._workers.remove(worker)
            return True
