"""Files as `/v1/files` knows them: a record beside each blob, and who may see it."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from operator import attrgetter
from typing import Final, NamedTuple

import anyio
import msgspec
from anyio import to_thread

from pipeline import logs
from pipeline.errors import BodyTooLarge, PipelineError, QuotaExceeded, StorageFull
from pipeline.settings import FileSettings
from pipeline.stores.blobs import Blob, Blobs, BlobWriter, Written, no_such_file, sweep_abandoned

BATCH_EXPIRY: Final = 30 * 86400
"""Seconds after which a batch's input or output expires if its client did not say; OpenAI's default."""

EXPIRY: Final = range(3600, BATCH_EXPIRY + 1)
"""Seconds a client may ask for."""

SWEEP_EVERY: Final = 600.0
"""Seconds between two sweeps of a process."""

RECORD: Final = ".json"

Check = Callable[[Blob], Awaitable[None]]
"""Looks at the contents of a file before it becomes one. Raises PipelineError if it shall not."""

InUse = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Says which of some files are needed although they have expired."""

Viewer = str | None
"""Name of the key that asks; None sees the files of all."""

_ID: Final = re.compile(r"file-[0-9a-f]{32}", re.ASCII)

log = logs.logger("files")


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file as clients see it, with every key of OpenAI's object. Times are seconds since 1970."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str = "processed"
    status_details: str | None = None


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a file's contents. It is written last and never changed: without it there is no file."""

    file: FileObject
    owner: str
    """Name of the key that made it; empty on a gateway without keys."""
    created: float
    """As `created_at`, but fine enough to put files in order."""
    sha256: str
    lines: int
    """How many the contents have, blank ones included."""


class Wanted(NamedTuple):
    """What a client says about a new file."""

    filename: str
    purpose: str
    expires_after: int | None = None
    """Seconds; None: the default of its purpose."""


class Listing(NamedTuple):
    """Which files to list."""

    purpose: str | None = None
    limit: int = 10_000
    newest_first: bool = True
    after: str | None = None
    """Id of the file after which to go on."""


class Limit(NamedTuple):
    """How large a new file may be, and the error for one that is larger."""

    size: int
    error: PipelineError


