"""Blobs in a private directory of this machine, which several processes share."""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import anyio
from anyio import to_thread

from pipeline import failpoints
from pipeline.errors import StorageFull
from pipeline.stores.blobs import NAME, Blob, BlobWriter, Growing, Intake, Written, checked, no_such_file

PART: Final = ".part"
GROWING: Final = ".growing"

_FINISHED: Final = re.compile(rf"{NAME.pattern}(?<!{re.escape(PART)})(?<!{re.escape(GROWING)})", re.ASCII)

T = TypeVar("T")


class LocalBlobs:
    """One file for each blob. `keep_free`: bytes of the disk that are left to others."""

    look_every = 0.5

    def __init__(self, root: Path, *, keep_free: int = 0) -> None:
        self._root = root
        self._keep_free = keep_free

    def below(self, name: str) -> LocalBlobs:
        """Return those of a directory in this one."""
        return LocalBlobs(self._path(name), keep_free=self._keep_free)

    @asynccontextmanager
    async def write(self, name: str, size: int = 0) -> AsyncIterator[BlobWriter]:
        """Write beside the name, and take the name in the end. Raises StorageFull."""
        writer = await _on_thread(self._new, self._path(name), size)
        try:
            yield writer
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(writer.close)

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Blob]:
        """Open a file, which then stays readable even if it is unlinked. Raises NoSuchFile."""
        try:
            descriptor = await to_thread.run_sync(os.open, self._path(name), os.O_RDONLY)
        except FileNotFoundError:
            raise no_such_file() from None
        try:
            yield _LocalBlob(descriptor)
        finally:
            with anyio.CancelScope(shield=True):  # closing the last descriptor of a deleted file frees its blocks
                await to_thread.run_sync(os.close, descriptor)

    @asynccontextmanager
    async def grow(self, name: str) -> AsyncIterator[Growing]:
        """Open or begin a file that is appended to. Raises StorageFull."""
        descriptor = await _on_thread(self._grow, self._path(name))
        try:
            yield _LocalGrowing(self, descriptor)
        finally:
            os.close(descriptor)

    async def discard(self, name: str) -> None:
        """Unlink what was begun. Raises StorageFull on a read-only disk."""
        path = self._path(name)
        await _on_thread(lambda: path.with_name(path.name + GROWING).unlink(missing_ok=True))

    async def create(self, name: str, data: bytes) -> bool:
        """Write beside the name, and link: of several processes one succeeds. Raises StorageFull."""
        return await _on_thread(self._create_small, self._path(name), data)

    async def replace(self, name: str, data: bytes) -> None:
        """Write beside the name, and take it. Raises StorageFull."""
        await _on_thread(self._replace, self._path(name), data)

    async def fetch(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read all of them on one thread."""
        return await to_thread.run_sync(lambda: dict(self._fetch(names)))

    async def names(self, prefix: str = "", *, idle: float = 0) -> list[str]:
        """List the directory; one that does not exist yet is empty."""
        return await to_thread.run_sync(
            lambda: [name for name in self._names(_FINISHED.fullmatch, idle) if name.startswith(prefix)]
        )

    async def delete(self, name: str) -> bool:
        """Unlink a file, and wait until the directory knows. Raises StorageFull on a read-only disk."""
        return await _on_thread(self._delete, name)

    async def sweep(self, *, idle: float) -> None:
        """Unlink the parts that nobody writes to any more."""
        await _on_thread(self._sweep, idle)

    def check_room(self, size: int) -> None:
        """Raise OSError where `size` bytes more would leave less free than shall be."""
        disk = os.statvfs(self._root)
        if disk.f_bavail * disk.f_frsize < size + self._keep_free:
            raise OSError(errno.ENOSPC, "too little space is left on the disk")

    def _path(self, name: str) -> Path:
        return self._root / checked(name)

    def _new(self, path: Path, size: int) -> _LocalWriter:
        part = _part(path)
        return _LocalWriter(self, self._create(part, os.O_WRONLY | os.O_EXCL, size), part, path)

    def _create(self, path: Path, flags: int, size: int = 0) -> int:
        make_private(self._root)
        self.check_room(size)
        return os.open(path, flags | os.O_CREAT, 0o600)

    def _grow(self, path: Path) -> int:
        growing = path.with_name(path.name + GROWING)
        begins = not growing.exists()
        descriptor = self._create(growing, os.O_RDWR)
        try:
            if begins:
                sync_directory(self._root)  # what is appended is as durable as the name it is found under
            else:
                os.fdatasync(descriptor)  # who reads what a killed writer left builds on it: it must not vanish later
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _create_small(self, path: Path, data: bytes) -> bool:
        part = self._write_small(path, data)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        sync_directory(path.parent)
        return True

    def _replace(self, path: Path, data: bytes) -> None:
        part = self._write_small(path, data)
        try:
            part.rename(path)
        except OSError:
            part.unlink()
            raise
        sync_directory(path.parent)

    def _write_small(self, path: Path, data: bytes) -> Path:
        part = _part(path)
        descriptor = self._create(part, os.O_WRONLY | os.O_EXCL, len(data))
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            part.unlink()
            raise
        finally:
            os.close(descriptor)
        return part

    def _fetch(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            try:
                with open(self._path(name), "rb", buffering=0) as file:
                    yield name, file.read()
            except FileNotFoundError:
                continue

    def _names(self, wanted: Callable[[str], object], idle: float) -> Iterator[str]:
        latest = time.time() - idle
        try:
            entries = os.scandir(self._root)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                if wanted(entry.name) and entry.is_file() and (not idle or _changed(entry) < latest):
                    yield entry.name

    def _delete(self, name: str) -> bool:
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        sync_directory(self._root)
        return True

    def _sweep(self, idle: float) -> None:
        for name in self._names(lambda name: name.endswith(PART), idle):
            (self._root / name).unlink(missing_ok=True)


class _LocalWriter:
    def __init__(self, blobs: LocalBlobs, descriptor: int, part: Path, path: Path) -> None:
        self._blobs = blobs
        self._descriptor = descriptor
        self._part = part
        self._path = path
        self._intake = Intake()

    async def write(self, data: bytes) -> None:
        if self._intake.gather(data):
            await _on_thread(self._flush)

    async def commit(self) -> Written:
        await _on_thread(self._commit)
        return self._intake.written

    def close(self) -> None:
        os.close(self._descriptor)
        with suppress(OSError):  # a disk that became read-only has said so already, and a sweep removes the part
            self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        data = self._intake.piece()
        self._blobs.check_room(len(data))
        self._intake.count(data)
        write_all(self._descriptor, data)

    def _commit(self) -> None:
        self._flush()
        os.fsync(self._descriptor)
        self._part.rename(self._path)
        sync_directory(self._path.parent)


class _LocalBlob:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    async def read(self, offset: int, length: int) -> bytes:
        return await to_thread.run_sync(os.pread, self._descriptor, length, offset)


class _LocalGrowing(_LocalBlob):
    def __init__(self, blobs: LocalBlobs, descriptor: int) -> None:
        super().__init__(descriptor)
        self._blobs = blobs

    async def append(self, data: bytes) -> None:
        await _on_thread(self._append, data)
        self.size += len(data)

    def _append(self, data: bytes) -> None:
        try:
            self._blobs.check_room(len(data))
            if os.fstat(self._descriptor).st_size != self.size:
                os.ftruncate(self._descriptor, self.size)  # what a broken disk did not let go of then
            os.lseek(self._descriptor, self.size, os.SEEK_SET)
            write_all(self._descriptor, data)
            if failpoints.ARMED:
                failpoints.reach_on_thread("feed.before_fsync")
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self.size)  # no half line
            raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write `data`, in as many calls as it takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def make_private(directory: Path) -> None:
    """Make a directory and those it is in, durably and for this user alone; those that are there stay as they are."""
    if not directory.exists():
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable: syncing a file does not do that."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART}")


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # it has just been deleted
        return float("inf")


async def _on_thread(call: Callable[..., T], *arguments: object) -> T:
    """Run a step that writes. Raises StorageFull for whatever the disk says."""
    try:
        return await to_thread.run_sync(call, *arguments)
    except OSError as error:
        raise StorageFull(
            f"files cannot be stored: {(error.strerror or 'the disk failed').lower()}",
            hint="free some space, make the data directory writable, or lower min_free_bytes",
        ) from None
