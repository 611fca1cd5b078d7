"""The input file of a batch on this machine: what its lines are for, and which of them are to run."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

from pipeline.errors import ConfigurationError
from pipeline.intake import BATCHED
from pipeline.stores.lines import PIECE, Line, Splitter

_LONGEST_FIRST: Final = 64 * 2**20
"""Bytes of the first line that are looked at."""

_COMPRESSED: Final = (b"\x1f\x8b", b"PK", b"\x28\xb5\x2f\xfd", b"BZh")


_EXAMPLE: Final = (
    'a line of it looks like {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}'
)


class _First(msgspec.Struct):
    url: str | None = None


class _Named(msgspec.Struct):
    custom_id: str | None = None


_read_first: Final = msgspec.json.Decoder(_First).decode
_read_name: Final = msgspec.json.Decoder(_Named).decode


class Selection:
    """Lines of a file that are to run, as places in it; their numbers in the file are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._spans: array[int] = array("Q")
        self._numbers: array[int] = array("Q")
        self.is_whole = False

    def add(self, line: Line) -> None:
        """Take a line."""
        self._numbers.append(line.number)
        self._span(line.offset, line.end)

    def whole(self) -> Selection:
        """Take the file as it is, unread."""
        self.is_whole = True
        self._span(0, self.path.stat().st_size)
        return self

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, line: int) -> int:
        """Return the number that line `line` of the selection has in the file."""
        return line if self.is_whole else self._numbers[line - 1]

    def pieces(self) -> Iterator[bytes]:
        """Yield the lines' bytes. Raises ConfigurationError for a file that became shorter."""
        with self.path.open("rb") as file:
            for at in range(0, len(self._spans), 2):
                start, end = self._spans[at], self._spans[at + 1]
                file.seek(start)
                while start < end:
                    data = file.read(min(PIECE, end - start))
                    if not data:
                        raise ConfigurationError(f"{self.path} became shorter while it was read; run it again")
                    start += len(data)
                    yield data

    def _span(self, start: int, end: int) -> None:
        """Take bytes; what follows the last ones makes them longer."""
        self.size += end - start
        if self._spans and self._spans[-1] == start:
            self._spans[-1] = end
        else:
            self._spans.extend((start, end))


def endpoint_of(path: Path, wanted: str | None = None) -> str:
    """
    Return the endpoint that is `wanted`, else the `url` of the first line.

    Raises ConfigurationError for what is no input of a batch, and for an endpoint that has none.
    """
    number, line = _first_line(path)
    if line.startswith(_COMPRESSED):
        raise ConfigurationError(f"{path} is compressed; unpack it first")
    try:
        url = _read_first(line).url
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}, line {number}, is no JSON object: {error}", hint=_EXAMPLE) from None
    if not (endpoint := wanted or url):
        raise ConfigurationError(f"{path}, line {number}, has no `url`", hint=_EXAMPLE)
    if endpoint not in BATCHED:
        raise ConfigurationError(f"there are no batches of {endpoint}: `endpoint` must be one of {', '.join(BATCHED)}")
    return endpoint


def _first_line(path: Path) -> tuple[int, bytes]:
    """Return the first line that is not blank, and its number."""
    number = 0
    try:
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is no regular file, and is read more than once; write it to one first")
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_FIRST):
                number += 1
                if text := line.removeprefix(codecs.BOM_UTF8).strip():
                    return number, text
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}); check the path") from None
    raise ConfigurationError(f"{path} has no lines", hint=_EXAMPLE)


def select(path: Path, wanted: Collection[str] = (), without: Collection[str] = ()) -> Selection:
    """Return the lines whose `custom_id` is among the `wanted`, or, where none are named, not among those `without`."""
    if not wanted and not without:
        return Selection(path).whole()
    selection, splitter = Selection(path), Splitter(2**62)
    with path.open("rb") as file:
        while data := file.read(PIECE):
            _choose(selection, splitter.feed(data), wanted, without)
    _choose(selection, splitter.end(), wanted, without)
    return selection


def _choose(selection: Selection, lines: list[Line], wanted: Collection[str], without: Collection[str]) -> None:
    for line in lines:
        name = custom_id(line.data or b"")
        if (name in wanted) if wanted else (name not in without):
            selection.add(line)


def custom_id(line: bytes) -> str | None:
    """Return the `custom_id` of a line; None for a line that has none."""
    try:
        return _read_name(line).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
