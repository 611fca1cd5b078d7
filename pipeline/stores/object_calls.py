"""Calls to an object store: their errors in our words, and several of them at a time."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import anyio
from obstore.exceptions import BaseError

from pipeline.errors import PipelineError, StorageFull, StorageUnavailable
from pipeline.stores.blobs import no_such_file

AT_ONCE: Final = 32
"""Calls one reader has under way: an object store takes tens of milliseconds for the first byte of each."""

RETRY_AFTER: Final = 5.0

_STATUS: Final = re.compile(r"status code: (\d{3})", re.ASCII)
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>", re.ASCII)
_PHRASES: Final = {
    "timed out": "timed out",
    "error sending request": "no answer",
    "redirect without LOCATION": "redirected: is the region right?",
}
_FULL: Final = frozenset(["507", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"])

T = TypeVar("T")
K = TypeVar("K")


@contextmanager
def finding() -> Iterator[None]:
    """Ask in here for an object that may be gone. Raises NoSuchFile and what `asking` raises."""
    with asking():
        try:
            yield
        except FileNotFoundError:
            raise no_such_file() from None


@contextmanager
def asking() -> Iterator[None]:
    """Call the store in here. Raises StorageFull and StorageUnavailable, also where the bucket is missing."""
    try:
        yield
    except (BaseError, OSError) as error:
        said = reason(error)
        if not _FULL.isdisjoint(said.split()):
            raise StorageFull(f"files cannot be stored: the object store is full ({said})") from None
        raise StorageUnavailable(f"the object store fails ({said}); try again", retry_after=RETRY_AFTER) from None


def reason(error: Exception) -> str:
    """Return what the store answered, as status and code: its own text has addresses, and may have more."""
    text = str(error)
    found = [match[1] for match in (_STATUS.search(text), _CODE.search(text)) if match is not None]
    if not found:
        found = [ours for theirs, ours in _PHRASES.items() if theirs in text][:1] or ["failed"]
    return " ".join([*found, type(error).__name__])


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
