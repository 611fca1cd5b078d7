"""What a store of files' contents has to offer, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from pipeline.errors import NoSuchFile


class Written(NamedTuple):
    """What became of a committed blob. `lines`: what ends in a line feed, and what follows the last one."""

    size: int
    sha256: str
    lines: int


class BlobWriter(Protocol):
    """A new blob while it is written. Nobody sees it before `commit`, and without `commit` nothing remains of it."""

    async def write(self, data: bytes) -> None:
        """Add bytes. Raises StorageFull."""

    async def commit(self) -> Written:
        """Make the blob durable and visible, all of it at once. Raises StorageFull."""


class Blob(Protocol):
    """An open blob. It stays readable while it is open, even if it is deleted meanwhile."""

    size: int

    async def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer at the end."""


class Growing(Blob, Protocol):
    """A blob with one writer that adds to it for as long as it needs, also after a crash of its process."""

    async def append(self, data: bytes) -> None:
        """Return when `data` is durable. Raises StorageFull, and then none of it is there."""

    async def truncate(self, size: int) -> None:
        """Cut off what follows the first `size` bytes."""

    async def finish(self) -> None:
        """Make it visible under its name; it does not grow any more."""


class Blobs(Protocol):
    """Blobs by name. A name has lower-case letters, digits, `-`, `_` and one dot at most: it is a path nowhere."""

    def write(self, name: str, size: int = 0) -> AbstractAsyncContextManager[BlobWriter]:
        """Begin a new blob of `size` bytes, as far as is known. Raises StorageFull."""

    def open(self, name: str) -> AbstractAsyncContextManager[Blob]:
        """Open a blob for reading. Raises NoSuchFile when there is none."""

    def grow(self, name: str) -> AbstractAsyncContextManager[Growing]:
        """Open a growing blob where it was left, or begin one. Raises StorageFull."""

    async def discard(self, name: str) -> None:
        """Remove a growing blob, if there is one: nobody will finish it."""

    async def create(self, name: str, data: bytes) -> bool:
        """Make a small blob, durable, unless there is one of that name; return whether it was made by this call."""

    async def replace(self, name: str, data: bytes) -> None:
        """Put a small blob in the place of the one of that name, if there is one. Raises StorageFull."""

    async def fetch(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return several small blobs at once, those that exist."""

    async def names(self, prefix: str = "", *, idle: float = 0) -> list[str]:
        """Return the names of finished blobs that begin so and were last changed more than `idle` seconds ago."""

    async def delete(self, name: str) -> bool:
        """Delete a blob for good; return whether it was there."""

    async def sweep(self, *, idle: float) -> None:
        """Remove what writers left that died over `idle` seconds ago. Growing blobs are their owner's to remove."""


def no_such_file() -> NoSuchFile:
    """Return the error for what is not there; in the same words for every reason, or it would tell what others have."""
    return NoSuchFile("there is no such file; `GET /v1/files` lists those of your key", param="id")
