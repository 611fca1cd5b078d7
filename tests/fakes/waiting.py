"""Waiting for a condition with a time limit, instead of sleeping for a guess."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable

import anyio


async def wait_until(
    condition: Callable[[], object | Awaitable[object]], *, timeout: float = 5.0, every: float = 0.01
) -> None:
    """Return as soon as `condition()` (sync or async) is true; fail after `timeout` seconds."""
    limit = time.monotonic() + timeout
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return
        if time.monotonic() > limit:
            raise AssertionError(f"not within {timeout} s: {inspect.getsource(condition).strip()}")
        await anyio.sleep(every)
