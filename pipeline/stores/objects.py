"""Blobs in S3, GCS or Azure, for gateways of several machines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
import obstore
from anyio import to_thread
from obstore.exceptions import AlreadyExistsError

from pipeline import logs
from pipeline.errors import NoSuchFile, StorageFull, StorageUnavailable
from pipeline.stores.blobs import NAME, Blob, BlobWriter, Growing, Intake, Written, checked
from pipeline.stores.object_calls import asking, finding
from pipeline.stores.object_pieces import open_pieces, pieces_of
from pipeline.stores.together import together

if TYPE_CHECKING:
    from obstore.store import ObjectStore

UPLOAD_PART: Final = 5 * 2**20
"""Bytes of a part of a multipart upload: S3 takes no less, and 10,000 of them."""

UPLOADS_AT_ONCE: Final = 2
"""Parts one writer has under way; each is in memory meanwhile, as is one that is being filled."""

READ_AHEAD: Final = 2 * 2**20
"""Bytes that are fetched at a time where a blob is read from front to back."""

LISTED: Final = 1000
"""Names of one answer."""

ABORT: Final = 10.0
"""Seconds to tell the store that an upload will not go on; otherwise a rule of the bucket has to remove it."""

log = logs.logger("files")


class ObjectBlobs:
    """One object for each blob below `root`; a growing one is a run of objects, for objects cannot be appended to."""

    look_every = 2.0

    def __init__(self, store: ObjectStore, root: str) -> None:
        self._store = store
        self._root = root

    def below(self, name: str) -> ObjectBlobs:
        """Return those below another root: what is below this one is listed with it."""
        return ObjectBlobs(self._store, f"{self._root}.{checked(name)}")

    @asynccontextmanager
    async def write(self, name: str, size: int = 0) -> AsyncIterator[BlobWriter]:
        """Upload in parts, which become an object in the end. Raises StorageFull and StorageUnavailable."""
        writer = _ObjectWriter(self._store, self._key(name))
        try:
            yield writer
        finally:
            with anyio.move_on_after(ABORT, shield=True):
                await writer.close()

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Blob]:
        """Open an object; once it is deleted, reading it ends with NoSuchFile. Raises NoSuchFile."""
        key = self._key(name)
        with finding():
            head = await obstore.head_async(self._store, key)
        yield _ObjectBlob(self._store, key, head["size"])

    @asynccontextmanager
    async def grow(self, name: str) -> AsyncIterator[Growing]:
        """Open a run of objects. Raises StorageUnavailable."""
        yield await open_pieces(self._store, self._run(name))

    async def discard(self, name: str) -> None:
        """Delete a run of objects. Raises StorageUnavailable."""
        found = await pieces_of(self._store, self._run(name))
        with asking():
            await obstore.delete_async(self._store, [piece.key for piece in found])

    async def create(self, name: str, data: bytes) -> bool:
        """Put an object where there is none: the store lets one of several succeed. Raises StorageFull."""
        with asking():
            try:
                await obstore.put_async(self._store, self._key(name), data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    async def replace(self, name: str, data: bytes) -> None:
        """Put an object. Raises StorageFull."""
        with anyio.CancelScope(shield=True), asking():  # one that was given up might come after the next
            await obstore.put_async(self._store, self._key(name), data)

    async def fetch(self, names: Iterable[str]) -> dict[str, bytes]:
        """Get several objects, a few at a time."""
        wanted = list(names)
        found = await together(self._small, wanted)
        return {name: data for name, data in zip(wanted, found, strict=True) if data is not None}

    async def names(self, prefix: str = "", *, idle: float = 0) -> list[str]:
        """List the objects. `idle` is reckoned by this machine's clock and the store's."""
        latest, below = time.time() - idle, f"{self._root}/"
        found: list[str] = []
        begin = below + prefix[:-1] if prefix else None  # what follows it in the alphabet: `prefix` is not far
        with asking():
            async for objects in obstore.list(self._store, self._root, offset=begin, chunk_size=LISTED):
                for listed in objects:
                    name = listed["path"].removeprefix(below)
                    if prefix and name > prefix and not name.startswith(prefix):
                        return found
                    old = not idle or listed["last_modified"].timestamp() < latest
                    if old and name.startswith(prefix) and NAME.fullmatch(name):
                        found.append(name)
        return found

    async def delete(self, name: str) -> bool:
        """Delete an object. The store does not say whether it was there, so it is asked before."""
        key = self._key(name)
        try:
            with finding():
                await obstore.head_async(self._store, key)
                await obstore.delete_async(self._store, key)
        except NoSuchFile:
            return False
        return True

    async def sweep(self, *, idle: float) -> None:
        """Do nothing: uploads that were never completed are seen by nobody, and a rule of the bucket ends them."""

    def _key(self, name: str) -> str:
        return f"{self._root}/{checked(name)}"

    def _run(self, name: str) -> str:
        return f"{self._root}.growing/{checked(name)}"

    async def _small(self, name: str) -> bytes | None:
        try:
            with finding():
                answer = await obstore.get_async(self._store, self._key(name))
                return bytes(await answer.bytes_async())
        except NoSuchFile:
            return None


class _ObjectWriter:
    def __init__(self, store: ObjectStore, key: str) -> None:
        self._file = obstore.open_writer_async(store, key, buffer_size=UPLOAD_PART, max_concurrency=UPLOADS_AT_ONCE)
        self._intake = Intake()
        self._open = True

    async def write(self, data: bytes) -> None:
        if self._intake.gather(data):
            await self._flush()

    async def commit(self) -> Written:
        await self._flush()
        self._open = False
        with anyio.CancelScope(shield=True), asking():  # to stop here would leave an upload nobody can abort
            await self._file.close()
        return self._intake.written

    async def close(self) -> None:
        if self._open:
            try:
                with asking():
                    await self._file.__aexit__(Exception, None, None)  # what leaves by an exception is aborted
            except (StorageFull, StorageUnavailable) as error:
                log.warning("upload not aborted", reason=error.message)

    async def _flush(self) -> None:
        data = self._intake.piece()
        await to_thread.run_sync(self._intake.count, data)
        with asking():
            await self._file.write(data)


class _ObjectBlob:
    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        self._store = store
        self._key = key
        self.size = size
        self._ahead = b""
        self._begin = 0

    async def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        if not self._begin <= offset < end <= self._begin + len(self._ahead):
            follows = offset in (0, self._begin + len(self._ahead))
            if not follows:
                return await self._fetch(offset, end)
            self._ahead = await self._fetch(offset, min(self.size, max(end, offset + READ_AHEAD)))
            self._begin = offset
        return self._ahead[offset - self._begin : end - self._begin]

    async def _fetch(self, begin: int, end: int) -> bytes:
        with finding():
            return bytes(await obstore.get_range_async(self._store, self._key, start=begin, end=end))