class FileStore:
    """All files of a gateway. Several processes may have one each: the blobs are the only truth."""

    def __init__(self, blobs: Blobs, settings: FileSettings, now: Callable[[], float] = time.time) -> None:
        self.blobs = blobs
        self._settings = settings
        self._now = now
        self._known: dict[str, FileRecord] = {}
        """Records by their blob's name, to read each once: they do not change. Which of them exist is asked anew."""
        self._finishing = anyio.Lock()

    @asynccontextmanager
    async def receive(self, owner: str, size: int = 0) -> AsyncIterator[Upload]:
        """
        Begin a file of `size` bytes, as far as is known; nothing remains of it unless it is kept.

        Raises BodyTooLarge, QuotaExceeded and StorageFull.
        """
        limits = await self._limits(owner)
        check(limits, size)
        name = new_file_id()
        async with self.blobs.write(name, size) as writer:
            yield Upload(self, owner, name, writer, limits)

    async def publish(self, name: str, owner: str, wanted: Wanted, written: Written) -> FileRecord:
        """Make a file of the finished blob `name`. Raises StorageFull."""
        record = self._record(name, owner, wanted, written)
        async with self.blobs.write(name + RECORD) as writer:
            await writer.write(_encode(record))
            await writer.commit()
        return record

    async def get(self, file_id: str, viewer: Viewer) -> FileRecord:
        """Return a file's record. Raises NoSuchFile, in the same words for every reason."""
        if _ID.fullmatch(file_id):
            for record in (await self._read([file_id + RECORD])).values():
                if self._is_there(record, viewer):
                    return record
        raise no_such_file()

    async def input(self, file_id: str) -> FileRecord:
        """Return the record of a batch's input, even if it has expired meanwhile. Raises NoSuchFile."""
        for record in (await self._read([file_id + RECORD])).values():
            return record
        raise no_such_file()

    def open(self, record: FileRecord) -> AbstractAsyncContextManager[Blob]:
        """Open a file's contents; they stay readable if it is deleted meanwhile. Raises NoSuchFile."""
        return self.blobs.open(record.file.id)

    async def page(self, viewer: Viewer, listing: Listing) -> tuple[list[FileObject], bool]:
        """Return a page of files, and whether more follow. Raises NoSuchFile for an unknown `after`."""
        return await to_thread.run_sync(self._page, await self._records(), viewer, listing)

    def _page(self, records: Iterable[FileRecord], viewer: Viewer, listing: Listing) -> tuple[list[FileObject], bool]:
        """Do what `page` does on a thread: ten thousand records take as long as many live requests."""
        found = [r for r in records if self._is_there(r, viewer)]
        found.sort(key=attrgetter("created", "file.id"), reverse=listing.newest_first)
        begin = 0
        if listing.after is not None:
            begin = next((n for n, r in enumerate(found, 1) if r.file.id == listing.after), 0)
            if not begin:
                raise no_such_file()
        files = [r.file for r in found[begin:] if listing.purpose in (None, r.file.purpose)]
        return files[: listing.limit], len(files) > listing.limit

    async def delete(self, file_id: str, viewer: Viewer) -> None:
        """Delete a file; it is gone with its record. Raises NoSuchFile and StorageFull."""
        await self.get(file_id, viewer)
        if not await self._remove(file_id):
            raise no_such_file()  # somebody else was faster

    async def maintain(self, in_use: InUse) -> None:
        """Sweep now and then, for as long as the process lives; see `sweep`."""
        while True:
            await anyio.sleep(SWEEP_EVERY)
            try:
                await self.sweep(in_use)
            except Exception as error:  # a maintenance loop goes on, whatever the disk says today
                log.warning("files not swept", exc_info=error)

    async def sweep(self, in_use: InUse | None = None) -> None:
        """
        Delete what has expired and is not `in_use`, and what writers left that died.

        Raises StorageFull on a read-only disk.
        """
        expired = [record.file.id for record in await self._records() if self._has_expired(record)]
        kept = await in_use(expired) if expired and in_use is not None else ()
        for name in expired:
            if name not in kept:
                await self._remove(name)
        await sweep_abandoned(self.blobs, lambda name: name + RECORD if _ID.fullmatch(name) else None)

    async def finish(self, upload: Upload, wanted: Wanted, look: Check | None) -> FileRecord:
        """Keep an upload; see `Upload.keep`."""
        written = await upload.writer.commit()
        try:
            if look is not None:
                async with self.blobs.open(upload.name) as blob:
                    await look(blob)
            async with self._finishing:
                check(await self._limits(upload.owner), written.size)  # others may have ended meanwhile
                return await self.publish(upload.name, upload.owner, wanted, written)
        except PipelineError:
            await self.blobs.delete(upload.name + RECORD)  # an object store may have it although it failed
            await self.blobs.delete(upload.name)
            raise

    async def _limits(self, owner: str) -> list[Limit]:
        """Return what bounds a new file of `owner`; what is stored already is only counted where that matters."""
        most = self._settings
        found = [Limit(most.max_upload_bytes, _too_large(most.max_upload_bytes))]
        if most.max_file_bytes is None and most.max_file_bytes_per_key is None:
            return found
        records = [record for record in await self._records() if not self._has_expired(record)]
        if most.max_file_bytes_per_key is not None:
            used = sum(record.file.bytes for record in records if record.owner == owner)
            found.append(Limit(most.max_file_bytes_per_key - used, _over_quota(most.max_file_bytes_per_key)))
        if most.max_file_bytes is not None:
            used = sum(record.file.bytes for record in records)
            found.append(Limit(most.max_file_bytes - used, _all_full(most.max_file_bytes)))
        return found

    def _record(self, name: str, owner: str, wanted: Wanted, written: Written) -> FileRecord:
        now = self._now()
        seconds = wanted.expires_after
        if seconds is None and wanted.purpose in ("batch", "batch_output"):
            seconds = BATCH_EXPIRY
        file = FileObject(
            id=name,
            bytes=written.size,
            created_at=int(now),
            expires_at=None if seconds is None else int(now) + seconds,
            filename=wanted.filename,
            purpose=wanted.purpose,
        )
        return FileRecord(file=file, owner=owner, created=now, sha256=written.sha256, lines=written.lines)

    async def _records(self) -> Iterable[FileRecord]:
        """Return all records, of other processes' files too; those already read are not read again."""
        known, new = await to_thread.run_sync(_apart, await self.blobs.names(), self._known)
        self._known = known | await self._read(new)
        return self._known.values()

    async def _read(self, names: Iterable[str]) -> dict[str, FileRecord]:
        found: dict[str, FileRecord] = {}
        for name, data in (await self.blobs.fetch(names)).items():
            try:
                found[name] = _decode(data)
            except ValueError:  # a broken disk, or somebody's hand
                log.warning("file record unreadable", name=name)
        return found

    async def _remove(self, file_id: str) -> bool:
        if not await self.blobs.delete(file_id + RECORD):
            return False
        await self.blobs.delete(file_id)
        return True

    def _is_there(self, record: FileRecord, viewer: Viewer) -> bool:
        return viewer in (None, record.owner) and not self._has_expired(record)

    def _has_expired(self, record: FileRecord) -> bool:
        return record.file.expires_at is not None and record.file.expires_at <= self._now()


class Upload:
    """A file while its contents arrive."""

    def __init__(self, store: FileStore, owner: str, name: str, writer: BlobWriter, limits: Iterable[Limit]) -> None:
        self.owner = owner
        self.name = name
        self.writer = writer
        self.size = 0
        self._store = store
        self._limits = limits

    async def write(self, data: bytes) -> None:
        """Add bytes. Raises BodyTooLarge, QuotaExceeded and StorageFull."""
        self.size += len(data)
        check(self._limits, self.size)
        await self.writer.write(data)

    async def keep(self, wanted: Wanted, look: Check | None = None) -> FileRecord:
        """Make a file of what has arrived, unless `look` raises. Raises QuotaExceeded and StorageFull."""
        return await self._store.finish(self, wanted, look)


def _apart(names: Iterable[str], known: dict[str, FileRecord]) -> tuple[dict[str, FileRecord], list[str]]:
    """Return the `known` records among these blobs, and the names of those that are to be read."""
    records = [name for name in names if name.endswith(RECORD)]
    there = {name: known[name] for name in records if name in known}
    return there, [name for name in records if name not in there]


def new_file_id() -> str:
    """Return an unguessable id (128 bits) that says nothing about its file."""
    return f"file-{secrets.token_hex(16)}"


def check(limits: Iterable[Limit], size: int) -> None:
    """Raise the error of the first limit that `size` is above."""
    for limit in limits:
        if size > limit.size:
            raise limit.error


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the file is over {most} bytes; split it, or raise max_upload_bytes", param="file")


def _over_quota(most: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"with this file your key would have more than {most} bytes; delete files that are not needed any more",
        hint="or raise max_file_bytes_per_key",
        param="file",
    )


def _all_full(most: int) -> StorageFull:
    return StorageFull(f"the files of this gateway take up {most} bytes, which is all they may", hint="delete some")


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(FileRecord).decode
