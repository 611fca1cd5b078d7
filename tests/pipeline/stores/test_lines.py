"""Cutting bytes into lines, and finding a `custom_id` that comes twice."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from fakes.fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stores import lines as lines_module
from pipeline.stores.lines import CustomIds, Line, Splitter, read_lines
from pipeline.stores.local import LocalBlobs

MOST = 1000


def split(data: bytes, size: int = 7, max_bytes: int = MOST) -> list[Line]:
    splitter = Splitter(max_bytes)
    found = [line for start in range(0, len(data), size) for line in splitter.feed(data[start : start + size])]
    return found + splitter.end()


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_lines_have_numbers_and_places(size: int) -> None:
    assert split(b"one\n\ntwo\r\n  \t\nlast", size) == [
        Line(1, 0, 4, b"one"),
        Line(3, 5, 10, b"two\r"),
        Line(5, 14, 18, b"last"),
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n\n\n", []),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf{}\n{}", [(1, b"{}"), (2, b"{}")]),
        (b"{}\n\xef\xbb\xbf{}", [(1, b"{}"), (2, b"\xef\xbb\xbf{}")]),
        (b"{}", [(1, b"{}")]),
        (b"{}\n", [(1, b"{}")]),
    ],
)
def test_odd_beginnings_and_ends(data: bytes, expected: list[tuple[int, bytes]]) -> None:
    for size in (1, 2, 100):
        assert [(line.number, line.data) for line in split(data, size)] == expected


@fuzz
@given(st.lists(st.binary(max_size=30).map(lambda text: text.replace(b"\n", b"")), max_size=20), st.integers(1, 40))
def test_cut_as_one_likes_lines_are_those_of_the_whole(texts: list[bytes], size: int) -> None:
    data = b"\n".join(texts)
    found = split(data, size)
    assert [(line.number, line.data) for line in found] == [
        (number, cut)
        for number, text in enumerate(texts, 1)
        if (cut := text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text).strip()
    ]
    for line in found:
        again = Splitter(MOST, line.offset, line.number)
        first = (again.feed(data[line.offset :]) + again.end())[0]
        assert first == line
        assert data[: line.end].count(b"\n") == line.number - (line.end == len(data) and not data.endswith(b"\n"))


@pytest.mark.parametrize("length", [MOST, MOST + 1, 50 * MOST])
def test_a_line_that_is_too_long_is_told_and_the_next_is_found(length: int) -> None:
    data = b"a\n" + b"x" * length + b"\nb\n"
    for size in (1 if length < 5000 else 13, 100, 10**6):
        first, long, last = split(data, size)
        assert (first.data, last.data) == (b"a", b"b")
        assert (long.number, long.offset, long.end) == (2, 2, length + 3)
        assert long.data == (None if length > MOST else b"x" * length)
        assert last == Line(3, length + 3, length + 5, b"b")


def test_a_long_last_line_without_line_feed_is_told() -> None:
    assert split(b"a\n" + b"x" * (3 * MOST), 100)[-1] == Line(2, 2, 2 + 3 * MOST, None)


def test_s27_a_line_of_200_mb_is_never_held() -> None:
    splitter, piece = Splitter(2**20), b"x" * 2**20
    tracemalloc.start()
    for _ in range(200):
        assert splitter.feed(piece) == []
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    assert splitter.end() == [Line(1, 0, 200 * 2**20, None)]


@pytest.mark.anyio
async def test_a_blob_is_read_piece_by_piece_from_any_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "PIECE", 10)
    blobs = LocalBlobs(tmp_path)
    texts = [b"line %d" % n for n in range(20)]
    async with blobs.write("some") as writer:
        await writer.write(b"\n".join(texts))
        await writer.commit()
    async with blobs.open("some") as blob:
        found = [line async for batch in read_lines(blob, MOST) for line in batch]
        assert [line.data for line in found] == texts
        there = found[7]
        assert [line async for batch in read_lines(blob, MOST, there.end, there.number + 1) for line in batch] == found[
            8:
        ]


# Custom ids


def test_a_custom_id_is_new_once() -> None:
    texts: list[str] = []
    ids = CustomIds(lambda offset: texts[offset])
    for offset, text in enumerate([*(f"id-{n}" for n in range(5000)), "id-0", "id-4999", "new", "new"]):
        texts.append(text)
        assert ids.add(text, offset) is (text not in texts[:-1])


class Colliding(str):
    """A text whose hash is that of all others."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 0


def test_equal_hashes_are_no_duplicates_unless_the_texts_are() -> None:
    texts = [Colliding(f"id-{n}") for n in range(50)]
    ids = CustomIds(lambda offset: texts[offset])
    assert all(ids.add(text, offset) for offset, text in enumerate(texts))
    assert not any(ids.add(text, offset) for offset, text in enumerate(texts))


def test_a_million_custom_ids_take_less_than_64_mb() -> None:
    count = 8_500  # just after it grew, when it is largest for what it holds
    texts = [f"request-{offset}" for offset in range(count)]
    tracemalloc.start()
    ids = CustomIds(lambda _: "")
    for offset, text in enumerate(texts):
        ids.add(text, offset)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < count * 64
    assert most < count * 100  # while it grew; at a million, which is twice as far from there, 50 MB
