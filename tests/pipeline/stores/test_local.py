"""Blobs in a directory: whole or not at all, private, and true to what the disk says."""

from __future__ import annotations

import errno
import os
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from fakes.blob_cases import store
from fakes.uploads import names_in

from pipeline.errors import StorageFull
from pipeline.stores import local
from pipeline.stores.blobs import PIECE
from pipeline.stores.local import LocalBlobs

pytestmark = pytest.mark.anyio

OLD = 7200


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "files"


@pytest.fixture
def blobs(root: Path) -> LocalBlobs:
    return LocalBlobs(root)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def modes(directory: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def age(path: Path) -> None:
    long_ago = time.time() - OLD
    os.utime(path, (long_ago, long_ago))


async def test_what_is_not_committed_leaves_nothing(blobs: LocalBlobs, root: Path) -> None:
    async with blobs.write("some") as writer:
        await writer.write(b"x")
    with anyio.CancelScope() as scope:
        async with blobs.write("some") as writer:
            scope.cancel()
            await writer.write(b"x" * 2 * PIECE)
    assert names_in(root) == []


async def test_everything_is_private_whatever_the_umask(blobs: LocalBlobs, root: Path) -> None:
    before = os.umask(0)
    try:
        await store(blobs, "some", b"x")
        async with blobs.grow("more") as growing:
            await growing.append(b"x")
    finally:
        os.umask(before)
    assert modes(root.parent.parent) == modes(root.parent) == {0o700}
    assert modes(root) == {0o600}


async def test_a_blob_stays_readable_while_it_is_deleted(blobs: LocalBlobs, root: Path) -> None:
    await store(blobs, "some", b"0123456789")
    async with blobs.open("some") as blob:
        assert await blobs.delete("some")
        assert not await blobs.delete("some")
        assert names_in(root) == []
        assert await blob.read(3, 4) == b"3456"
        assert await blob.read(8, 100) == b"89"


async def test_a_directory_that_was_never_made_is_empty(blobs: LocalBlobs, root: Path) -> None:
    assert await blobs.names() == []
    await blobs.sweep(idle=0)
    assert not await blobs.delete("some")
    assert names_in(root.parent) == []


# The disk


@pytest.mark.parametrize("size", [10, PIECE, 3 * PIECE])
async def test_a_disk_that_refuses_is_a_507_and_no_half_file(blobs: LocalBlobs, root: Path, size: int) -> None:
    await store(blobs, "before", b"x")
    with pytest.raises(StorageFull, match="file too large"), files_at_most(size - 1):
        await store(blobs, "some", b"x" * size)
    assert names_in(root) == ["before"]
    await store(blobs, "some", b"x" * size)


async def test_space_is_left_free_for_others(root: Path) -> None:
    free = os.statvfs(root.anchor).f_bavail * os.statvfs(root.anchor).f_frsize
    blobs = LocalBlobs(root, keep_free=max(0, free - 2**40))
    await store(blobs, "some", b"x")
    with pytest.raises(StorageFull, match="too little space"):
        await store(LocalBlobs(root, keep_free=2**60), "more", b"x")
    with pytest.raises(StorageFull, match="too little space"):
        async with blobs.write("more", 2**60):
            raise AssertionError("it was begun")
    assert names_in(root) == ["some"]


async def test_a_disk_that_fills_up_meanwhile_is_noticed(blobs: LocalBlobs, root: Path) -> None:
    async with blobs.write("some") as writer:
        await writer.write(b"x" * PIECE)
        blobs._keep_free = 2**60
        with pytest.raises(StorageFull, match="too little space"):
            await writer.write(b"x" * PIECE)
    assert names_in(root) == []


async def test_a_disk_that_becomes_read_only_is_a_507_and_a_sweep_removes_what_was_begun(
    blobs: LocalBlobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async def fill() -> None:
        async with blobs.write("some") as writer:
            await writer.write(b"x" * PIECE)
            disk.setattr("os.write", refuse)
            disk.setattr(Path, "unlink", refuse)
            await writer.write(b"x" * PIECE)

    with monkeypatch.context() as disk, pytest.raises(StorageFull, match="read-only"):
        await fill()
    (part,) = names_in(root)
    age(root / part)
    await blobs.sweep(idle=OLD / 2)
    assert names_in(root) == []


async def test_a_directory_that_cannot_be_made_is_a_507(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFull, match="not a directory"):
        await store(LocalBlobs(tmp_path / "file" / "files"), "some", b"x")


@pytest.fixture
async def steps(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the disk, in order, in a directory that is there already."""
    found: list[str] = []
    fsync, fdatasync, rename = os.fsync, os.fdatasync, Path.rename

    def noting_fsync(descriptor: int) -> None:
        found.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "contents")
        fsync(descriptor)

    def noting_fdatasync(descriptor: int) -> None:
        found.append("contents")
        fdatasync(descriptor)

    def noting_rename(path: Path, target: Path) -> Path:
        found.append("rename")
        return rename(path, target)

    await store(blobs, "before", b"x")
    await blobs.delete("before")
    monkeypatch.setattr(local.os, "fsync", noting_fsync)
    monkeypatch.setattr(local.os, "fdatasync", noting_fdatasync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    return found


async def test_contents_and_directory_are_synced_before_a_blob_counts(blobs: LocalBlobs, steps: list[str]) -> None:
    await store(blobs, "some", b"x")
    await blobs.replace("some", b"y")
    assert steps == 2 * ["contents", "rename", "directory"]
    assert await blobs.create("more", b"x")
    assert steps[6:] == ["contents", "directory"]


async def test_a_small_blob_that_the_disk_refuses_leaves_the_old_one_and_no_part(blobs: LocalBlobs, root: Path) -> None:
    await blobs.replace("some", b"old")
    with pytest.raises(StorageFull), files_at_most(2):
        await blobs.replace("some", b"new")
    with pytest.raises(StorageFull), files_at_most(2):
        await blobs.create("more", b"new")
    (root / "taken").mkdir()
    with pytest.raises(StorageFull):
        await blobs.replace("taken", b"new")
    assert names_in(root) == ["some", "taken"]
    assert await blobs.fetch(["some"]) == {"some": b"old"}


# Growing


async def test_the_name_of_a_growing_blob_is_durable_before_what_is_appended_and_what_is_found_before_it_is_read(
    blobs: LocalBlobs, root: Path, steps: list[str]
) -> None:
    async with blobs.grow("some") as growing:
        await growing.append(b"one\n")
    async with blobs.grow("some"):
        pass
    assert steps == ["directory", "contents", "contents"]  # what is found is made durable, whoever wrote it
    assert names_in(root) == ["some.growing"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EDQUOT])
async def test_an_append_to_a_broken_disk_is_done_again_as_if_it_had_never_been(
    blobs: LocalBlobs, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(number, "no")

    async with blobs.grow("some") as growing:
        await growing.append(b"one\n")
        with monkeypatch.context() as broken:
            broken.setattr("os.fdatasync", refuse)
            broken.setattr("os.ftruncate", refuse)
            with pytest.raises(StorageFull):
                await growing.append(b"a longer one\n")
        await growing.append(b"two\n")
    async with blobs.grow("some") as growing:
        assert await growing.read(0, 100) == b"one\ntwo\n"


async def test_an_append_that_the_disk_refuses_leaves_no_half_line(blobs: LocalBlobs) -> None:
    async with blobs.grow("some") as growing:
        await growing.append(b"one\n")
        with pytest.raises(StorageFull), files_at_most(6):
            await growing.append(b"two\n")
        assert growing.size == 4
        assert await growing.read(0, 100) == b"one\n"
        await growing.append(b"three\n")
        assert await growing.read(0, 100) == b"one\nthree\n"


# Sweeping


async def test_old_parts_are_swept_and_nothing_else_is(blobs: LocalBlobs, root: Path) -> None:
    await store(blobs, "some", b"x")
    async with blobs.grow("growing") as growing:
        await growing.append(b"x")
    (root / "old.0.part").touch()
    (root / "new.0.part").touch()
    for name in ("some", "growing.growing", "old.0.part"):
        age(root / name)
    await blobs.sweep(idle=OLD / 2)
    assert names_in(root) == ["growing.growing", "new.0.part", "some"]
    assert await blobs.names(idle=OLD / 2) == ["some"]
    assert await blobs.names(idle=2 * OLD) == []
