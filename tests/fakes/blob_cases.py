"""What every place for blobs has to do, as cases to be run on each."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import anyio
import pytest

from pipeline.errors import NoSuchFile
from pipeline.stores.blobs import PIECE, Blobs

Case = Callable[[Blobs], Awaitable[None]]

LARGE = b"line\n" * (PIECE * 5 // 4)
"""Several pieces, and several parts of an upload."""


async def store(blobs: Blobs, name: str, data: bytes) -> None:
    """Make a blob."""
    async with blobs.write(name) as writer:
        await writer.write(data)
        await writer.commit()


async def contents(blobs: Blobs, name: str) -> bytes:
    """Return all of a blob."""
    async with blobs.open(name) as blob:
        return await blob.read(0, blob.size)


async def a_blob_is_seen_when_it_is_committed_and_not_before(blobs: Blobs) -> None:
    async with blobs.write("some") as writer:
        for start in range(0, len(LARGE), 300_000):
            await writer.write(LARGE[start : start + 300_000])
        assert await blobs.names() == []
        with pytest.raises(NoSuchFile):
            await contents(blobs, "some")
        written = await writer.commit()
    assert written == (len(LARGE), hashlib.sha256(LARGE).hexdigest(), LARGE.count(b"\n"))
    assert await blobs.names() == ["some"]
    assert await contents(blobs, "some") == LARGE


async def lines_are_counted(blobs: Blobs) -> None:
    for data, lines in ((b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2)):
        async with blobs.write("some") as writer:
            await writer.write(data)
            assert (await writer.commit()).lines == lines
        assert await contents(blobs, "some") == data


async def what_is_not_committed_leaves_nothing(blobs: Blobs) -> None:
    async with blobs.write("some") as writer:
        await writer.write(b"x")
    with anyio.CancelScope() as scope:
        async with blobs.write("some") as writer:
            await writer.write(LARGE)
            scope.cancel()
            await writer.write(LARGE)
    assert await blobs.names() == []
    assert not await blobs.delete("some")


async def a_blob_is_replaced_whole(blobs: Blobs) -> None:
    await store(blobs, "some", b"one")
    await store(blobs, "some", b"two")
    assert await contents(blobs, "some") == b"two"


async def a_blob_is_read_from_anywhere(blobs: Blobs) -> None:
    await store(blobs, "some", LARGE)
    size = len(LARGE)
    places = [(0, 10), (10, PIECE), (PIECE + 10, PIECE), (3, 7), (size - 5, 100), (size, 1), (size + 9, 9), (7, size)]
    async with blobs.open("some") as blob:
        assert blob.size == size
        for offset, length in places:
            assert await blob.read(offset, length) == LARGE[offset : offset + length]


async def a_name_that_could_be_a_path_is_none(blobs: Blobs) -> None:
    for name in ("", ".", "..", "../x", "a/b", "/etc/passwd", "a\0", "A", "a.b.c", "é", "a\n"):
        with pytest.raises(ValueError, match="not the name"):
            await blobs.delete(name)
        with pytest.raises(ValueError, match="not the name"):
            async with blobs.write(name):
                pass
        with pytest.raises(ValueError, match="not the name"):
            await contents(blobs, name)
        with pytest.raises(ValueError, match="not the name"):
            async with blobs.grow(name):
                pass


async def deleting_says_whether_it_was_there(blobs: Blobs) -> None:
    await store(blobs, "some", b"x")
    assert await blobs.delete("some")
    assert not await blobs.delete("some")
    assert await blobs.names() == []
    with pytest.raises(NoSuchFile):
        await contents(blobs, "some")


async def several_small_blobs_come_at_once_and_missing_ones_do_not(blobs: Blobs) -> None:
    wanted = {f"{number}.json": b"%d" % number for number in range(40)}
    for name, data in wanted.items():
        await blobs.replace(name, data)
    assert await blobs.fetch([*wanted, "none.json"]) == wanted
    assert await blobs.fetch([]) == {}


async def of_several_that_create_one_succeeds(blobs: Blobs) -> None:
    made: list[bytes] = []

    async def create(data: bytes) -> None:
        if await blobs.create("some", data):
            made.append(data)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(create, b"%d" % number)
    assert len(made) == 1
    assert await contents(blobs, "some") == made[0]
    await blobs.replace("some", b"new")
    assert await blobs.fetch(["some"]) == {"some": b"new"}
    assert not await blobs.create("some", b"late")


async def names_are_found_by_how_they_begin_and_by_age(blobs: Blobs) -> None:
    names = ["a", "a-1", "a-2", "a.json", "aa", "b", "b-1"]
    for name in names:
        await blobs.replace(name, b"")
    assert sorted(await blobs.names()) == sorted(names)
    assert sorted(await blobs.names("a-")) == ["a-1", "a-2"]
    assert sorted(await blobs.names("a")) == ["a", "a-1", "a-2", "a.json", "aa"]
    assert await blobs.names("b-1") == ["b-1"]
    assert await blobs.names("c") == []
    assert await blobs.names(idle=3600) == []


async def what_is_below_is_beside(blobs: Blobs) -> None:
    below = blobs.below("inner")
    await store(below, "some", b"inner")
    await blobs.replace("some", b"outer")
    async with below.grow("more") as growing:
        await growing.append(b"x")
    assert await blobs.names() == await below.names() == ["some"]
    assert await contents(below, "some") == b"inner"
    await below.sweep(idle=0)
    await blobs.sweep(idle=0)
    assert await blobs.delete("some")
    assert await below.fetch(["some"]) == {"some": b"inner"}


async def what_was_never_begun_is_empty(blobs: Blobs) -> None:
    assert await blobs.names() == []
    await blobs.sweep(idle=0)
    await blobs.discard("some")
    assert not await blobs.delete("some")
    async with blobs.grow("some") as growing:
        assert growing.size == 0
        assert await growing.read(0, 10) == b""


async def a_growing_blob_goes_on_where_it_was_left_and_is_no_finished_one(blobs: Blobs) -> None:
    async with blobs.grow("some") as growing:
        await growing.append(b"one\n")
        await growing.append(b"two\n")
        assert await growing.read(0, 100) == b"one\ntwo\n"
    async with blobs.grow("some") as growing, blobs.grow("some-2") as other:
        assert (growing.size, other.size) == (8, 0)
        await growing.append(LARGE)
        await growing.append(b"end")
        whole = b"one\ntwo\n" + LARGE + b"end"
        for offset, length in ((0, 3), (2, 4), (4, 4), (6, PIECE), (len(whole) - 4, 100), (len(whole), 1)):
            assert await growing.read(offset, length) == whole[offset : offset + length]
        assert await growing.read(0, len(whole)) == whole
    assert await blobs.names() == []
    await blobs.discard("some")
    async with blobs.grow("some") as growing:
        assert growing.size == 0


async def a_growing_blob_is_read_as_it_was_while_its_writer_goes_on(blobs: Blobs) -> None:
    async with blobs.grow("some") as writer:
        await writer.append(b"one\n")
        async with blobs.grow("some") as reader:
            await writer.append(b"two\n")
            assert await reader.read(0, 4) == b"one\n"
    assert writer.size == len(b"one\ntwo\n")


async def an_append_is_not_interrupted(blobs: Blobs) -> None:
    async with blobs.grow("some") as growing:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(growing.append, b"x" * PIECE)
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        size = growing.size
        await growing.append(b"y")
    async with blobs.grow("some") as growing:
        assert growing.size == size + 1
        assert await growing.read(size, 1) == b"y"


CASES: list[Case] = [
    a_blob_is_seen_when_it_is_committed_and_not_before,
    lines_are_counted,
    what_is_not_committed_leaves_nothing,
    a_blob_is_replaced_whole,
    a_blob_is_read_from_anywhere,
    a_name_that_could_be_a_path_is_none,
    deleting_says_whether_it_was_there,
    several_small_blobs_come_at_once_and_missing_ones_do_not,
    of_several_that_create_one_succeeds,
    names_are_found_by_how_they_begin_and_by_age,
    what_is_below_is_beside,
    what_was_never_begun_is_empty,
    a_growing_blob_goes_on_where_it_was_left_and_is_no_finished_one,
    a_growing_blob_is_read_as_it_was_while_its_writer_goes_on,
    an_append_is_not_interrupted,
]
