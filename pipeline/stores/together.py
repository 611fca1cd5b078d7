"""Several calls to a store under way at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import anyio

from pipeline.errors import PipelineError

AT_ONCE: Final = 32
"""Calls one reader has under way: an object store takes tens of milliseconds for the first byte of each."""

T = TypeVar("T")
K = TypeVar("K")


async def together(call: Callable[[K], Awaitable[T]], wanted: Sequence[K]) -> list[T]:
    """Return what `call` says of each, in order, with a few calls under way. Raises what one of them raises."""
    found: dict[int, T] = {}
    failures: list[PipelineError] = []
    waiting = iter(enumerate(wanted))

    async def work() -> None:
        try:
            for place, item in waiting:
                found[place] = await call(item)
        except PipelineError as error:
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for _ in range(min(AT_ONCE, len(wanted))):
            tasks.start_soon(work)
    if failures:
        raise failures[0]
    return [found[place] for place in range(len(wanted))]
