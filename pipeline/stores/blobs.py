"""What a store of files' contents has to offer, wherever it keeps them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol

from pipeline.errors import NoSuchFile

PIECE: Final = 2**20
"""Bytes that are written at a time: a hop to a thread costs as much as some 100 KB do."""

ABANDONED: Final = 3600.0
"""Seconds without a write after which a blob that was begun, or that belongs to one that is gone, is nobody's."""

NAME: Final = re.compile(r"[a-z0-9_-]+(\.[a-z]+)?", re.ASCII)
"""What else lies beside blobs is somebody's, or the system's."""


class Written(NamedTuple):
    """What became of a committed blob. `lines`: what ends in a line feed, and what follows the last one."""

    size: int
    sha256: str
    lines: int


class BlobWriter(Protocol):
    """A new blob while it is written. Nobody sees it before `commit`, and without `commit` nothing remains of it."""

    async def write(self, data: bytes) -> None:
        """Add bytes. Raises StorageFull and StorageUnavailable."""

    async def commit(self) -> Written:
        """Make the blob durable and visible, all of it at once. Raises StorageFull and StorageUnavailable."""


class Blob(Protocol):
    """An open blob. In a directory it stays readable while it is open, even if it is deleted meanwhile."""

    @property
    def size(self) -> int:
        """Bytes it has."""

    async def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer at the end. Raises NoSuchFile and StorageUnavailable."""


class Growing(Blob, Protocol):
    """A blob with one writer that adds to it for as long as it needs, also after a crash of its process."""

    async def append(self, data: bytes) -> None:
        """
        Return when `data` is durable; who is cancelled meanwhile waits for that too.

        Raises StorageFull, and then none of it is there; StorageUnavailable, and then it may be there: from then on
        nothing else can be appended until the blob is opened anew.
        """


class Blobs(Protocol):
    """
    Blobs by name. A name has lower-case letters, digits, `-`, `_` and one dot at most: it is a path nowhere.

    Any of them may raise StorageUnavailable where blobs are not on this machine.
    """

    look_every: float
    """Seconds between two looks that only see whether there is something new."""

    def below(self, name: str) -> Blobs:
        """Return blobs beside these, which are not listed with them."""

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


class Intake:
    """What is written to a blob: gathered into pieces, and counted."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._held = self._size = self._feeds = 0
        self._last = b""
        self._sha256 = hashlib.sha256()

    def gather(self, data: bytes) -> bool:
        """Take bytes in; return whether there are enough for a piece."""
        self._waiting.append(data)
        self._held += len(data)
        return self._held >= PIECE

    def piece(self) -> bytes:
        """Give out what was gathered."""
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._held = 0
        return data

    def count(self, data: bytes) -> None:
        """Count a piece that is being written. It takes a millisecond for each MB, so it is done on a thread."""
        self._sha256.update(data)
        self._size += len(data)
        self._feeds += data.count(b"\n")
        self._last = data[-1:] or self._last

    @property
    def written(self) -> Written:
        """What was counted."""
        return Written(self._size, self._sha256.hexdigest(), self._feeds + (self._last not in (b"", b"\n")))


async def sweep_abandoned(blobs: Blobs, owner: Callable[[str], str | None]) -> None:
    """
    Remove abandoned blobs. `owner` returns the name of the blob that one belongs to; None: it stands for itself.

    Raises StorageFull on a read-only disk.
    """
    idle = await blobs.names(idle=ABANDONED)
    there = set(await blobs.names())
    for name in idle:
        if (needed := owner(name)) is not None and needed not in there:
            await blobs.delete(name)
    await blobs.sweep(idle=ABANDONED)


def checked(name: str) -> str:
    """Return the name of a blob. Raises ValueError for what is none."""
    if not NAME.fullmatch(name):
        raise ValueError("not the name of a blob")
    return name


def no_such_file() -> NoSuchFile:
    """Return the error for what is not there; in the same words for every reason, or it would tell what others have."""
    return NoSuchFile("there is no such file; `GET /v1/files` lists those of your key", param="id")
