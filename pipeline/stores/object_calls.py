"""Calls to an object store: their errors in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from obstore.exceptions import BaseError

from pipeline.errors import StorageFull, StorageUnavailable
from pipeline.stores.blobs import no_such_file

RETRY_AFTER: Final = 5.0

_STATUS: Final = re.compile(r"status code: (\d{3})", re.ASCII)
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>", re.ASCII)
_PHRASES: Final = {
    "timed out": "timed out",
    "error sending request": "no answer",
    "redirect without LOCATION": "redirected: is the region right?",
}
_FULL: Final = frozenset(["507", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"])


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
